"""Ensembles of reward models, and rules that put their members' rewards together (Coste et al. 2023; Zhai et al. 2023).

With R_i the reward of member i of k, and variance and std over members (population, 1/k):

    mean   mean_i R_i
    wco    min_i R_i                         worst case
    uwo    mean_i R_i - λ variance_i R_i     uncertainty weighted
    lcb    mean_i R_i - λ std_i R_i          lower confidence bound

Members share the trunk; each has a top of its own, trained on the labels in an order of its own, with `head = "random"`
from a start of its own, and with `bootstrap` on prompts drawn anew with replacement (bagging: Breiman 1996).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from simfarm import draws
from simfarm.errors import ConfigError, ModelError
from simfarm.policies.split import SplitModel, Top
from simfarm.policies.training import PLAIN, Setup
from simfarm.progress import Progress, no_progress
from simfarm.rewards.config import RewardConfig
from simfarm.rewards.model import RewardModel, Text
from simfarm.rewards.train import Pairs, train_reward_model

Rule = Literal["mean", "wco", "uwo", "lcb"]
FILE = "ensemble.json"


def member_folder(i: int) -> str:
    """Return the name of the folder of member i in the ensemble's."""
    return f"member-{i}"


def combine(rewards: NDArray[np.float64], rule: Rule, penalty: float) -> NDArray[np.float64]:
    """Put members' rewards together.

    Args:
        rewards: (k, n).
        rule: See the module's docstring.
        penalty: λ, for `uwo` and `lcb` (Coste et al.: 0.5 for best-of-n, 0.1 for PPO).

    Returns:
        (n,).
    """
    match rule:
        case "mean":
            return np.asarray(rewards.mean(0))
        case "wco":
            return np.asarray(rewards.min(0))
        case "uwo":
            return np.asarray(rewards.mean(0) - penalty * rewards.var(0))
        case "lcb":
            return np.asarray(rewards.mean(0) - penalty * rewards.std(0))


@dataclass(frozen=True)
class RewardEnsemble:
    """Several reward models on one trunk, used as one."""

    members: Sequence[RewardModel]
    rule: Rule = "mean"
    penalty: float = 0.5

    def __post_init__(self) -> None:
        """Check the ensemble.

        Raises:
            ConfigError: There is no member, the rule is unknown, or the penalty is negative.
        """
        if not self.members or self.rule not in get_args(Rule) or not self.penalty >= 0:
            raise ConfigError(
                f"An ensemble takes one member or more, a rule of {', '.join(get_args(Rule))} and a penalty of 0 or "
                f"more; given: {len(self.members)} members, {self.rule!r}, {self.penalty}."
            )

    @property
    def top(self) -> Top:
        """The first member's top, where a value model may start."""
        return self.members[0].top

    def rewards_of_texts(self, texts: Sequence[Text], *, batch_size: int = 16) -> NDArray[np.float64]:
        """Score texts whose trunk states are known; returns (n,)."""
        each = [member.rewards_of_texts(texts, batch_size=batch_size) for member in self.members]
        return combine(np.stack(each), self.rule, self.penalty)

    def rewards(
        self, prompts: Sequence[str], responses: Sequence[str], *, progress: Progress = no_progress
    ) -> NDArray[np.float64]:
        """Score n responses to n rendered prompts; returns (n,)."""
        each = [member.rewards(prompts, responses) for member in self.members]
        progress(len(prompts))
        return combine(np.stack(each), self.rule, self.penalty)

    def save(self, folder: Path) -> None:
        """Save every member in a folder of its own, and how they are put together."""
        for i, member in enumerate(self.members):
            member.save(folder / member_folder(i))
        facts = {"members": len(self.members), "rule": self.rule, "penalty": self.penalty}
        (folder / FILE).write_text(json.dumps(facts, indent=1), "utf-8")


