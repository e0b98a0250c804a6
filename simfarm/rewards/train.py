"""Train a reward model on preference labels, and say how good it is on labels it has not seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from simfarm import draws
from simfarm.errors import ConfigError, DataError
from simfarm.evaluation.clustering import clustered_mean, codes
from simfarm.policies.optimise import cosine_with_warmup
from simfarm.policies.split import SplitModel
from simfarm.policies.training import PLAIN, Setup, Trainer
from simfarm.policies.transformers import length_sorted_batches
from simfarm.progress import Progress, no_progress
from simfarm.rewards.config import RewardConfig
from simfarm.rewards.losses import pairwise_loss, plackett_luce_loss
from simfarm.rewards.model import RewardModel, Text
from simfarm.rewards.probe import fit_probe


@dataclass(frozen=True, slots=True)
class Pairs:
    """Labelled pairs: rendered prompts, two responses each, and P(the first is better)."""

    prompts: Sequence[str]
    outputs_1: Sequence[str]
    outputs_2: Sequence[str]
    p_first: NDArray[np.float64]


def train_reward_model(
    split: SplitModel,
    pairs: Pairs,
    config: RewardConfig,
    *,
    seed: int,
    setup: Setup = PLAIN,
    progress: Progress = no_progress,
) -> RewardModel:
    """Fit a reward model by maximum likelihood under Bradley–Terry.

    The trunk's states are computed once; every epoch trains the top on them.

    Args:
        split: The model and where it is cut.
        pairs: Labels without missing ones.
        config: Hyper-parameters.
        seed: Of the order of the pairs.
        setup: How to run; its micro-batch counts prompts, each with all its labels in the batch.
        progress: Called with the number of pairs seen, epoch by epoch.

    Raises:
        DataError: There are no pairs, a label is missing, or all labels name the same side as better.
        TrainingError: The loss is not finite, or memory ran out.
        RunError: The checkpoint in the folder is damaged or another's.
    """
    p_first = np.asarray(pairs.p_first, dtype=float)
    if not len(p_first) or not np.isfinite(p_first).all():
        raise DataError(
            f"A reward model needs labels without missing ones; {int((~np.isfinite(p_first)).sum())} of "
            f"{len(p_first)} are missing."
        )
    if (p_first > 0.5).all() or (p_first < 0.5).all():
        raise DataError(
            "Every label prefers the same side. Labels like that teach the reward model which column a response stood "
            "in; put the preferred response at random in output_1 or output_2."
        )
    model = RewardModel(split, config.pooling)
    # responses that stand in several pairs are computed once, here and in every batch
    number: dict[tuple[str, str], int] = {}
    sides = [
        [number.setdefault(text, len(number)) for text in zip(pairs.prompts, outputs, strict=True)]
        for outputs in (pairs.outputs_1, pairs.outputs_2)
    ]
    texts = model.texts([prompt for prompt, _ in number], [output for _, output in number])
    if config.head == "probe":
        states = np.zeros((len(texts), split.hidden_size))
        for rows in length_sorted_batches([len(text.states) for text in texts], 16):
            with torch.no_grad():
                states[rows] = model.pooled([texts[i] for i in rows]).double().cpu().numpy()
        weights = fit_probe(states, sides[0], sides[1], p_first, pairs.prompts, seed=seed)
        with torch.no_grad():
            model.score.weight.copy_(torch.tensor(weights).unsqueeze(0))

    if config.head == "random":
        _draw_head(model, seed)

    def loss(rows: list[int], rewards: Rewards) -> tuple[torch.Tensor, list[bool]]:
        target = torch.tensor(p_first[rows], dtype=torch.float32, device=model.offset.device)
        r1, r2 = (rewards([side[i] for i in rows]) for side in sides)
        right = ((r1 > r2) == (target > 0.5))[target != 0.5]
        return pairwise_loss(r1, r2, target, margin=config.margin, flip=config.flip), right.tolist()

    members = list(zip(*sides, strict=True))
    data: draws.Part = [*map(list, (pairs.prompts, pairs.outputs_1, pairs.outputs_2)), p_first.tolist()]
    _fit(model, texts, pairs.prompts, members, loss, config, data=data, seed=seed, setup=setup, progress=progress)
    return model


@dataclass(frozen=True, slots=True)
class Rankings:
    """Ranked responses: rendered prompts, and to each two or more responses, the best first, without ties."""

    prompts: Sequence[str]
    responses: Sequence[Sequence[str]]


def train_on_rankings(
    split: SplitModel,
    rankings: Rankings,
    config: RewardConfig,
    *,
    seed: int,
    setup: Setup = PLAIN,
    progress: Progress = no_progress,
) -> RewardModel:
    """Fit a reward model to rankings by K-wise maximum likelihood under Plackett–Luce.

    Args:
        split: The model and where it is cut.
        rankings: What is learned.
        config: Hyper-parameters; a batch counts rankings. `head`, `margin` and `flip` are of pairs only.
        seed: Of the order of the rankings.
        setup: How to run; its micro-batch counts prompts, each with all its rankings in the batch.
        progress: Called with the number of rankings seen, epoch by epoch.

    Raises:
        DataError: There is no ranking, or one of fewer than two responses.
        ConfigError: The config asks for what is of pairs only.
        TrainingError: The loss is not finite, or memory ran out.
        RunError: The checkpoint in the folder is damaged or another's.
    """
    short = [i for i, row in enumerate(rankings.responses) if len(row) < 2]
    if not rankings.prompts or short:
        raise DataError(
            f"Rankings of two or more responses are needed; {len(rankings.prompts)} were given"
            + (f", and row {short[0]} has {len(rankings.responses[short[0]])}." if short else ".")
        )
    if config.head == "probe" or config.margin or config.flip:
        raise ConfigError("head = 'probe', margin and flip are for pairs; rankings take none of them.")
    model = RewardModel(split, config.pooling)
    number: dict[tuple[str, str], int] = {}
    members = [
        [number.setdefault((prompt, response), len(number)) for response in row]
        for prompt, row in zip(rankings.prompts, rankings.responses, strict=True)
    ]
    texts = model.texts([prompt for prompt, _ in number], [response for _, response in number])

    if config.head == "random":
        _draw_head(model, seed)

    def loss(rows: list[int], rewards: Rewards) -> tuple[torch.Tensor, list[bool]]:
        ranked = [rewards(members[i]) for i in rows]
        return plackett_luce_loss(ranked), [int(r.argmax()) == 0 for r in ranked]

    data: draws.Part = [list(rankings.prompts), [list(row) for row in rankings.responses]]
    _fit(model, texts, rankings.prompts, members, loss, config, data=data, seed=seed, setup=setup, progress=progress)
    return model


Rewards = Callable[[Sequence[int]], torch.Tensor]
"""Texts of a batch -> their rewards."""


def _draw_head(model: RewardModel, seed: int) -> None:
    weight, rng = model.score.weight, np.random.default_rng(draws.seed_for(seed, "reward head"))
    with torch.no_grad():
        weight.copy_(torch.tensor(rng.normal(0, (weight.shape[1] + 1) ** -0.5, weight.shape)))


def _fit(
    model: RewardModel,
    texts: Sequence[Text],
    prompts: Sequence[str],
    members: Sequence[Sequence[int]],
    loss_of: Callable[[list[int], Rewards], tuple[torch.Tensor, list[bool]]],
    config: RewardConfig,
    *,
    data: draws.Part,
    seed: int,
    setup: Setup,
    progress: Progress,
) -> None:
    """Train on labels that each compare some texts; `loss_of` gives some labels' mean loss, and which it has right."""
    epochs = [prompt_batches(prompts, config.batch_size, seed, epoch) for epoch in range(config.epochs)]
    batches = [batch for epoch in epochs for batch in epoch]
    trainer = Trainer(
        "reward",
        config,
        {"reward": model},
        steps=len(batches),
        learning_rate=config.learning_rate,
        rate=cosine_with_warmup(len(batches), 0.03),
        seed=seed,
        setup=setup,
        policy=lambda: model.split.policy,
        reference=model.split.policy,
        data=data,
        weight_decay=config.weight_decay,
    )
    seen = 0
    for step in trainer.steps():
        groups: dict[str, list[int]] = {}
        for i in batches[step]:
            groups.setdefault(prompts[i], []).append(i)
        parts = list(groups.values())

        def loss(some: list[int], parts: list[list[int]] = parts) -> tuple[torch.Tensor, Mapping[str, float]]:
            rows = [i for part in some for i in parts[part]]
            place = {t: k for k, t in enumerate(sorted({t for i in rows for t in members[i]}))}
            computed = model([texts[t] for t in place])
            mean, right = loss_of(rows, lambda ids: computed[[place[t] for t in ids]])
            return mean * len(rows), {"right": float(sum(right)), "decided": float(len(right))}

        longest = [max(len(texts[t].states) for i in part for t in members[i]) for part in parts]
        sums = trainer.update(range(len(parts)), longest, len(batches[step]), loss)
        accuracy = sums["right"] / sums["decided"] if sums["decided"] else math.nan
        trainer.record({"loss": sums["loss"], "accuracy": accuracy})
        progress(sum(map(len, batches[seen : step + 1])))
        seen = step + 1
    progress(sum(map(len, batches[seen:])))


