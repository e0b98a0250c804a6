"""Decoding with a causal model of transformers: reading prompts, then sampling a token of every row at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

PROMPT_GROUP = 16
"""Prompts of like length that are read together."""


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    uniform: torch.Tensor,
    *,
    temperature: float,
    ends: Sequence[int],
    pad_id: int,
    end_of_text: int,
    layers: int | None = None,
) -> tuple[list[list[int]], list[torch.Tensor]]:
    """Sample a response to each prompt.

    Args:
        model: A causal language model of transformers.
        prompts: B token lists.
        uniform: (B, S) uniform numbers; S is the length limit.
        temperature: Divides the logits; 0 takes the most likely token.
        ends: Tokens that end a response.
        pad_id: A token to fill rows with.
        end_of_text: What is read after a response without an end, if states are kept.
        layers: Keep the states that enter the last so many layers.

    Returns:
        B token lists, each with its end if there is one; and, where `layers` is given, B tensors, (tokens, H), the
        states of prompt, response, and `end_of_text` where the response has no end.
    """
    steps, device = uniform.shape[1], uniform.device
    # a prompt that stands in several rows is read once
    different = sorted({tuple(prompt) for prompt in prompts}, key=lambda prompt: (len(prompt), prompt))
    of_row = [different.index(tuple(prompt)) for prompt in prompts]
    end_ids = torch.tensor(ends, device=device)
    tokens = torch.full((len(prompts), steps), pad_id, device=device)
    lengths = torch.full((len(prompts),), steps, device=device)
    rows = torch.arange(len(prompts), device=device)  # which rows are still computed
    writing = torch.ones_like(rows, dtype=torch.bool)  # which of these have not ended
    with _entering(model, layers) as taken:
        logits, mask, cache = read_prompts(model, different, pad_id)
        read = [row for group in taken for row in group]
        taken.clear()
        copies = torch.tensor(of_row, device=device)
        logits, mask = logits[copies], mask[copies]
        cache.batch_select_indices(copies)
        states = [read[0].new_empty(len(prompts), steps + 1, read[0].shape[-1])] if layers else []

        def read_token(step: int, chosen: torch.Tensor) -> torch.Tensor:
            nonlocal mask
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
            position = mask.sum(1, keepdim=True) - 1
            out = model(
                input_ids=chosen.unsqueeze(1), attention_mask=mask, position_ids=position, past_key_values=cache
            )
            for kept in states:
                kept[rows, step] = taken.pop()[:, 0]
            return torch.as_tensor(out.logits[:, -1])

        for step in range(steps):
            chosen = sample_tokens(logits, uniform[rows, step], temperature)
            tokens[rows, step] = chosen
            ended = torch.isin(chosen, end_ids) & writing
            lengths[rows[ended]] = step + 1
            writing &= ~ended
            # the states of an end exist only once it is read
            needed = writing | ended if states else writing
            left = int(needed.sum())
            if not left or (step + 1 == steps and not states):
                break
            # dropping rows copies the cache: done when it pays
            if left <= 0.9 * len(rows):
                keep = needed.nonzero().squeeze(1)
                rows, chosen, mask, writing = (t[keep] for t in (rows, chosen, mask, writing))
                cache.batch_select_indices(keep)
            logits = read_token(step, chosen)
        if states and bool(writing.any()):
            read_token(steps, torch.full_like(rows, end_of_text))
    written = [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    if not states:
        return written, []
    unended = set(rows[writing].tolist())
    return written, [
        torch.cat([read[of_row[i]][-len(prompts[i]) :], states[0][i, : len(row) + (i in unended)]])
        for i, row in enumerate(written)
    ]


@contextmanager
def _entering(model: Any, layers: int | None) -> Iterator[list[torch.Tensor]]:
    """Put what enters the last `layers` layers into a list, a tensor (B, T, H) for each pass of the model."""
    taken: list[torch.Tensor] = []
    if layers is None:
        yield taken
        return
    hook = model.base_model.layers[-layers].register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    try:
        yield taken
    finally:
        hook.remove()


def read_prompts(model: Any, prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Return the logits after each prompt (B, V), the mask (B, T) and the cache of prompts sorted by length.

    They are read in groups of like length and then filled on the left to one length: filled up beforehand, one long
    prompt would make all others as dear as itself.
    """
    from transformers import DynamicCache

    from simfarm.policies.cache import roomy_cache

    logits, masks, caches = [], [], []
    for start in range(0, len(prompts), PROMPT_GROUP):
        input_ids, mask = pad(prompts[start : start + PROMPT_GROUP], pad_id, side="left", device=model.device)
        cache = DynamicCache(config=model.config)
        position = (mask.cumsum(1) - 1).clamp(min=0)
        # an index copies the last states, a slice (`logits_to_keep=1`) leaves them strided: PyTorch multiplies such
        # states by a copy of the head's weights for every row
        last = torch.tensor([input_ids.shape[1] - 1], device=model.device)
        out = model(
            input_ids=input_ids, attention_mask=mask, position_ids=position, past_key_values=cache, logits_to_keep=last
        )
        logits.append(out.logits[:, -1])
        masks.append(mask)
        caches.append(cache)
    width = masks[-1].shape[1]
    whole = roomy_cache(model.config)
    for layer in range(len(caches[0].layers)):
        parts = [(c.layers[layer].keys, c.layers[layer].values) for c in caches]
        keys, values = (torch.cat([_fill_left(t, width, -2) for t in side]) for side in zip(*parts, strict=True))
        whole.update(keys, values, layer)
    return torch.cat(logits), torch.cat([_fill_left(mask, width, -1) for mask in masks]), whole


def _fill_left(tensor: torch.Tensor, width: int, dim: int) -> torch.Tensor:
    """Set zeros before the entries of dimension -1 or -2, so that there are `width`."""
    before = width - tensor.shape[dim]
    return torch.nn.functional.pad(tensor, (before, 0) if dim == -1 else (0, 0, before, 0))


def sample_tokens(logits: torch.Tensor, uniform: torch.Tensor, temperature: float) -> torch.Tensor:
    """Sample tokens by inverting the cumulative distribution: one uniform number per row, no noise over the vocabulary.

    Args:
        logits: (B, V).
        uniform: (B,), in [0, 1).
        temperature: Divides the logits; 0 takes the most likely token.

    Returns:
        (B,) token ids.
    """
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = torch.softmax(logits.float() / temperature, -1).cumsum(-1)
    # the total differs from 1 by rounding; scaled by it, the last token with any mass is the highest drawn
    point = (uniform * cumulative[:, -1]).unsqueeze(1)
    return torch.searchsorted(cumulative, point, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)


def pad(
    rows: Sequence[Sequence[int]], fill: int, *, side: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fill token lists up to one length.

    Returns:
        (B, T) tokens and the (B, T) mask: 1 for a token, 0 for filling.
    """
    width = max(map(len, rows))
    blank = [[fill] * (width - len(row)) for row in rows]
    on = [[1] * len(row) for row in rows]
    off = [[0] * len(b) for b in blank]
    if side == "left":
        tokens = [[*b, *row] for b, row in zip(blank, rows, strict=True)]
        mask = [[*o, *i] for o, i in zip(off, on, strict=True)]
    else:
        tokens = [[*row, *b] for b, row in zip(blank, rows, strict=True)]
        mask = [[*i, *o] for o, i in zip(off, on, strict=True)]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)
