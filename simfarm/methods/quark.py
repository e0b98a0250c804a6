"""Quark: rank one's own responses by reward, learn the best group's, stay near the initial policy (Lu et al. 2022).

    loss = mean over tokens of  -log π(a_t) + β KL( π(·|s_t) ‖ π_ref(·|s_t) )

K groups of equal size by reward. `train_on = "best"` (AlpacaFarm's choice) learns the best group alone, unmarked;
"all" (the paper's) learns each group after a marker of its own, draws after the best group's marker, and answers after
it when trained. The pool holds one round's responses (AlpacaFarm; the paper's grows). The KL is over the whole
vocabulary, in the direction of AlpacaFarm's code. Markers are words, since embeddings are frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from simfarm import draws
from simfarm.errors import ConfigError
from simfarm.methods.config import QuarkConfig
from simfarm.methods.rollouts import RewardFunction, Rollouts, check_prompts, collect, new_sampler, prompt_rows
from simfarm.methods.sft import states_before
from simfarm.policies import workers
from simfarm.policies.optimise import linear_with_warmup
from simfarm.policies.split import SplitModel, Top
from simfarm.policies.training import PLAIN, Setup, Trainer


def marker(config: QuarkConfig, group: int = 0) -> str:
    """Return what stands before the prompt of a response of a group, 0 the best; nothing when only that is learned."""
    return "" if config.train_on == "best" else f"grade {chr(ord('a') + group)}.\n"


def groups(scores: NDArray[np.float64], k: int) -> list[list[int]]:
    """Sort n rows into k groups by score, the best first; of equal size, but the worst takes what is over."""
    order = np.argsort(-scores, kind="stable").tolist()
    size = len(order) // k
    return [order[g * size : (g + 1) * size if g < k - 1 else None] for g in range(k)]


def log_distributions(split: SplitModel, states: torch.Tensor) -> torch.Tensor:
    """Return log π(·|s) over the vocabulary, (N, V) in float32, from a top's states, (N, H)."""
    with torch.autocast(states.device.type, split.compute, enabled=split.compute != torch.float32):
        return torch.log_softmax(split.policy.model.get_output_embeddings()(states).float(), -1)


def quark(
    split: SplitModel,
    prompts: Sequence[str],
    reward: RewardFunction,
    config: QuarkConfig,
    *,
    max_new_tokens: int,
    seed: int,
    setup: Setup = PLAIN,
) -> Top:
    """Improve a policy; arguments, errors and metrics as in `rloo`, and token_kl (nats).

    Returns:
        The trained top; it is to answer prompts with `marker(config)` before them.
    """
    check_prompts(prompts, "quark")
    if config.rollouts < config.quantiles:
        raise ConfigError(f"quark sorts {config.rollouts} rollouts into {config.quantiles} quantiles; raise rollouts.")
    policy, reference = split.new_top(), split.initial_top()
    trainer = Trainer(
        "quark",
        config,
        {"policy": policy},
        steps=config.steps,
        learning_rate=config.learning_rate,
        rate=linear_with_warmup(config.steps, config.warmup_steps),
        seed=seed,
        setup=setup,
        policy=lambda: split.with_top(policy, "quark"),
        reference=split.policy,
        data=list(prompts),
        marker=marker(config),
    )
    sampler = new_sampler(
        config.rollout, split, prompts, max_new_tokens=max_new_tokens, setup=setup, marker=marker(config)
    )
    for step in trainer.steps():
        rows = prompt_rows("quark", len(prompts), config.rollouts, step, seed)
        rollouts = collect(
            split, policy, reference, prompts, rows, reward,
            method="quark", step=step, seed=seed, max_new_tokens=max_new_tokens, setup=setup, sampler=sampler,
            # before the first update a marker means nothing
            marker=marker(config) if step else "",
        )  # fmt: skip
        group = {i: g for g, members in enumerate(groups(rollouts.scores, config.quantiles)) for i in members}
        learned = [i for i in range(len(rows)) if config.train_on == "all" or group[i] == 0]
        questions = {i: split.policy.encode(marker(config, group[i]) + prompts[rows[i]]) for i in learned}
        own = workers.own(learned)
        marked = split.trunk_states([questions[i] for i in own], [rollouts.targets[i] for i in own])
        states = dict(zip(own, marked, strict=True))

        def loss(
            some: list[int],
            rollouts: Rollouts = rollouts,
            states: dict[int, torch.Tensor] = states,
            questions: dict[int, list[int]] = questions,
        ) -> tuple[torch.Tensor, Mapping[str, float]]:
            spans = [(len(questions[i]), rollouts.spans[i][1]) for i in some]
            targets = torch.tensor(
                [t for i in some for t in rollouts.targets[i]], dtype=torch.long, device=split.policy.device
            )
            logp = log_distributions(split, states_before(policy, [states[i] for i in some], spans))
            with torch.no_grad():
                plain = [rollouts.states[i] for i in some], [rollouts.spans[i] for i in some]
                ref = log_distributions(split, states_before(reference, *plain))
            kl = (logp.exp() * (logp - ref)).sum(1)
            losses = -logp.gather(1, targets.unsqueeze(1)).squeeze(1) + config.kl_coef * kl
            return losses.sum(), {"token_kl": float(kl.detach().sum())}

        totals = {"loss": 0.0, "token_kl": 0.0}
        for update in range(config.updates):
            order = draws.permutation(len(learned), seed, "quark minibatches", step, update)
            batch = [learned[i] for i in order[: config.minibatch]]
            tokens = sum(rollouts.spans[i][1] for i in batch)
            sums = trainer.update(batch, rollouts.lengths, tokens, loss)
            totals["loss"] += sums["loss"] / config.updates
            totals["token_kl"] += sums["token_kl"] / tokens / config.updates
        trainer.record({**rollouts.metrics(), **totals})
    return policy