def prompt_batches(prompts: Sequence[str], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Deal rows out in batches of about `batch_size`, all rows of one prompt in one batch, in a new order each epoch.

    Comparisons of one prompt share responses: together, each response is computed once, and no response is learned
    from in several steps of an epoch, which overfits (Ouyang et al. 2022, section 3.5).
    """
    groups: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(i)
    # a prompt with more rows than a batch is dealt out in several
    parts = [rows[k : k + batch_size] for rows in groups.values() for k in range(0, len(rows), batch_size)]
    batches: list[list[int]] = [[]]
    for p in draws.permutation(len(parts), seed, "reward batches", epoch):
        if len(batches[-1]) >= batch_size:
            batches.append([])
        batches[-1] += parts[p]
    return batches


def accuracy(rewards_1: NDArray[np.float64], rewards_2: NDArray[np.float64], preference: NDArray[np.float64]) -> float:
    """Return the share of pairs whose rewards are ordered as the preference; ties of preference are left out.

    Raises:
        DataError: Every preference is a tie or missing.
    """
    kept = np.isfinite(preference) & (preference != 1.5)
    if not kept.any():
        raise DataError("Every preference is a tie or missing; the accuracy of a reward model has nothing to count.")
    gap = (rewards_1 - rewards_2)[kept]
    # a reward model that cannot tell two responses apart is right half of the time
    right = np.where(gap == 0, 0.5, (gap > 0) == (preference[kept] < 1.5))
    return float(right.mean())


def reliability(
    rewards_1: NDArray[np.float64],
    rewards_2: NDArray[np.float64],
    preference: NDArray[np.float64],
    instructions: Sequence[str],
    *,
    bins: int = 8,
) -> pd.DataFrame:
    """Compare predicted probabilities with the share of labels that agree, on pairs not trained on.

    The prediction is that of the higher reward, σ(|r₁ - r₂|) from 0.5 to 1: exchanging outputs changes nothing.

    Args:
        rewards_1: (n,) rewards of output_1.
        rewards_2: (n,) rewards of output_2.
        preference: (n,) labels; missing ones are left out, a tie agrees by half.
        instructions: n names; the interval is clustered by them.
        bins: Of equal count; fewer where there are fewer than four labels to each.

    Returns:
        One row per bin, by rising probability: predicted (mean), observed (share), ci_low, ci_high (95 %), n.

    Raises:
        DataError: Every label is missing.
    """
    kept = np.isfinite(preference)
    if not kept.any():
        raise DataError("Every preference is missing; the calibration of a reward model has nothing to count.")
    gap, p_first = (rewards_1 - rewards_2)[kept], 2 - preference[kept]
    table = pd.DataFrame(
        {
            "predicted": 1 / (1 + np.exp(-np.abs(gap))),
            # between equal rewards there is no higher one
            "agrees": np.where(gap == 0, 0.5, np.where(gap > 0, p_first, 1 - p_first)),
            "cluster": codes(list(instructions))[kept],
        }
    )
    wanted, rows = min(bins, max(1, len(table) // 4)), []
    for chosen in np.array_split(np.argsort(table["predicted"].to_numpy(), kind="stable"), wanted):
        part = table.iloc[chosen]
        share = clustered_mean(part["agrees"].to_numpy(float), codes(part["cluster"]), share=True)
        rows.append((part["predicted"].mean(), share.value, share.ci_low, share.ci_high, len(part)))
    return pd.DataFrame(rows, columns=["predicted", "observed", "ci_low", "ci_high", "n"])
