"""REINFORCE with a learned value baseline, the algorithm of RLAIF (Lee et al. 2023, appendix; Williams 1992).

With R = (1 - β) r(y) - β Σ_t log( π(a_t)/π_ref(a_t) ), given at the end, and no discount, so that Z_t = R:

    L_PG = -mean over responses of Σ_t sg( Z_t - V(s_t) ) log π(a_t)
    L_V  =  mean over responses of Σ_t ( Z_t - V(s_t) )²

One update per round. The optimum is π ∝ π_ref exp( (1 - β) r / β ).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from simfarm.methods.config import REINFORCEConfig
from simfarm.methods.ppo import ValueModel
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


def reinforce(
    split: SplitModel,
    prompts: Sequence[str],
    reward: RewardFunction,
    config: REINFORCEConfig,
    *,
    max_new_tokens: int,
    seed: int,
    setup: Setup = PLAIN,
) -> Top:
    """Improve a policy; arguments, errors and metrics as in `rloo`, and value_loss (per token)."""
    check_prompts(prompts, "reinforce")
    policy, reference = split.new_top(), split.initial_top()
    value = ValueModel(split.new_top(), split.hidden_size).to(split.policy.device)
    trainer = Trainer(
        "reinforce",
        config,
        {"policy": policy, "value": value},
        steps=config.steps,
        learning_rate=config.learning_rate,
        rate=linear_with_warmup(config.steps, config.warmup_steps),
        seed=seed,
        setup=setup,
        policy=lambda: split.with_top(policy, "reinforce"),
        reference=split.policy,
        data=list(prompts),
        # one norm for both would let the value's error set the policy's step
        max_grad_norm=math.inf,
    )
    sampler = new_sampler(config.rollout, split, prompts, max_new_tokens=max_new_tokens, setup=setup)
    for step in trainer.steps():
        rows = prompt_rows("reinforce", len(prompts), config.rollouts, step, seed)
        rollouts = collect(
            split, policy, reference, prompts, rows, reward,
            method="reinforce", step=step, seed=seed, max_new_tokens=max_new_tokens, setup=setup, sampler=sampler,
            temperature=config.temperature,
        )  # fmt: skip
        returns = torch.tensor(
            (1 - config.kl_coef) * rollouts.scores - config.kl_coef * rollouts.kl,
            dtype=torch.float32,
            device=split.policy.device,
        )

        def loss(
            some: list[int], rollouts: Rollouts = rollouts, returns: torch.Tensor = returns
        ) -> tuple[torch.Tensor, Mapping[str, float]]:
            states, spans = [rollouts.states[i] for i in some], [rollouts.spans[i] for i in some]
            error = per_token(returns, rollouts, some) - value(states, spans)
            logp = new_log_probabilities(split, policy, rollouts, some)
            gradient, squares = -(error.detach() * logp).sum(), (error**2).sum()
            return gradient + squares, {"value_loss": float(squares.detach())}

        sums = trainer.update(range(len(rows)), rollouts.lengths, len(rows), loss)
        tokens = sum(r for _, r in rollouts.spans)
        trainer.record({**rollouts.metrics(), "loss": sums["loss"], "value_loss": sums["value_loss"] / tokens})
    return policy
