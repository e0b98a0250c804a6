"""What methods that learn from their own responses share: drawing them, and what is computed once for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from simfarm import draws
from simfarm.errors import ConfigError, DataError, TrainingError
from simfarm.methods.config import Rollout
from simfarm.methods.sft import response_log_probabilities, states_before
from simfarm.policies import sharding, workers
from simfarm.policies.split import SplitModel, Top
from simfarm.policies.training import Setup
from simfarm.policies.transformers import Response, length_sorted_batches
from simfarm.policies.vllm_sampler import VLLMSampler
from simfarm.rewards.model import Text

RewardFunction = Callable[[Sequence[Response], Sequence[Text]], NDArray[np.float64]]
"""(n responses, n prompts and responses as the reward model reads them) -> (n,) rewards."""


@dataclass(frozen=True, slots=True)
class Rollouts:
    """What one step learns from: B responses; with several processes, trunk states of the own rows only."""

    states: list[torch.Tensor]
    """(T_b, H) trunk states of prompt and response; (0, H) for rows of other processes."""
    spans: list[tuple[int, int]]
    """Tokens of the prompt, tokens of the response."""
    targets: list[tuple[int, ...]]
    """Response tokens."""
    logp: list[torch.Tensor]
    """log π of the response tokens under the policy that wrote them, (r_b,), always by the trainer."""
    ref_logp: list[torch.Tensor]
    """The same under the initial policy."""
    scores: NDArray[np.float64]
    """(B,) rewards."""
    finished: list[bool]
    sampler_logp: list[torch.Tensor] | None = None
    """The same as `logp` by the sampler, where it is not the trainer's own model."""
    values: list[torch.Tensor] | None = None
    """V before each response token, (r_b,), where it is read from the policy's own states."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of prompt and response, by row."""
        return [p + r for p, r in self.spans]

    @property
    def kl(self) -> NDArray[np.float64]:
        """(B,) Σ_t log π(a_t)/π_ref(a_t): unbiased for the KL, in nats, on average over responses."""
        return np.array([float((a - b).sum()) for a, b in zip(self.logp, self.ref_logp, strict=True)])

    def metrics(self) -> dict[str, float]:
        """Return reward, kl, kl_k3 (Schulman 2020), entropy (nats per token, of the tokens drawn), length, finished.

        Of another sampler also sampler_gap, the mean over tokens of |log π - log π_sampler|, and sampler_ratio, the
        mean of π/π_sampler, which is 1 on average if tokens are drawn at temperature 1.
        """
        logp, ratio = torch.cat(self.logp), torch.cat(self.logp) - torch.cat(self.ref_logp)
        found = {
            "reward": float(self.scores.mean()),
            "reward_std": float(self.scores.std()),
            "kl": float(ratio.sum()) / len(self.spans),
            "kl_k3": float((torch.exp(-ratio) - 1 + ratio).sum()) / len(self.spans),
            "entropy": float(-logp.mean()),
            "length": float(np.mean([r for _, r in self.spans])),
            "finished": float(np.mean(self.finished)),
        }
        if self.sampler_logp is None:
            return found
        difference = logp - torch.cat(self.sampler_logp)
        return found | {
            "sampler_gap": float(difference.abs().mean()),
            "sampler_ratio": float(difference.exp().mean()),
        }


