"""Direct preference optimisation (Rafailov et al. 2023, eq. 7), and two variants of a line each.

With h = (log π(y₁) - log π_ref(y₁)) - (log π(y₂) - log π_ref(y₂)), log π(y) summed over response tokens, and
p = P(y₁ preferred):

    sigmoid   loss = -mean( p log σ(βh) + (1 - p) log σ(-βh) )       0 < p < 1: "conservative", Mitchell 2023
    robust    loss = mean( ((1 - ε) ℓ - ε ℓ') / (1 - 2ε) )           ℓ as above, ℓ' with the label turned round:
                                                                     unbiased for ε flips, Chowdhury et al. 2024, eq. 10
    ipo       loss = mean( p (h̄ - 1/2τ)² + (1 - p)(h̄ + 1/2τ)² )      Azar et al. 2023, eq. 17; h̄ from means over tokens

The minimiser of `sigmoid` under Bradley–Terry labels is π ∝ π_ref exp(r/β).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch.nn.functional import logsigmoid

from simfarm import draws
from simfarm.methods.config import DPOConfig
from simfarm.methods.preferences import Preferences
from simfarm.methods.sft import response_log_probabilities
from simfarm.policies import workers
from simfarm.policies.optimise import cosine_with_warmup
from simfarm.policies.split import SplitModel, Top
from simfarm.policies.training import PLAIN, Setup, Trainer, epoch_batches
from simfarm.policies.transformers import length_sorted_batches


def dpo_loss(h: torch.Tensor, p_first: torch.Tensor, config: DPOConfig) -> torch.Tensor:
    """Return the loss of each pair, (B,).

    Args:
        h: (B,) log-ratio of the first response less that of the second; for `ipo` of means over tokens.
        p_first: (B,) P(the first is better).
        config: Which loss, β and ε.
    """
    if config.loss == "ipo":
        target = 1 / (2 * config.beta)
        return p_first * (h - target) ** 2 + (1 - p_first) * (h + target) ** 2
    first, second = -logsigmoid(config.beta * h), -logsigmoid(-config.beta * h)
    loss = p_first * first + (1 - p_first) * second
    if config.loss == "robust":
        turned = p_first * second + (1 - p_first) * first
        return ((1 - config.flip) * loss - config.flip * turned) / (1 - 2 * config.flip)
    return loss


def sequence_log_probabilities(
    split: SplitModel,
    top: Top,
    states: Sequence[torch.Tensor],
    spans: Sequence[tuple[int, int]],
    responses: Sequence[Sequence[int]],
    *,
    mean: bool,
) -> torch.Tensor:
    """Return Σ_t log π of each response, or its mean over tokens, (B,); arguments as `response_log_probabilities`."""
    logp = response_log_probabilities(split, top, states, spans, [t for r in responses for t in r])
    rows = logp.split([len(r) for r in responses])
    return torch.stack([row.mean() if mean else row.sum() for row in rows]) if rows else logp


def dpo(split: SplitModel, pairs: Preferences, config: DPOConfig, *, seed: int, setup: Setup = PLAIN) -> Top:
    """Fit a policy to preferences.

    Args:
        split: The initial policy, which is also the reference, and where it is cut.
        pairs: The labels.
        config: Hyper-parameters.
        seed: Of the order of the pairs.
        setup: How to run.

    Returns:
        The trained top. Metrics per step: loss, accuracy (of the implied reward, ties of the label left out), margin
        (mean of βh towards the preferred response).

    Raises:
        TrainingError: The loss is not finite.
        RunError: The checkpoint in the folder is damaged or another's.
    """
    n, device = len(pairs.prompts), split.policy.device
    encoded = [split.policy.encode(prompt) for prompt in pairs.prompts]
    responses = [*pairs.responses_1, *pairs.responses_2]
    spans = [(len(encoded[i % n]), len(r)) for i, r in enumerate(responses)]
    own = [*(rows := workers.own(range(n))), *(n + i for i in rows)]
    states = dict(zip(own, split.trunk_states([encoded[i % n] for i in own], [responses[i] for i in own]), strict=True))
    p_first = torch.tensor(pairs.p_first, dtype=torch.float32, device=device)

    def logp(top: Top, texts: list[int]) -> torch.Tensor:
        some = [states[i] for i in texts], [spans[i] for i in texts], [responses[i] for i in texts]
        return sequence_log_probabilities(split, top, *some, mean=config.loss == "ipo")

    policy, reference = split.new_top(), split.initial_top()
    with torch.no_grad():
        ref = torch.zeros(2 * n, device=device)
        for rows in length_sorted_batches([sum(spans[i]) for i in own], setup.micro_batch):
            texts = [own[k] for k in rows]
            ref[texts] = logp(reference, texts)

    def loss(rows: list[int]) -> tuple[torch.Tensor, Mapping[str, float]]:
        texts = [*rows, *(n + i for i in rows)]
        first, second = (logp(policy, texts) - ref[texts]).chunk(2)
        h, p = first - second, p_first[rows]
        sign, decided = torch.sign(p - 0.5), p != 0.5
        right = ((h * sign) > 0).float() + 0.5 * (h == 0).float()
        return dpo_loss(h, p, config).sum(), {
            "right": float(right[decided].sum()),
            "decided": float(decided.sum()),
            "margin": float((config.beta * h.detach() * sign).sum()),
        }

    batches = epoch_batches(
        n, config.batch_size, config.epochs, lambda epoch: draws.permutation(n, seed, "dpo batches", epoch)
    )
    trainer = Trainer(
        "dpo",
        config,
        {"policy": policy},
        steps=len(batches),
        learning_rate=config.learning_rate,
        rate=cosine_with_warmup(len(batches), 0.03),
        seed=seed,
        setup=setup,
        policy=lambda: split.with_top(policy, "dpo"),
        reference=split.policy,
        data=[list(pairs.prompts), [list(map(int, r)) for r in responses], list(map(float, pairs.p_first))],
    )
    lengths = [sum(spans[i]) + spans[n + i][1] for i in range(n)]
    for step in trainer.steps():
        batch = batches[step]
        sums = trainer.update(batch, lengths, len(batch), loss)
        accuracy = sums["right"] / sums["decided"] if sums["decided"] else math.nan
        trainer.record({"loss": sums["loss"], "accuracy": accuracy, "margin": sums["margin"] / len(batch)})
    return policy
