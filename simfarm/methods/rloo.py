"""REINFORCE with a leave-one-out baseline (Kool et al. 2019; Ahmadian et al. 2024, eq. 8).

Of k responses to a prompt, with R_i = r(y_i) - β Σ_t log( π(a_t)/π_ref(a_t) ):

    A_i  = R_i - 1/(k-1) Σ_{j≠i} R_j
    loss = -mean over responses of A_i Σ_t log π(a_t)

One update per round, so that responses are the policy's own. The optimum is π ∝ π_ref exp(r/β).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from simfarm.methods.config import RLOOConfig
from simfarm.methods.rollouts import (
    RewardFunction,
    Rollouts,
    check_prompts,
    collect,
    new_log_probabilities,
    new_sampler,
    per_token,
    prompt_rows,
)
from simfarm.policies.optimise import linear_with_warmup
from simfarm.policies.split import SplitModel, Top
from simfarm.policies.training import PLAIN, Setup, Trainer


def leave_one_out(returns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the advantages, (prompts, k), of returns, (prompts, k): each less the mean of the others."""
    k = returns.shape[1]
    return np.asarray((returns - returns.mean(1, keepdims=True)) * k / (k - 1))


def rloo(
    split: SplitModel,
    prompts: Sequence[str],
    reward: RewardFunction,
    config: RLOOConfig,
    *,
    max_new_tokens: int,
    seed: int,
    setup: Setup = PLAIN,
) -> Top:
    """Improve a policy.

    Args:
        split: The initial policy, which is also the reference, and where it is cut.
        prompts: Rendered prompts; each step takes the next of a shuffled endless list.
        reward: Scores responses.
        config: Hyper-parameters.
        max_new_tokens: Length limit of a response.
        seed: Of prompts' order and sampling.
        setup: How to run.

    Returns:
        The trained top. Metrics per step: those of `Rollouts.metrics`, and loss.

    Raises:
        DataError: There are no prompts.
        TrainingError: Loss or reward is not finite.
        RunError: The checkpoint in the folder is damaged or another's.
    """
    check_prompts(prompts, "rloo")
    policy, reference = split.new_top(), split.initial_top()
    trainer = Trainer(
        "rloo",
        config,
        {"policy": policy},
        steps=config.steps,
        learning_rate=config.learning_rate,
        rate=linear_with_warmup(config.steps, config.warmup_steps),
        seed=seed,
        setup=setup,
        policy=lambda: split.with_top(policy, "rloo"),
        reference=split.policy,
        data=list(prompts),
    )
    sampler = new_sampler(config.rollout, split, prompts, max_new_tokens=max_new_tokens, setup=setup)
    for step in trainer.steps():
        different = prompt_rows("rloo", len(prompts), config.prompts, step, seed)
        rows = [i for i in different for _ in range(config.samples)]
        rollouts = collect(
            split, policy, reference, prompts, rows, reward,
            method="rloo", step=step, seed=seed, max_new_tokens=max_new_tokens, setup=setup, sampler=sampler,
        )  # fmt: skip
        returns = rollouts.scores - config.kl_coef * rollouts.kl
        advantages = torch.tensor(
            leave_one_out(returns.reshape(-1, config.samples)).ravel(), dtype=torch.float32, device=split.policy.device
        )

        def loss(
            some: list[int], rollouts: Rollouts = rollouts, advantages: torch.Tensor = advantages
        ) -> tuple[torch.Tensor, Mapping[str, float]]:
            logp = new_log_probabilities(split, policy, rollouts, some)
            return -(per_token(advantages, rollouts, some) * logp).sum(), {}

        sums = trainer.update(range(len(rows)), rollouts.lengths, len(rows), loss)
        trainer.record({**rollouts.metrics(), "loss": sums["loss"]})
    return policy
