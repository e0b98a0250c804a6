"""Train a reward model on preference labels, and say how good it is on labels it has not seen."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from simfarm import draws
from simfarm.errors import DataError, TrainingError
from simfarm.policies.optimise import Log, cosine_with_warmup
from simfarm.policies.split import SplitModel
from simfarm.policies.transformers import length_sorted_batches
from simfarm.progress import Progress, no_progress
from simfarm.rewards.config import RewardConfig
from simfarm.rewards.losses import pairwise_loss
from simfarm.rewards.model import RewardModel
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
    log: Log = lambda row: None,
    progress: Progress = no_progress,
) -> RewardModel:
    """Fit a reward model by maximum likelihood under Bradley–Terry.

    The trunk's states are computed once; every epoch trains the top on them.

    Args:
        split: The model and where it is cut.
        pairs: Labels without missing ones.
        config: Hyper-parameters.
        seed: Of the order of the pairs.
        log: Called after each optimiser step with loss, accuracy on the batch and learning rate.
        progress: Called with the number of pairs seen, epoch by epoch.

    Raises:
        DataError: There are no pairs, a label is missing, or all labels name the same side as better.
        TrainingError: The loss is not finite.
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
    device = model.offset.device
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
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    epochs = [prompt_batches(pairs.prompts, config.batch_size, seed, epoch) for epoch in range(config.epochs)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, cosine_with_warmup(sum(map(len, epochs)), 0.03))
    for rows in itertools.chain.from_iterable(epochs):
        target = torch.tensor(p_first[rows], dtype=torch.float32, device=device)
        place = {t: k for k, t in enumerate(sorted({side[i] for side in sides for i in rows}))}
        rewards = model([texts[t] for t in place])
        r1, r2 = (rewards[[place[side[i]] for i in rows]] for side in sides)
        loss = pairwise_loss(r1, r2, target)
        if not torch.isfinite(loss):
            raise TrainingError("The reward model's loss is not finite. Lower reward.learning_rate.")
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        right = ((r1 > r2) == (target > 0.5)).float()[target != 0.5].mean()
        log({"loss": loss.item(), "accuracy": right.item(), "learning_rate": float(schedule.get_last_lr()[0])})
        schedule.step()
        progress(len(rows))
    return model


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
