"""Supervised fine-tuning: maximum likelihood of given responses.

    loss = -mean over response tokens of log π(token | prompt, tokens before it)

In an experiment the method `sft` is the initial model itself, the baseline of all others; `fine_tune` is what expert
iteration does with the responses it has chosen. AlpacaFarm: 3 epochs, batch 128, learning rate 2e-5, cosine with 3 %
warm-up, all layers of a 7B model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from simfarm import draws
from simfarm.errors import DataError
from simfarm.methods.config import SFTConfig
from simfarm.policies import workers
from simfarm.policies.optimise import Log, cosine_with_warmup
from simfarm.policies.split import SplitModel, Top
from simfarm.policies.training import PLAIN, Setup, Trainer, epoch_batches
from simfarm.progress import Progress, no_progress


def fine_tune(
    split: SplitModel,
    prompts: Sequence[str],
    responses: Sequence[Sequence[int]],
    config: SFTConfig,
    *,
    seed: int,
    setup: Setup = PLAIN,
    method: str = "sft",
    marker: str = "",
    log: Log = lambda row: None,
    progress: Progress = no_progress,
) -> Top:
    """Fit a copy of the model's top to responses.

    Args:
        split: The model and where it is cut.
        prompts: n rendered prompts.
        responses: n responses as tokens; one that was cut off has no end of turn, and none is taught.
        config: Hyper-parameters.
        seed: Of the order of the rows.
        setup: How to run.
        method: The method that this is a part of, for checkpoints and messages.
        marker: What the trained policy is to find before every prompt.
        log: Called after each optimiser step with loss (nats per token) and learning rate.
        progress: Called with the number of responses seen, epoch by epoch.

    Raises:
        DataError: There are no responses, or one is empty.
        TrainingError: The loss is not finite.
        RunError: The checkpoint in the folder is damaged or another's.
    """
    if not responses or not all(responses):
        raise DataError(f"Fine-tuning needs responses with at least one token; {len(responses)} were given.")
    n = len(responses)
    encoded = [split.policy.encode(prompt) for prompt in prompts]
    spans = [(len(p), len(r)) for p, r in zip(encoded, responses, strict=True)]
    own = workers.own(range(n))
    states = dict(zip(own, split.trunk_states([encoded[i] for i in own], [responses[i] for i in own]), strict=True))
    top = split.new_top()

    def loss(rows: list[int]) -> tuple[torch.Tensor, Mapping[str, float]]:
        targets = [t for i in rows for t in responses[i]]
        some = [states[i] for i in rows], [spans[i] for i in rows]
        return -response_log_probabilities(split, top, *some, targets).sum(), {}

    batches = epoch_batches(
        n, config.batch_size, config.epochs, lambda epoch: draws.permutation(n, seed, "sft batches", epoch)
    )
    trainer = Trainer(
        method,
        config,
        {"policy": top},
        steps=len(batches),
        learning_rate=config.learning_rate,
        rate=cosine_with_warmup(len(batches), 0.03),
        seed=seed,
        setup=setup,
        policy=lambda: split.with_top(top, method),
        reference=split.policy,
        data=[list(prompts), [list(map(int, r)) for r in responses]],
        marker=marker,
    )
    lengths = [p + r for p, r in spans]
    for step in trainer.steps():
        batch = batches[step]
        sums = trainer.update(batch, lengths, sum(len(responses[i]) for i in batch), loss)
        trainer.record(sums)
        log({"loss": sums["loss"], "learning_rate": trainer.history[-1]["learning_rate"]})
        progress(len(batch))
    return top


def response_log_probabilities(
    split: SplitModel,
    top: Top,
    states: Sequence[torch.Tensor],
    spans: Sequence[tuple[int, int]],
    targets: Sequence[int],
) -> torch.Tensor:
    """Return log π of the response tokens of a few rows, one after the other, with gradients to `top`.

    Args:
        split: The model and where it is cut.
        top: The top to compute with.
        states: B trunk states, (T_b, H).
        spans: B pairs (tokens of the prompt, tokens of the response).
        targets: The response tokens of all rows, N of them.

    Returns:
        (N,) in float32. Logits are computed at response tokens only.
    """
    before = states_before(top, states, spans)
    return split.log_probabilities(before, torch.tensor(targets, dtype=torch.long, device=before.device))


def states_before(top: Top, states: Sequence[torch.Tensor], spans: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Return the top's states that predict the response tokens of a few rows, one after the other, (N, H)."""
    hidden = top.rows(states)
    # the state before a token predicts it
    return torch.cat([hidden[:0, 0], *(hidden[i, p - 1 : p - 1 + r] for i, (p, r) in enumerate(spans))])
