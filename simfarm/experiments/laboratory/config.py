"""The config of a laboratory: one world, a base arm, and families of arms that differ from it in one thing."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from simfarm.config_errors import explain
from simfarm.errors import ConfigError
from simfarm.methods.config import PPOConfig
from simfarm.rewards.config import RewardConfig


class Section(BaseModel):
    """A table of the config; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """The language model of the small world, trained from scratch for every seed."""

    hidden_size: int = Field(64, ge=8, multiple_of=8)
    layers: int = Field(3, ge=1)
    steps: int = Field(150, ge=1)
    """Optimiser steps on the world's own texts."""
    batch_size: int = Field(96, ge=1)
    learning_rate: float = Field(4e-3, gt=0)


class Arm(Section):
    """How a proxy is learned and used."""

    flip: float = Field(0.25, ge=0, le=0.5)
    """Share of labels turned round."""
    judge: Literal["single", "pool"] = "single"
    """Labels by gold itself, or each by a member of a pool, drawn at random, with a taste of its own."""
    labels: int = Field(1000, ge=10)
    """Pairs labelled."""
    layers: int = Field(2, ge=1)
    """Last layers of the reward model that are trained: its size."""
    rule: Literal["single", "mean", "wco", "uwo"] = "single"
    """One reward model, or how an ensemble's are put together."""
    kl_coef: float = Field(0.0, ge=0)
    """β of PPO; best-of-n knows none."""
    ppo: bool = True
    """Whether PPO is run."""


class LaboratoryConfig(Section):
    """Everything that decides what a laboratory computes."""

    kind: Literal["laboratory"]
    name: str
    description: str = ""
    seed: int = Field(0, ge=0)
    """Of the first seed."""
    seeds: int = Field(5, ge=2)
    """How many worlds, each with a model, labels, reward models and trainings of its own."""
    processes: int = Field(0, ge=0)
    """Seeds computed at a time; 0: as many as there are processors. Changes no number."""
    model: ModelConfig = ModelConfig()
    prompts: int = Field(24, ge=2)
    """Prompts that best-of-n and the looks along PPO are measured on; labels and PPO use the others."""
    samples: int = Field(1000, ge=4)
    """N of best-of-n, per prompt."""
    members: int = Field(4, ge=2)
    """Of an ensemble (Coste et al. 2023: 3 to 5)."""
    penalty: float = Field(0.5, ge=0)
    """λ of `uwo`."""
    reward: RewardConfig = RewardConfig()
    ppo: PPOConfig = PPOConfig()
    look_every: int = Field(4, ge=1)
    """PPO steps between two looks."""
    base: Arm = Arm()
    families: dict[str, list[dict[str, Any]]] = Field(min_length=1)
    """By name: what each arm changes of the base. An empty table is the base itself."""

    @model_validator(mode="after")
    def _check(self) -> LaboratoryConfig:
        for family, changes in self.families.items():
            for number, change in enumerate(changes):
                try:
                    arm = self.arm(change)
                except ValidationError as error:
                    raise ConfigError(explain(error, Arm, f"families.{family}[{number}]")) from error
                if arm.layers > self.model.layers:
                    raise ValueError(f"families.{family}[{number}] trains {arm.layers} of {self.model.layers} layers")
        return self

    def arm(self, change: dict[str, Any]) -> Arm:
        """Return the base arm with a change."""
        return Arm.model_validate({**self.base.model_dump(), **change})

    def arms(self) -> list[Arm]:
        """Return every arm once; arms of several families are computed once."""
        return list(dict.fromkeys(self.arm(change) for changes in self.families.values() for change in changes))