def prompt_rows(method: str, n: int, rollouts: int, step: int, seed: int) -> list[int]:
    """Return the prompts of a step: the next `rollouts` of an endless list, all n in a new order at each pass."""
    positions = range(step * rollouts, (step + 1) * rollouts)
    orders = {epoch: draws.permutation(n, seed, f"{method} prompts", epoch) for epoch in {p // n for p in positions}}
    return [orders[p // n][p % n] for p in positions]


def check_prompts(prompts: Sequence[str], method: str) -> None:
    """Check that there is something to answer.

    Raises:
        DataError: There is no prompt, or an empty one.
    """
    if not prompts or not all(prompts):
        raise DataError(
            f"{method} needs prompts that are not empty; {len(prompts)} were given, {sum(not p for p in prompts)} of "
            "them empty."
        )


def new_sampler(
    rollout: Rollout,
    split: SplitModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    setup: Setup,
    marker: str = "",
) -> VLLMSampler | None:
    """Return what draws the responses of a method; nothing where the policy does it itself.

    Args:
        rollout: Who draws.
        split: The initial policy.
        prompts: Rendered prompts.
        max_new_tokens: Length limit of a response.
        setup: Batch sizes.
        marker: Stands before prompts.

    Raises:
        ConfigError: vLLM is asked for by one of several processes.
        DataError: A prompt with its response does not fit the model's context.
        MissingExtraError: vLLM is asked for and not installed.
    """
    if rollout == "transformers":
        return None
    if workers.count() > 1:
        raise ConfigError(
            f'rollout = "vllm" works in one process; {workers.count()} are at work here, and each would start a vLLM '
            'of its own. Start one process, or set rollout = "transformers".'
        )
    longest = max(len(split.policy.encode(marker + prompt)) for prompt in prompts)
    return VLLMSampler(split.policy, context=longest + max_new_tokens, rows=setup.batch_size)


@torch.no_grad()
def collect(
    split: SplitModel,
    policy: Top,
    reference: Top,
    prompts: Sequence[str],
    rows: Sequence[int],
    reward: RewardFunction,
    *,
    method: str,
    step: int,
    seed: int,
    max_new_tokens: int,
    setup: Setup,
    marker: str = "",
    temperature: float = 1.0,
    sampler: VLLMSampler | None = None,
    value: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Rollouts:
    """Draw one response to each prompt and compute once what does not change while a step learns from it.

    Args:
        split: The initial policy and where it is cut.
        policy: The top that writes.
        reference: The initial top.
        prompts: Rendered prompts.
        rows: B indices of prompts to answer; one may stand there several times.
        reward: Scores the responses.
        method: Name, for the draws.
        step: Number of the step, for the draws.
        seed: Of sampling.
        max_new_tokens: Length limit of a response.
        setup: Batch sizes.
        marker: Stands before each prompt that the policy answers; reward and reference do not see it.
        temperature: Of sampling; log-probabilities are always those at 1.
        sampler: Draws the responses, by the weights of `policy`; the policy does it itself if not given.
        value: Reads values, (N,), from the policy's states, (N, H), which are then computed once for both.

    Raises:
        TrainingError: A reward is not finite.
        ModelError: The sampler failed.
    """
    own = workers.own(range(len(rows)))
    chosen = [prompts[rows[i]] for i in own]
    writer, asked = split.with_top(policy, method), [marker + prompt for prompt in chosen]
    keys: list[draws.Part] = [[step, i, rows[i]] for i in own]
    drawing: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "seed": draws.seed_for(seed, f"{method} rollouts"),
        "temperature": temperature,
    }
    sampler_logp = None
    encoded, questions = ([split.policy.encode(prompt) for prompt in some] for some in (chosen, asked))
    if sampler is None:
        responses, asked_states = writer.sample_with_states(
            asked, keys, layers=split.k, batch_size=setup.batch_size, **drawing
        )
    else:
        responses, by_sampler = sampler.sample(writer, asked, keys, **drawing)
        sampler_logp = [torch.tensor(row, dtype=torch.float32, device=split.policy.device) for row in by_sampler]
        asked_states = _states_of(split, questions, responses)
    whole = _states_of(split, encoded, responses) if marker else asked_states
    scores = np.asarray(reward(responses, [Text(s, len(p)) for s, p in zip(whole, encoded, strict=True)]), dtype=float)
    if not np.isfinite(scores).all():
        raise TrainingError("The reward of a rollout is not finite. Look at the reward model.")
    spans = [(len(p), len(r.tokens)) for p, r in zip(encoded, responses, strict=True)]
    states = [s[: p + r] for s, (p, r) in zip(whole, spans, strict=True)]
    targets = [r.tokens for r in responses]
    ref_logp = _log_probabilities(split, reference, states, spans, targets, setup)
    if marker:
        asked_spans = [(len(q), len(t)) for q, t in zip(questions, targets, strict=True)]
        asked_states = [s[: q + t] for s, (q, t) in zip(asked_states, asked_spans, strict=True)]
        logp = _log_probabilities(split, policy, asked_states, asked_spans, targets, setup)
    else:
        logp = _log_probabilities(split, policy, states, spans, targets, setup, value)
    values = [both[:, 1] for both in logp] if value else [torch.empty(0)] * len(logp)
    logp = [both[:, 0] for both in logp] if value else logp
    device = split.policy.device
    facts = workers.gather(
        [
            (span, target, float(score), r.finished, a.cpu(), b.cpu(), v.cpu())
            for span, target, score, r, a, b, v in zip(
                spans, targets, scores, responses, logp, ref_logp, values, strict=True
            )
        ]
    )
    held = dict(zip(own, states, strict=True))
    none = torch.empty(0, split.hidden_size, device=device)
    return Rollouts(
        [held.get(i, none) for i in range(len(rows))],
        [f[0] for f in facts],
        [f[1] for f in facts],
        [f[4].to(device) for f in facts],
        [f[5].to(device) for f in facts],
        np.array([f[2] for f in facts]),
        [f[3] for f in facts],
        sampler_logp,
        [f[6].to(device) for f in facts] if value else None,
    )


def _states_of(
    split: SplitModel, prompts: Sequence[Sequence[int]], responses: Sequence[Response]
) -> list[torch.Tensor]:
    """Return trunk states with an end of turn after every response: the reward model reads it, the policy does not."""
    end = int(split.policy.tokenizer.eos_token_id)
    return split.trunk_states(prompts, [[*r.tokens, *([] if r.finished else [end])] for r in responses])


def _log_probabilities(
    split: SplitModel,
    top: Top,
    states: Sequence[torch.Tensor],
    spans: Sequence[tuple[int, int]],
    targets: Sequence[Sequence[int]],
    setup: Setup,
    value: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """Return log π of each row's response tokens, (r_b,); with `value` also the values before them, (r_b, 2)."""

    def compute(rows: list[int]) -> torch.Tensor:
        before = states_before(top, [states[i] for i in rows], [spans[i] for i in rows])
        tokens = torch.tensor([t for i in rows for t in targets[i]], dtype=torch.long, device=before.device)
        logp = split.log_probabilities(before, tokens)
        return torch.stack([logp, value(before)], 1) if value else logp

    return by_row(states, spans, setup.micro_batch, compute)


def by_row(
    states: Sequence[torch.Tensor],
    spans: Sequence[tuple[int, int]],
    batch_size: int,
    compute: Callable[[list[int]], torch.Tensor],
) -> list[torch.Tensor]:
    """Compute something per response token, rows of like length together.

    Args:
        states: n trunk states.
        spans: n spans.
        batch_size: Rows computed together.
        compute: Rows -> (their response tokens, …).

    Returns:
        n tensors, (r_b, …).
    """
    found: list[torch.Tensor] = [torch.empty(0)] * len(states)
    for rows in sharding.in_step(length_sorted_batches([len(s) for s in states], batch_size)):
        for i, part in zip(rows, compute(rows).split([spans[i][1] for i in rows]), strict=True):
            found[i] = part
    return found


def new_log_probabilities(split: SplitModel, top: Top, rollouts: Rollouts, rows: Sequence[int]) -> torch.Tensor:
    """Return log π of the response tokens of some rows under `top`, with gradients: (N,), row after row."""
    return response_log_probabilities(
        split,
        top,
        [rollouts.states[i] for i in rows],
        [rollouts.spans[i] for i in rows],
        [t for i in rows for t in rollouts.targets[i]],
    )


def per_token(values: torch.Tensor, rollouts: Rollouts, rows: Sequence[int]) -> torch.Tensor:
    """Repeat a value of each row for each of its response tokens: (B,) values, N tokens of `rows` -> (N,)."""
    lengths = torch.tensor([rollouts.spans[i][1] for i in rows], dtype=torch.long, device=values.device)
    return values[list(rows)].repeat_interleave(lengths)
