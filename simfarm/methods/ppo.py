"""Proximal policy optimisation on language (Schulman et al. 2017; Ouyang et al. 2022; recipe of AlpacaFarm).

Per token t of a response, with π_θ the policy, π_old the policy that wrote it and π_ref the initial one:

    r_t  = -β (log π_old(a_t) - log π_ref(a_t)),  plus the reward model's score at the last token
    A_t  = Σ_l (γλ)^l δ_{t+l},   δ_t = r_t + γ V(s_{t+1}) - V(s_t)                             GAE
    L_π  = -mean min( ρ_t A_t, clip(ρ_t, 1-ε, 1+ε) A_t ),   ρ_t = π_θ(a_t) / π_old(a_t)
    L_V  = ½ mean max( (V - R)², (clip(V, V_old ± ε_V) - R)² ),   R_t = A_t + V_old(s_t)
    L    = L_π + c_V L_V

Differences from AlpacaFarm's code, on purpose: every mean runs over response tokens only (it averaged over padding as
well); the KL penalty is the plain log-ratio (it dropped its negative part, which biases it upward); the last
`trainable_layers` layers are trained on a shared trunk instead of whole models.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from simfarm import draws
from simfarm.methods.config import PPOConfig
from simfarm.methods.rollouts import (
    RewardFunction,
    Rollouts,
    by_row,
    check_prompts,
    collect,
    new_sampler,
    prompt_rows,
)
from simfarm.methods.sft import states_before
from simfarm.policies import workers
from simfarm.policies.optimise import linear_with_warmup
from simfarm.policies.split import SplitModel, Top
from simfarm.policies.training import PLAIN, Setup, Trainer


class ValueModel(nn.Module):
    """V(s): a top, its own (started from the reward model's) or the policy's, and a linear head started at zero."""

    def __init__(self, top: Top, hidden_size: int) -> None:
        super().__init__()
        self.top = top
        self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, states: Sequence[torch.Tensor], spans: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Return the values before each response token, (N,); arguments as in `response_log_probabilities`."""
        return self.of(states_before(self.top, states, spans))

    def of(self, states: torch.Tensor) -> torch.Tensor:
        """Return the values, (N,), of a top's states, (N, H)."""
        return torch.as_tensor(self.head(states.float()).squeeze(-1))


def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of x where mask is 1; both (B, T)."""
    return (x * mask).sum() / mask.sum()


def whiten(x: torch.Tensor, mask: torch.Tensor, *, shift_mean: bool = True) -> torch.Tensor:
    """Scale x to unit variance, and to mean 0 unless told not to, over the tokens of the mask; 0 elsewhere."""
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    white = (x - mean) * torch.rsqrt(variance + 1e-8)
    return (white if shift_mean else white + mean) * mask


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, *, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16).

    Args:
        rewards: (B, T) r_t.
        values: (B, T) V(s_t), the value before token t.
        mask: (B, T), 1 on response tokens, which stand on the left.
        gamma: Discount.
        lam: λ.

    Returns:
        (B, T) advantages and returns, 0 outside the mask; the value after the last token is 0.
    """
    advantages = torch.zeros_like(rewards)
    following = rewards.new_zeros(len(rewards))
    next_value = rewards.new_zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        next_value = values[:, t] * mask[:, t]
        advantages[:, t] = following
    return advantages, (advantages + values) * mask


def policy_loss(
    logp: torch.Tensor, old_logp: torch.Tensor, advantages: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return per token the clipped loss (Schulman et al. 2017, eq. 7) and whether the clip binds; all (N,)."""
    ratio = torch.exp(logp - old_logp)
    free, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(free, clipped), (clipped > free).float()


def value_loss(values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip: float) -> torch.Tensor:
    """Return per token ½ max((V - R)², (clip(V, V_old ± ε) - R)²); all (N,)."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def next_kl_coef(kl_coef: float, kl: float, target: float | None) -> float:
    """Return β for the next step: β (1 + 0.1 clip(KL/target - 1, ±0.2)) (Ziegler et al. 2019, eq. 4)."""
    return kl_coef if target is None else kl_coef * (1 + 0.1 * max(-0.2, min(0.2, kl / target - 1)))


def ppo(
    split: SplitModel,
    prompts: Sequence[str],
    reward: RewardFunction,
    config: PPOConfig,
    *,
    max_new_tokens: int,
    seed: int,
    value_top: Top | None = None,
    setup: Setup = PLAIN,
) -> tuple[Top, list[dict[str, float]]]:
    """Improve a policy by PPO.

    Args:
        split: The initial policy, which is also the reference, and where it is cut.
        prompts: Rendered prompts; each step takes the next `rollouts` of a shuffled endless list.
        reward: Scores responses.
        config: Hyper-parameters.
        max_new_tokens: Length limit of a response.
        seed: Of prompts' order, sampling and minibatches.
        value_top: Where a value network of its own starts, such as the reward model's top; where the policy starts if
            not given.
        setup: How to run; checkpoints come as often as the config says.

    Returns:
        The trained top, and one row of metrics per step: those of `Rollouts.metrics`, policy_loss, value_loss,
        clip_fraction, approx_kl (k3 of the update, nats per token), explained_variance, kl_coef, learning_rate,
        seconds.

    Raises:
        DataError: There are no prompts.
        TrainingError: The loss is not finite; the last checkpoint stays as it is.
        RunError: The checkpoint in the folder is damaged or another's.
    """
    check_prompts(prompts, "PPO")
    policy, reference = split.new_top(), split.initial_top()
    shared = config.value_network == "shared"
    value = ValueModel(policy if shared else split.new_top(value_top), split.hidden_size).to(split.policy.device)
    trainer = Trainer(
        "ppo",
        config,
        {"policy": policy, "value": value.head if shared else value},
        steps=config.steps,
        learning_rate=config.learning_rate,
        rate=linear_with_warmup(config.steps, config.warmup_steps),
        seed=seed,
        setup=replace(setup, checkpoint_every=config.checkpoint_every),
        policy=lambda: split.with_top(policy, "ppo"),
        reference=split.policy,
        data=list(prompts),
        adam_eps=1e-5,
        max_grad_norm=config.max_grad_norm,
    )
    trainer.extra["kl_coef"] = config.kl_coef
    sampler = new_sampler(config.rollout, split, prompts, max_new_tokens=max_new_tokens, setup=setup)
    for step in trainer.steps():
        start, kl_coef = time.monotonic(), trainer.extra["kl_coef"]
        rows = prompt_rows("ppo", len(prompts), config.rollouts, step, seed)
        rollouts = collect(
            split, policy, reference, prompts, rows, reward,
            method="ppo", step=step, seed=seed, max_new_tokens=max_new_tokens, setup=setup, sampler=sampler,
            value=value.of if shared else None,
        )  # fmt: skip
        old_values = _values(value, rollouts, setup) if rollouts.values is None else rollouts.values
        advantages, returns = _advantages(rollouts, old_values, config, kl_coef)
        unexplained = (torch.cat(returns) - torch.cat(old_values)).var() / torch.cat(returns).var().clamp(min=1e-8)
        metrics = rollouts.metrics() | {"explained_variance": float(1 - unexplained)}
        trainer.extra["kl_coef"] = next_kl_coef(kl_coef, metrics["kl"], config.kl_target)

        def loss(
            some: list[int],
            rollouts: Rollouts = rollouts,
            old_values: list[torch.Tensor] = old_values,
            advantages: list[torch.Tensor] = advantages,
            returns: list[torch.Tensor] = returns,
        ) -> tuple[torch.Tensor, Mapping[str, float]]:
            old_logp, old_v, a, ret = (
                torch.cat([rows[0][:0], *(rows[i] for i in some)])
                for rows in (rollouts.logp, old_values, advantages, returns)
            )
            inputs = [rollouts.states[i] for i in some], [rollouts.spans[i] for i in some]
            states = states_before(policy, *inputs)
            targets = torch.tensor(
                [t for i in some for t in rollouts.targets[i]], dtype=torch.long, device=states.device
            )
            logp = split.log_probabilities(states, targets)
            values = value.of(states) if shared else value(*inputs)
            losses, clipped = policy_loss(logp, old_logp, a, config.clip)
            v_losses = value_loss(values, old_v, ret, config.value_clip)
            change = logp.detach() - old_logp
            return losses.sum() + config.value_coef * v_losses.sum(), {
                "policy_loss": losses.sum().item(),
                "value_loss": v_losses.sum().item(),
                "clip_fraction": float(clipped.sum()),
                "approx_kl": float((torch.exp(change) - 1 - change).sum()),
            }

        totals = dict.fromkeys(("policy_loss", "value_loss", "clip_fraction", "approx_kl"), 0.0)
        for epoch in range(config.epochs):
            order = draws.permutation(len(rows), seed, "ppo minibatches", step, epoch)
            for first in range(0, len(order), config.minibatch):
                batch = order[first : first + config.minibatch]
                sums = trainer.update(batch, rollouts.lengths, sum(rollouts.spans[i][1] for i in batch), loss)
                totals = {name: total + sums[name] for name, total in totals.items()}
        seen = config.epochs * sum(r for _, r in rollouts.spans)
        means = {name: total / seen for name, total in totals.items()}
        trainer.record({**metrics, **means, "kl_coef": kl_coef, "seconds": time.monotonic() - start})
    return policy, trainer.history


@torch.no_grad()
def _values(value: ValueModel, rollouts: Rollouts, setup: Setup) -> list[torch.Tensor]:
    """Return V before each response token of every row, (r_b,)."""
    own = workers.own(range(len(rollouts.spans)))
    states, spans = [rollouts.states[i] for i in own], [rollouts.spans[i] for i in own]
    mine = by_row(
        states, spans, setup.micro_batch, lambda rows: value([states[k] for k in rows], [spans[k] for k in rows])
    )
    return workers.gather(mine)


def _advantages(
    rollouts: Rollouts, values: Sequence[torch.Tensor], config: PPOConfig, kl_coef: float
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return advantages and returns of every row, (r_b,) each."""
    lengths = [r for _, r in rollouts.spans]
    ratio = [a - b for a, b in zip(rollouts.logp, rollouts.ref_logp, strict=True)]
    mask = _padded([torch.ones_like(row) for row in ratio])
    rewards = _padded([-kl_coef * row for row in ratio])
    last = torch.tensor(lengths, device=rewards.device) - 1
    scores = torch.tensor(rollouts.scores, dtype=torch.float32, device=rewards.device)
    rewards[torch.arange(len(lengths)), last] += scores
    # AlpacaFarm scales rewards to unit variance without moving their mean, then whitens advantages
    rewards = whiten(rewards, mask, shift_mean=False)
    advantages, returns = gae(rewards, _padded(values), mask, gamma=config.gamma, lam=config.gae_lambda)
    advantages = whiten(advantages, mask)
    first, second = ([row[:r] for row, r in zip(t, lengths, strict=True)] for t in (advantages, returns))
    return first, second


def _padded(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Turn B rows into (B, T), rows on the left, 0 after their end."""
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
