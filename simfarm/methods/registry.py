"""Every method by name, each a function from a task to a trained policy: simfarm's own, and those of other packages.

A package adds a method by an entry point of the group `simfarm.methods`: a function `(task: Task) -> Trained`. It reads
from the task what it needs; a task that lacks it says which option gives it.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from pydantic import BaseModel, ValidationError

from simfarm.config_errors import explain
from simfarm.errors import ConfigError, UnknownNameError
from simfarm.methods import config as configs
from simfarm.methods.preferences import Preferences
from simfarm.methods.rollouts import RewardFunction
from simfarm.policies.split import SplitModel, Top
from simfarm.policies.training import PLAIN, Setup
from simfarm.records import probability_from_preference
from simfarm.rewards.ensemble import RewardEnsemble
from simfarm.rewards.model import RewardModel
from simfarm.tables import OUTPUT_COLUMNS, check_labels, require_columns, with_input

GROUP = "simfarm.methods"
Config = TypeVar("Config", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Trained:
    """What a method gives."""

    top: Top
    marker: str = ""
    """Stands before every prompt that the policy answers."""


@dataclass(frozen=True)
class Task:
    """What a method is given."""

    split: SplitModel
    """The initial policy, and where it is cut."""
    data: pd.DataFrame
    """What it learns from: outputs, labels or instructions, as the method needs."""
    reward_model: RewardModel | RewardEnsemble | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Hyper-parameters that the user set."""
    seed: int = 0
    max_new_tokens: int = 300
    setup: Setup = PLAIN

    def config(self, kind: type[Config]) -> Config:
        """Return the hyper-parameters: defaults, and what the user set.

        Raises:
            ConfigError: A setting is unknown or not valid.
        """
        try:
            return kind.model_validate(dict(self.settings))
        except ValidationError as error:
            raise ConfigError(explain(error, kind, "The method's settings")) from error

    def _prompts(self, table: pd.DataFrame) -> list[str]:
        inputs = with_input(table)["input"]
        return [self.split.policy.render(*pair) for pair in zip(table["instruction"], inputs, strict=True)]

    @cached_property
    def prompts(self) -> list[str]:
        """The instructions of the data, rendered."""
        require_columns(self.data, ("instruction",), "The data of this method, instructions,")
        prompts = self._prompts(self.data)
        self._check_lengths(prompts, [self.max_new_tokens] * len(prompts))
        return prompts

    @cached_property
    def demonstrations(self) -> tuple[list[str], list[list[int]]]:
        """The instructions of the data, rendered, and their outputs as tokens."""
        require_columns(self.data, OUTPUT_COLUMNS[:2], "The data of this method, outputs,")
        prompts, responses = self._prompts(self.data), self._tokens(self.data, "output", "finished")
        self._check_lengths(prompts, [len(r) for r in responses])
        return prompts, responses

    @cached_property
    def preferences(self) -> Preferences:
        """The labels of the data; rows without a verdict and pairs of equal outputs teach nothing and are left out."""
        table = check_labels(self.data, "The data of this method, labels,")
        table = table[table["preference"].notna() & (table["output_1"] != table["output_2"])]
        first, second = (self._tokens(table, f"output_{k}", f"finished_{k}") for k in (1, 2))
        prompts = self._prompts(table)
        for side in (first, second):
            self._check_lengths(prompts, [len(r) for r in side])
        p_first = table["preference"].map(probability_from_preference).to_numpy(np.float64)
        return Preferences(prompts, first, second, p_first)

    @property
    def reward(self) -> RewardFunction:
        """Scores responses.

        Raises:
            ConfigError: No reward was given.
        """
        model = self.reward_model
        if model is None:
            raise ConfigError("This method needs a reward model: give one with --reward FOLDER (simfarm train reward).")
        return lambda _, texts: model.rewards_of_texts(texts)

    def _tokens(self, table: pd.DataFrame, output: str, finished: str) -> list[list[int]]:
        """Texts as tokens, with an end of turn unless a column says that the response was cut off."""
        policy = self.split.policy
        ends = table[finished] if finished in table.columns else [True] * len(table)
        return [
            policy.encode_response(text) if end else policy.encode(text)
            for text, end in zip(table[output], ends, strict=True)
        ]

    def _check_lengths(self, prompts: Sequence[str], responses: Sequence[int]) -> None:
        policy = self.split.policy
        policy.check_lengths([len(policy.encode(p)) + r for p, r in zip(prompts, responses, strict=True)])


