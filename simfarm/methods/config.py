"""Hyper-parameters of the methods, apart from them so that a config can be checked without PyTorch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Rollout = Literal["transformers", "vllm"]
"""Who draws the responses that a method learns from: the policy itself, or vLLM with its weights of the moment."""


class SFTConfig(BaseModel):
    """How a policy is fine-tuned on responses."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(3, ge=1)
    batch_size: int = Field(128, ge=1)
    """Responses per optimiser step."""
    learning_rate: float = Field(2e-5, gt=0)
    """Peak; cosine with 3 % warm-up."""


class BestOfNConfig(BaseModel):
    """How many responses best-of-n draws."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: int = Field(16, ge=1)


class ExpertIterationConfig(BaseModel):
    """How many responses are drawn, and how the best are learned."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: int = Field(16, ge=1)
    """Responses drawn per unlabelled prompt."""
    rounds: int = Field(1, ge=1)
    """How often: each round draws from the policy of the one before, and fine-tunes the initial one (AlpacaFarm: 1).
    An experiment does one."""
    rollout: Rollout = "transformers"
    """In an experiment transformers draws the candidates."""
    sft: SFTConfig = SFTConfig()


class PPOConfig(BaseModel):
    """Hyper-parameters; defaults are AlpacaFarm's for simulated preferences where it has them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(40, ge=1)
    """Rounds of rollouts and updates (AlpacaFarm: best after 20 to 80)."""
    rollouts: int = Field(512, ge=1)
    """Responses per step."""
    minibatch: int = Field(256, ge=1)
    """Responses per optimiser step."""
    epochs: int = Field(2, ge=1)
    """Passes over the rollouts of a step."""
    learning_rate: float = Field(1e-5, gt=0)
    """Peak; linear to 0, after a linear warm-up."""
    warmup_steps: int = Field(5, ge=0)
    kl_coef: float = Field(0.0067, ge=0)
    """β (AlpacaFarm: 0.0067 on simulated, 0.02 on human preferences)."""
    kl_target: float | None = Field(None, gt=0)
    """If given, β adapts so that the KL per response comes near it (Ziegler et al. 2019; AlpacaFarm's off, 6 nats)."""
    clip: float = Field(0.2, gt=0)
    value_clip: float = Field(0.2, gt=0)
    value_coef: float = Field(0.1, ge=0)
    value_network: Literal["own", "shared"] = "own"
    """A network of its own, started from the reward model (AlpacaFarm), or a head on the policy's: no second network in
    memory and in the update."""
    gamma: float = Field(1.0, ge=0, le=1)
    gae_lambda: float = Field(1.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    checkpoint_every: int = Field(1, ge=1)
    """Steps between two checkpoints; an interrupted run goes on from the last."""
    rollout: Rollout = "transformers"


class DPOConfig(BaseModel):
    """Hyper-parameters of direct preference optimisation; defaults are AlpacaFarm's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    loss: Literal["sigmoid", "ipo", "robust"] = "sigmoid"
    beta: float = Field(0.1, gt=0)
    """β of DPO, τ of IPO."""
    flip: float = Field(0.0, ge=0, lt=0.5)
    """Known share of labels turned round, for the loss `robust`."""
    epochs: int = Field(2, ge=1)
    batch_size: int = Field(64, ge=1)
    """Pairs per optimiser step."""
    learning_rate: float = Field(1e-6, gt=0)
    """Peak; cosine with 3 % warm-up."""


class FeedMEConfig(SFTConfig):
    """How a policy is fine-tuned on preferred responses: SFT's recipe."""


class ConditioningConfig(SFTConfig):
    """How a policy is fine-tuned on marked responses: SFT's recipe."""

    win: str = "Preferred response.\n"
    """Stands before the prompt of a preferred response, and before every prompt once training is over."""
    lose: str = "Rejected response.\n"


class QuarkConfig(BaseModel):
    """Hyper-parameters of Quark; defaults are AlpacaFarm's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(40, ge=1)
    """Rounds of rollouts and updates."""
    rollouts: int = Field(512, ge=1)
    """Responses per step."""
    minibatch: int = Field(256, ge=1)
    """Responses per optimiser step."""
    quantiles: int = Field(4, ge=2, le=26)
    """K: how many groups of like reward."""
    train_on: Literal["best", "all"] = "best"
    """Only the best group, unmarked (AlpacaFarm); or all, each after its marker (Lu et al. 2022)."""
    updates: int = Field(1, ge=1)
    """Optimiser steps per step."""
    learning_rate: float = Field(3e-6, gt=0)
    """Peak; linear to 0, after a linear warm-up."""
    warmup_steps: int = Field(5, ge=0)
    kl_coef: float = Field(0.05, ge=0)
    """β, per token."""
    rollout: Rollout = "transformers"


class REINFORCEConfig(BaseModel):
    """Hyper-parameters of REINFORCE with a learned baseline; defaults are RLAIF's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(40, ge=1)
    """Rounds of rollouts and one update."""
    rollouts: int = Field(128, ge=1)
    """Responses per step."""
    learning_rate: float = Field(1e-5, gt=0)
    """Peak; linear to 0, after a linear warm-up."""
    warmup_steps: int = Field(5, ge=0)
    kl_coef: float = Field(0.05, ge=0, lt=1)
    """β of (1 - β) r - β KL."""
    temperature: float = Field(0.9, gt=0)
    """Of the rollouts."""
    rollout: Rollout = "transformers"


class RLOOConfig(BaseModel):
    """Hyper-parameters of REINFORCE with a leave-one-out baseline."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(40, ge=1)
    """Rounds of rollouts and one update."""
    prompts: int = Field(128, ge=1)
    """Prompts per step."""
    samples: int = Field(4, ge=2)
    """k: responses per prompt."""
    learning_rate: float = Field(1e-5, gt=0)
    """Peak; linear to 0, after a linear warm-up."""
    warmup_steps: int = Field(5, ge=0)
    kl_coef: float = Field(0.03, ge=0)
    """β."""
    rollout: Rollout = "transformers"
