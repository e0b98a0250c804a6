"""Expert iteration: fine-tune the initial policy on the best of n of its own responses to unlabelled prompts.

AlpacaFarm: best of 16 on the unlabelled split, then SFT's recipe from the SFT model (Silver et al. 2017; Anthony et
al. 2017; Uesato et al. 2022 for language models).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from simfarm import draws
from simfarm.methods.best_of_n import choose
from simfarm.methods.config import ExpertIterationConfig
from simfarm.methods.rollouts import RewardFunction, check_prompts, collect, new_sampler
from simfarm.methods.sft import fine_tune
from simfarm.policies import workers
from simfarm.policies.optimise import Log
from simfarm.policies.split import SplitModel, Top
from simfarm.policies.training import PLAIN, Setup, write_jsonl
from simfarm.policies.transformers import Response
from simfarm.progress import Progress, no_progress

ROLLOUTS = "rollouts.jsonl"
"""In a round's folder: the metrics of the responses that it drew."""


def rounds(
    split: SplitModel,
    prompts: Sequence[str],
    reward: RewardFunction,
    config: ExpertIterationConfig,
    *,
    max_new_tokens: int,
    seed: int,
    setup: Setup = PLAIN,
) -> Top:
    """Draw, choose and fine-tune as often as the config says; arguments and errors as in `rloo`."""
    check_prompts(prompts, "expert_iteration")
    reference = split.initial_top()
    top = reference
    rows = [i for i in range(len(prompts)) for _ in range(config.n)]
    sampler = new_sampler(config.rollout, split, prompts, max_new_tokens=max_new_tokens, setup=setup)
    for number in range(config.rounds):
        drawn = collect(
            split, top, reference, prompts, rows, reward,
            method="expert_iteration", step=number, seed=seed, max_new_tokens=max_new_tokens, setup=setup,
            sampler=sampler,
        )  # fmt: skip
        best = choose(drawn.scores.reshape(-1, config.n), config.n)
        kept = [(p, t) for i, p in enumerate(prompts) if (t := drawn.targets[i * config.n + best[i]])]
        here = setup if setup.folder is None else replace(setup, folder=setup.folder / f"round-{number + 1}")
        if here.folder is not None and workers.rank() == 0:
            write_jsonl(here.folder / ROLLOUTS, [drawn.metrics()])
        top = fine_tune(
            split, [p for p, _ in kept], [t for _, t in kept], config.sft,
            seed=draws.seed_for(seed, "expert iteration", number), setup=here, method="expert_iteration",
        )  # fmt: skip
    return top


def expert_iteration(
    split: SplitModel,
    prompts: Sequence[str],
    responses: Sequence[Sequence[Response]],
    rewards: NDArray[np.float64],
    config: ExpertIterationConfig,
    *,
    seed: int,
    log: Log = lambda row: None,
    progress: Progress = no_progress,
) -> Top:
    """Fine-tune on the best of n.

    Args:
        split: The initial policy and where it is cut.
        prompts: P rendered prompts.
        responses: P lists of N responses each.
        rewards: (P, N).
        config: Hyper-parameters.
        seed: Of the order of the rows.
        log: See `fine_tune`.
        progress: See `fine_tune`.

    Returns:
        The trained top.
    """
    best = choose(rewards, config.n)
    # an empty response has nothing to learn from
    kept = [(p, row[i].tokens) for p, row, i in zip(prompts, responses, best, strict=True) if row[i].tokens]
    return fine_tune(
        split, [p for p, _ in kept], [t for _, t in kept], config.sft, seed=seed, log=log, progress=progress
    )
