"""A linear probe: the reward head that fits preferences best while the states below it stay as they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from simfarm import draws

Floats = NDArray[np.float64]
RIDGES = tuple(10.0**k for k in np.arange(-4.0, 1.5, 0.5))
"""Penalties tried, per label."""
FOLDS = 5


def fit_probe(
    states: Floats, first: Sequence[int], second: Sequence[int], p_first: Floats, groups: Sequence[str], *, seed: int
) -> Floats:
    """Fit w of P(first is better) = sigmoid(w · (h_first - h_second)) by ridge-penalised maximum likelihood.

    The penalty acts on w times the standard deviations of the states, and is the one of `RIDGES` under which held-out
    groups of labels are likeliest.

    Args:
        states: (texts, H) pooled states.
        first: n indices of texts.
        second: n indices of texts.
        p_first: (n,) P(the first is better).
        groups: n names; labels of one prompt are held out together.
        seed: Of the folds.

    Returns:
        (H,) weights.
    """
    spread = states.std(0) + 1e-6 * float(states.std())
    # labels of one pair in one row: the likelihood is the same
    pairs, row = np.unique(np.column_stack([first, second]), axis=0, return_inverse=True)
    weight = np.bincount(row).astype(float)
    p = np.bincount(row, p_first) / weight
    gaps = (states[pairs[:, 0]] - states[pairs[:, 1]]) / spread
    names = sorted(set(groups))
    place = {names[i]: k % FOLDS for k, i in enumerate(draws.permutation(len(names), seed, "probe folds"))}
    fold = np.zeros(len(pairs), int)
    fold[row] = [place[group] for group in groups]
    losses = np.zeros(len(RIDGES))
    for k in sorted(set(fold)) if len(names) > 1 else []:
        w = np.zeros(gaps.shape[1])
        for at in reversed(range(len(RIDGES))):
            w = _fit(gaps[fold != k], p[fold != k], weight[fold != k], RIDGES[at], w)
            losses[at] += _loss(w, gaps[fold == k], p[fold == k], weight[fold == k], 0.0)[0]
    best = RIDGES[int(np.argmin(losses))] if len(names) > 1 else RIDGES[-1]
    return np.asarray(_fit(gaps, p, weight, best, np.zeros(gaps.shape[1])) / spread, float)


def _fit(gaps: Floats, p: Floats, weight: Floats, ridge: float, start: Floats) -> Floats:
    found = minimize(_loss, start, (gaps, p, weight, ridge * weight.sum()), jac=True, method="L-BFGS-B")
    return np.asarray(found.x, float)


def _loss(w: Floats, gaps: Floats, p: Floats, weight: Floats, ridge: float) -> tuple[float, Floats]:
    margin = gaps @ w
    value = float(weight @ (np.logaddexp(0, margin) - p * margin) + ridge / 2 * w @ w)
    return value, np.asarray((weight * (expit(margin) - p)) @ gaps + ridge * w, float)