Method = Callable[[Task], Trained]


def _sft(task: Task) -> Trained:
    from simfarm.methods.sft import fine_tune

    config = task.config(configs.SFTConfig)
    return Trained(fine_tune(task.split, *task.demonstrations, config, seed=task.seed, setup=task.setup))


def _binary_feedme(task: Task) -> Trained:
    from simfarm.methods.binary_feedme import binary_feedme

    config = task.config(configs.FeedMEConfig)
    return Trained(binary_feedme(task.split, task.preferences, config, seed=task.seed, setup=task.setup))


def _binary_reward_conditioning(task: Task) -> Trained:
    from simfarm.methods.binary_reward_conditioning import binary_reward_conditioning

    config = task.config(configs.ConditioningConfig)
    top = binary_reward_conditioning(task.split, task.preferences, config, seed=task.seed, setup=task.setup)
    return Trained(top, config.win)


def _dpo(task: Task) -> Trained:
    from simfarm.methods.dpo import dpo

    config = task.config(configs.DPOConfig)
    return Trained(dpo(task.split, task.preferences, config, seed=task.seed, setup=task.setup))


def _expert_iteration(task: Task) -> Trained:
    from simfarm.methods.expert_iteration import rounds

    config = task.config(configs.ExpertIterationConfig)
    shared: dict[str, Any] = {"max_new_tokens": task.max_new_tokens, "seed": task.seed, "setup": task.setup}
    return Trained(rounds(task.split, task.prompts, task.reward, config, **shared))


def _ppo(task: Task) -> Trained:
    from simfarm.methods.ppo import ppo

    config = task.config(configs.PPOConfig)
    shared: dict[str, Any] = {"max_new_tokens": task.max_new_tokens, "seed": task.seed, "setup": task.setup}
    value_top = None if task.reward_model is None else task.reward_model.top
    top, _ = ppo(task.split, task.prompts, task.reward, config, value_top=value_top, **shared)
    return Trained(top)


def _quark(task: Task) -> Trained:
    from simfarm.methods.quark import marker, quark

    config = task.config(configs.QuarkConfig)
    shared: dict[str, Any] = {"max_new_tokens": task.max_new_tokens, "seed": task.seed, "setup": task.setup}
    return Trained(quark(task.split, task.prompts, task.reward, config, **shared), marker(config))


def _reinforce(task: Task) -> Trained:
    from simfarm.methods.reinforce import reinforce

    config = task.config(configs.REINFORCEConfig)
    shared: dict[str, Any] = {"max_new_tokens": task.max_new_tokens, "seed": task.seed, "setup": task.setup}
    return Trained(reinforce(task.split, task.prompts, task.reward, config, **shared))


def _rloo(task: Task) -> Trained:
    from simfarm.methods.rloo import rloo

    config = task.config(configs.RLOOConfig)
    shared: dict[str, Any] = {"max_new_tokens": task.max_new_tokens, "seed": task.seed, "setup": task.setup}
    return Trained(rloo(task.split, task.prompts, task.reward, config, **shared))


BUILTIN: dict[str, Method] = {
    "sft": _sft,
    "binary_feedme": _binary_feedme,
    "binary_reward_conditioning": _binary_reward_conditioning,
    "dpo": _dpo,
    "expert_iteration": _expert_iteration,
    "ppo": _ppo,
    "quark": _quark,
    "reinforce": _reinforce,
    "rloo": _rloo,
}


def method_names() -> list[str]:
    """Return the names of all methods that train a policy, simfarm's own first."""
    return [*BUILTIN, *sorted(point.name for point in importlib.metadata.entry_points(group=GROUP))]


def load_method(name: str) -> Method:
    """Return a method by name; simfarm's own wins over another package's of the same name.

    Raises:
        UnknownNameError: There is no such method.
        ConfigError: The package that brings it cannot be imported.
    """
    if name in BUILTIN:
        return BUILTIN[name]
    points = [point for point in importlib.metadata.entry_points(group=GROUP) if point.name == name]
    if not points:
        raise UnknownNameError("method", name, method_names(), f"Packages add methods by entry points of {GROUP!r}.")
    try:
        method: Method = points[0].load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"The method {name!r} ({points[0].value}) cannot be imported: {error}") from error
    return method
