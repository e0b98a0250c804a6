"""How reliable each annotator is where the truth is not known: Dawid & Skene (1979) by EM."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simfarm.errors import DataError
from simfarm.evaluation.clustering import bootstrap_counts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SMOOTHING = 1.0
"""Pseudo-votes per cell of a confusion matrix, and twice as many on its diagonal: annotators are better than chance."""
FEWEST = 3


@dataclass(frozen=True, slots=True)
class DawidSkene:
    """The fit. Reliability is P(vote = truth) of an annotator, over the truth's classes as often as they occur."""

    reliability: Floats
    """(annotators,)."""
    ci_low: Floats
    ci_high: Floats
    confusion: Floats
    """(annotators, C, C): P(vote | truth), truth first."""
    posterior: Floats
    """(items, C): P(truth) of each item."""


def dawid_skene(
    votes: Floats, clusters: Ints, *, confidence: float = 0.95, bootstrap: int = 100, seed: int = 0
) -> DawidSkene:
    """Fit confusion matrices and the items' truth together.

    Args:
        votes: (annotators, items, C) counts of each annotator's votes by class.
        clusters: (items,) instruction of each item; the interval resamples instructions; with one, it is missing.
        confidence: Of the interval.
        bootstrap: Draws.
        seed: Of the draws.

    Raises:
        DataError: There are fewer than three annotators: two can only be compared with each other.
    """
    if len(votes) < FEWEST:
        raise DataError(
            f"Reliability without the truth needs {FEWEST} or more annotators; there are {len(votes)}. Compare them "
            "with human labels instead."
        )
    groups = int(clusters.max()) + 1
    share = votes.sum(0) + 0.01
    truth = share / share.sum(1, keepdims=True)
    ones = np.ones(votes.shape[1])
    truth, confusion, prior = _em(votes, ones, truth, 200)
    if groups < 2:
        nothing = np.full(len(votes), np.nan)
        return DawidSkene(_accuracy(confusion, prior), nothing, nothing, confusion, truth)
    drawn = []
    for counts in bootstrap_counts(groups, bootstrap, seed):
        for weights in counts:
            _, matrix, p = _em(votes, weights[clusters], truth, 15)
            drawn.append(_accuracy(matrix, p))
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return DawidSkene(_accuracy(confusion, prior), low, high, confusion, truth)


def _accuracy(confusion: Floats, prior: Floats) -> Floats:
    return np.asarray(np.einsum("acc,c->a", confusion, prior), float)


def _em(votes: Floats, weights: Floats, truth: Floats, steps: int) -> tuple[Floats, Floats, Floats]:
    c = votes.shape[2]
    pseudo = SMOOTHING * (np.ones((c, c)) + np.eye(c))
    for _ in range(steps):
        weighted = truth * weights[:, None]
        confusion = np.einsum("it,aiv->atv", weighted, votes) + pseudo
        confusion /= confusion.sum(2, keepdims=True)
        prior = weighted.sum(0) + SMOOTHING
        prior /= prior.sum()
        log_p = np.log(prior) + np.einsum("aiv,atv->it", votes, np.log(confusion))
        fresh = np.exp(log_p - log_p.max(1, keepdims=True))
        fresh /= fresh.sum(1, keepdims=True)
        moved, truth = np.abs(fresh - truth).max(), fresh
        if moved < 1e-6:
            break
    return truth, confusion, prior