def train_ensemble(
    split: SplitModel,
    pairs: Pairs,
    config: RewardConfig,
    *,
    members: int,
    rule: Rule = "mean",
    penalty: float = 0.5,
    bootstrap: bool = False,
    seed: int,
    setup: Setup = PLAIN,
    progress: Progress = no_progress,
) -> RewardEnsemble:
    """Train the members of an ensemble, each centred on the labelled responses.

    Args:
        split: The model and where it is cut.
        pairs: Labels without missing ones.
        config: Hyper-parameters of each member.
        members: k (Coste et al.: 3 to 5).
        rule: How they are put together.
        penalty: λ of the rule.
        bootstrap: Train each member but the first on as many prompts drawn with replacement, each with all its labels.
        seed: Of the orders of the labels, of heads drawn at random and of the prompts drawn.
        setup: How to run; several members keep their checkpoints in folders of their own, and the tracker is told of
            the first.
        progress: Called with the number of pairs seen, epoch by epoch and member by member.

    Raises:
        DataError: The labels teach nothing; see `train_reward_model`.
        RunError: A checkpoint is damaged or another's.
    """
    prompts, responses = [*pairs.prompts] * 2, [*pairs.outputs_1, *pairs.outputs_2]
    trained = []
    for i in range(members):
        # the first member is what one reward model alone would be
        own = draws.seed_for(seed, "ensemble member", i) if i else seed
        some = resample(pairs, own) if bootstrap and i else pairs
        folder = setup.folder / member_folder(i) if setup.folder is not None and members > 1 else setup.folder
        alone = replace(setup, folder=folder, tracker=None if i else setup.tracker)
        model = train_reward_model(split, some, config, seed=own, setup=alone, progress=progress)
        # members are compared, so each must have its zero at the same place
        model.offset += float(model.rewards(prompts, responses).mean())
        trained.append(model)
    return RewardEnsemble(trained, rule, penalty)


def resample(pairs: Pairs, seed: int) -> Pairs:
    """Draw as many prompts as there are, with replacement, each with all its pairs, which are not independent."""
    rows_of: dict[str, list[int]] = {}
    for i, prompt in enumerate(pairs.prompts):
        rows_of.setdefault(prompt, []).append(i)
    groups = list(rows_of.values())
    drawn = np.random.default_rng(draws.seed_for(seed, "ensemble bootstrap")).integers(len(groups), size=len(groups))
    rows = [i for g in drawn for i in groups[g]]
    prompts, first, second = ([side[i] for i in rows] for side in (pairs.prompts, pairs.outputs_1, pairs.outputs_2))
    return Pairs(prompts, first, second, np.asarray(pairs.p_first)[rows])


def load_reward(split: SplitModel, folder: Path) -> RewardModel | RewardEnsemble:
    """Load a reward model or an ensemble saved on the same trunk.

    Raises:
        ModelError: It was trained on another model or cut, or the files are damaged.
    """
    if not (folder / FILE).is_file():
        return RewardModel.load(split, folder)
    try:
        facts = json.loads((folder / FILE).read_text("utf-8"))
        members = [RewardModel.load(split, folder / member_folder(i)) for i in range(facts["members"])]
        return RewardEnsemble(members, facts["rule"], facts["penalty"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / FILE} cannot be read: {error}") from error


def base_of(folder: Path) -> tuple[str, int]:
    """Return the model that a saved reward stands on, and how many of its layers were trained.

    Raises:
        ModelError: There is no reward model in the folder.
    """
    facts = next((f for f in (folder / "reward.json", folder / member_folder(0) / "reward.json") if f.is_file()), None)
    if facts is None:
        raise ModelError(f"{folder} holds no reward model. Make one: simfarm train reward --data LABELS --out {folder}")
    try:
        held = json.loads(facts.read_text("utf-8"))
        return str(held["base"]), int(held["trainable_layers"])
    except (ValueError, KeyError) as error:
        raise ModelError(f"{facts} cannot be read: {error}") from error
