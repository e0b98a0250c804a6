"""Losses of reward models, each beside its equation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import logsigmoid


def pairwise_loss(
    rewards_1: torch.Tensor, rewards_2: torch.Tensor, p_first: torch.Tensor, *, margin: float = 0.0, flip: float = 0.0
) -> torch.Tensor:
    """Bradley–Terry cross-entropy with soft labels (Ouyang et al. 2022, eq. 1, for p = 1).

    loss = -mean( p log q(r₁ - r₂) + (1 - p) log q(r₂ - r₁) ),   q(g) = (1 - ε) σ(g - m) + ε σ(m - g)

    With a share ε of labels turned round, q is the probability of the label as it was given, so that the rewards fit
    the labels as they were before (the forward correction of Patrini et al. 2017). The margin m asks for a gap (Touvron
    et al. 2023, eq. 2).

    Args:
        rewards_1: (B,) rewards of output_1.
        rewards_2: (B,) rewards of output_2.
        p_first: (B,) probability that output_1 is the better one: 2 - preference.
        margin: m, in log-odds.
        flip: ε, below 0.5.
    """

    def log_q(gap: torch.Tensor) -> torch.Tensor:
        right = logsigmoid(gap - margin)
        if not flip:
            return right
        return torch.logaddexp(math.log1p(-flip) + right, math.log(flip) + logsigmoid(margin - gap))

    gap = rewards_1 - rewards_2
    return -(p_first * log_q(gap) + (1 - p_first) * log_q(-gap)).mean()


def plackett_luce_loss(rankings: Sequence[torch.Tensor]) -> torch.Tensor:
    """K-wise maximum likelihood (Plackett–Luce; Zhu et al. 2023, eq. 6): a mean over rankings.

    loss = -Σ_{k<K} ( r_k - log Σ_{j≥k} exp r_j ),   r_1 the reward of the best response

    For K = 2 it is the pairwise loss.

    Args:
        rankings: B tensors, (K_b,), each the rewards of the responses to one prompt, best first.
    """
    losses = [(r.flip(0).logcumsumexp(0).flip(0) - r)[:-1].sum() for r in rankings]
    return torch.stack(losses).mean()
