"""Attention in bfloat16 on a CPU where PyTorch's own kernel is slow: one new token, and gradients of short texts.

PyTorch rearranges keys and values at every call in bfloat16, which one query does not repay, and takes four times as
long as plain matrix products for the gradient of a hundred tokens. Long texts stay with its kernel, which keeps no
scores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

NAME = "simfarm"
SHORT = 192
"""Tokens of a text up to which the gradient goes through plain products."""
UNUSUAL = ("is_causal", "position_bias", "softcap", "cache", "s_aux")
"""Options of other attentions, which stay transformers' affair."""


def use_plain_products(model: Any) -> None:
    """Let a model in bfloat16 on a CPU attend by `attend` where it would attend by PyTorch's kernel."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.device.type != "cpu" or model.dtype != torch.bfloat16 or model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Return (B, T, heads, D') attention outputs; an attention function as transformers' `AttentionInterface` takes it.

    Args:
        module: The layer.
        query: (B, heads, T, D).
        key: (B, key heads, S, D), key heads a divisor of heads.
        value: (B, key heads, S, D').
        attention_mask: True where a query may look, or what is added to the scores; causal if there is none.
        dropout: Share of weights set to zero.
        scaling: Factor of the scores, D^-½ if not given.
        options: What transformers passes on.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    batch, heads, length, width = query.shape
    groups, seen = key.shape[1], key.shape[2]
    causal = attention_mask is None and length > 1
    short = length == 1 or (query.requires_grad and length == seen <= SHORT)
    unusual = dropout or any(options.get(name) is not None for name in UNUSUAL)
    if not short or unusual or (causal and not getattr(module, "is_causal", True)):
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return found
    factor = width**-0.5 if scaling is None else scaling
    # heads that share keys become further rows of one product
    rows = (query * factor).reshape(batch, groups, -1, width)
    # one query: keys on the left are read as they lie
    scores = (key @ rows.mT).mT if length == 1 else rows @ key.mT
    scores = scores.reshape(batch, heads, length, seen)
    if causal:
        attention_mask = torch.ones(length, seen, dtype=torch.bool).tril()
    if attention_mask is not None:
        added = attention_mask
        if attention_mask.dtype == torch.bool:
            # not -inf: a query that may look nowhere is filling, and must not become NaN
            added = torch.zeros_like(attention_mask, dtype=scores.dtype)
            added = added.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        scores = scores + added
    weights = functional.softmax(scores, -1).reshape(batch, groups, -1, seen)
    return (weights @ value).reshape(batch, heads, length, value.shape[-1]).transpose(1, 2).contiguous(), None
