"""One seed's world: its model, its samples, its labels, and what is learned from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simfarm import draws
from simfarm.experiments.laboratory import grammar
from simfarm.experiments.laboratory.config import Arm, LaboratoryConfig
from simfarm.experiments.laboratory.model import new_policy, pretrain
from simfarm.methods.ppo import ppo
from simfarm.overoptimization.best_of_n import best_of_n_values, kl_best_of_n
from simfarm.overoptimization.curves import spaced
from simfarm.policies.split import SplitModel
from simfarm.policies.training import Setup, Watch
from simfarm.policies.transformers import Response
from simfarm.rewards.ensemble import RewardEnsemble, Rule, combine
from simfarm.rewards.model import RewardModel, Text
from simfarm.rewards.train import Pairs, train_reward_model

Floats = NDArray[np.float64]

MAX_TOKENS = grammar.LONGEST + 2
BATCH = 1024
"""Rows decoded together."""
LOOKED = 6
"""Responses to each prompt at a look along PPO."""
TASTES = ((1.0, 1.0), (2.0, 1.0), (1.0, 2.0), (0.5, 1.0), (1.0, 0.5))
"""Members of the pool: how much of each manner they like best, relative to gold's reader."""


@dataclass
class World:
    """A model that writes as the grammar's writers do, and everything that one seed draws from it."""

    config: LaboratoryConfig
    seed: int
    _rewards: dict[tuple[object, ...], RewardModel] = field(default_factory=dict)
    _sample_texts: dict[int, list[Text]] = field(default_factory=dict)
    _labelled: dict[tuple[int, int], list[Text]] = field(default_factory=dict)
    _scores: dict[RewardModel, Floats] = field(default_factory=dict)

    @cached_property
    def prompts(self) -> tuple[list[str], list[str]]:
        """Instructions to learn on, and instructions to measure on."""
        every = grammar.instructions()
        order = draws.permutation(len(every), self.seed, "laboratory prompts")
        measured = self.config.prompts
        return [every[i] for i in order[measured:]], [every[i] for i in order[:measured]]

    @cached_property
    def splits(self) -> dict[int, SplitModel]:
        """The pretrained model, cut below each number of layers that an arm trains."""
        policy = new_policy(self.config.model, seed=self.seed)
        pretrain(policy, self.config.model, seed=self.seed)
        return {k: SplitModel(policy, k) for k in sorted({arm.layers for arm in self.config.arms()})}

    @property
    def split(self) -> SplitModel:
        """The policy as PPO trains it."""
        return self.splits[self.config.base.layers]

    def sample(self, instructions: Sequence[str], purpose: str) -> list[Response]:
        """Draw one response of the initial policy to each instruction."""
        policy = self.split.policy
        keys: list[draws.Part] = [[purpose, k] for k in range(len(instructions))]
        prompts = [policy.render(i) for i in instructions]
        return policy.sample(prompts, keys, max_new_tokens=MAX_TOKENS, seed=self.seed, batch_size=BATCH)

    @cached_property
    def samples(self) -> tuple[list[str], list[Response], Floats]:
        """Best-of-n's samples: instructions (each N times), responses, golds."""
        asked = [i for i in self.prompts[1] for _ in range(self.config.samples)]
        responses = self.sample(asked, "best of n")
        return asked, responses, gold(asked, [r.text for r in responses])

    @cached_property
    def pairs(self) -> tuple[list[str], list[Response], list[Response]]:
        """The pairs to label: instructions, and two responses to each; arms with fewer labels take the first."""
        wanted = max(arm.labels for arm in self.config.arms())
        asked = [self.prompts[0][k % len(self.prompts[0])] for k in range(wanted)]
        return asked, self.sample(asked, "first of pair"), self.sample(asked, "second of pair")

    def labels(self, arm: Arm) -> Pairs:
        """Label pairs as an arm says; more noise flips the same pairs and more."""
        asked = self.pairs[0][: arm.labels]
        first, second = ([r.text for r in side[: arm.labels]] for side in self.pairs[1:])
        traits_1, traits_2 = (all_traits(asked, side) for side in (first, second))
        gaps = np.stack([grammar.worth(traits_1, t) - grammar.worth(traits_2, t) for t in TASTES])
        member = [
            draws.choice([1.0] * len(TASTES), self.seed, "laboratory judge", k) if arm.judge == "pool" else 0
            for k in range(len(asked))
        ]
        gap = gaps[member, np.arange(len(asked))]
        flipped = [draws.coin(arm.flip, self.seed, "laboratory flip", k) for k in range(len(asked))]
        p_first = np.where(gap == 0, 0.5, np.where((gap > 0) ^ np.array(flipped), 1.0, 0.0))
        prompts = [self.split.policy.render(i) for i in asked]
        return Pairs(prompts, first, second, p_first)

    def reward(self, arm: Arm) -> RewardEnsemble:
        """Train an arm's reward model or ensemble; members are kept for other arms with the same labels.

        Each has mean 0 and variance 1 on the labelled responses (Gao et al. 2023), so that β means the same in all.
        """
        pairs = self.labels(arm)
        members = []
        for number in range(1 if arm.rule == "single" else self.config.members):
            key = (arm.flip, arm.judge, arm.labels, arm.layers, number)
            if key not in self._rewards:
                seed = draws.seed_for(self.seed, "laboratory reward", number)
                model = train_reward_model(self.splits[arm.layers], pairs, self.config.reward, seed=seed)
                scores = model.rewards_of_texts(self.labelled(arm), batch_size=256)
                model.score.weight.data /= float(scores.std())
                model.offset.fill_(float(scores.mean() / scores.std()))
                self._rewards[key] = model
            members.append(self._rewards[key])
        rule: Rule = "mean" if arm.rule == "single" else arm.rule
        return RewardEnsemble(members, rule, self.config.penalty)

    def labelled(self, arm: Arm) -> list[Text]:
        """Return what a reward model reads of the responses that an arm labels."""
        key = (arm.layers, arm.labels)
        if key not in self._labelled:
            asked, first, second = (column[: arm.labels] for column in self.pairs)
            self._labelled[key] = self.texts(self.splits[arm.layers], [*asked] * 2, [*first, *second])
        return self._labelled[key]

    def texts(self, split: SplitModel, instructions: Sequence[str], responses: Sequence[Response]) -> list[Text]:
        """Compute what a reward model reads of responses."""
        end = int(split.policy.tokenizer.eos_token_id)
        before = [split.policy.encode(split.policy.render(i)) for i in instructions]
        after = [[*r.tokens, *([] if r.finished else [end])] for r in responses]
        states = split.trunk_states(before, after, batch_size=256)
        return [Text(s, len(p)) for s, p in zip(states, before, strict=True)]

    def _proxies(self, arm: Arm) -> Floats:
        """Score best-of-n's samples, (prompts · N,); each reward model reads them once for all arms that it is in."""
        asked, responses, _ = self.samples
        if arm.layers not in self._sample_texts:
            self._sample_texts[arm.layers] = self.texts(self.splits[arm.layers], asked, responses)
        ensemble = self.reward(arm)
        for member in ensemble.members:
            if member not in self._scores:
                self._scores[member] = member.rewards_of_texts(self._sample_texts[arm.layers], batch_size=256)
        return combine(np.stack([self._scores[m] for m in ensemble.members]), ensemble.rule, ensemble.penalty)

    def best_of_n(self, arm: Arm) -> pd.DataFrame:
        """Return the best-of-n curve of each prompt: n, kl, prompt, proxy, gold."""
        golds = self.samples[2]
        n, ns = self.config.samples, spaced(self.config.samples)
        proxies, values = best_of_n_values(self._proxies(arm).reshape(-1, n), golds.reshape(-1, n), ns)
        return pd.DataFrame(
            {
                "n": np.tile(ns, len(proxies)),
                "kl": np.tile(kl_best_of_n(ns), len(proxies)),
                "prompt": np.repeat(self.prompts[1], len(ns)),
                "proxy": proxies.ravel(),
                "gold": values.ravel(),
            }
        )

    def train(self, arm: Arm) -> pd.DataFrame:
        """Train by PPO, and return what the looks along it saw: step, kl, proxy, gold, length, means over prompts."""
        reward = self.reward(arm)
        split, asked = self.splits[arm.layers], self.prompts[1] * LOOKED
        looked: list[dict[str, float]] = []

        def look(answers: Sequence[str]) -> Floats:
            worth = gold(asked, answers)
            proxy = reward.rewards([split.policy.render(i) for i in asked], list(answers))
            looked.append({"proxy": float(proxy.mean()), "gold": float(worth.mean())})
            return worth

        rendered = [split.policy.render(i) for i in asked]
        look([r.text for r in self.sample(asked, "initial look")])
        _, history = ppo(
            split,
            [split.policy.render(i) for i in self.prompts[0]],
            lambda _, texts: reward.rewards_of_texts(texts, batch_size=256),
            self.config.ppo.model_copy(update={"kl_coef": arm.kl_coef}),
            max_new_tokens=MAX_TOKENS,
            seed=draws.seed_for(self.seed, "laboratory ppo"),
            value_top=reward.top,
            setup=Setup(
                micro_batch=64,
                batch_size=BATCH,
                watch=Watch(rendered, every=self.config.look_every, max_new_tokens=MAX_TOKENS, gold=look),
            ),
        )
        seen = [row for row in history if "watched_kl" in row]
        return pd.DataFrame(
            {
                "step": [0, *(int(row["step"]) + 1 for row in seen)],
                "kl": [0.0, *(row["watched_kl"] for row in seen)],
                "proxy": [row["proxy"] for row in looked],
                "gold": [row["gold"] for row in looked],
                "length": [np.nan, *(row["watched_length"] for row in seen)],
            }
        )


def all_traits(instructions: Sequence[str], responses: Sequence[str]) -> NDArray[np.int64]:
    """Return the traits of responses, (n, 5)."""
    return np.array([grammar.traits(*pair) for pair in zip(instructions, responses, strict=True)], np.int64)


def gold(instructions: Sequence[str], responses: Sequence[str]) -> Floats:
    """Return the worth of responses to gold's reader, (n,)."""
    return grammar.worth(all_traits(instructions, responses))
