"""How much raters agree: shares of equal verdicts, Cohen's, Fleiss' and Krippendorff's coefficients, AlpacaEval's.

Everything is computed from counts of votes per item and class (first, tie, second), so that intervals come from
resampling instructions.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from simfarm.errors import DataError
from simfarm.evaluation.clustering import Estimate, bootstrap_interval, clustered_ratio
from simfarm.evaluation.items import CLASSES

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
EQUAL = np.eye(3)
NO_TIES = np.diag([1.0, 0.0, 1.0])
CLOSENESS = 1 - np.abs(CLASSES[:, None] - CLASSES[None, :])
"""AlpacaEval's "absolute" score of two verdicts: 1 equal, .5 a tie against a choice, 0 opposite."""


def agreement(
    counts: Floats, others: Floats, clusters: Ints, *, ties: bool = True, confidence: float = 0.95
) -> Estimate:
    """Share of pairs (a vote of one group, a vote of the other, same item) that are equal.

    Args:
        counts: (items, 3) votes per class of one group.
        others: (items, 3) of the other group; the same array for pairs within one group.
        clusters: (items,) instruction of each item.
        ties: Whether pairs with a tie on either side count.
        confidence: Of the interval.
    """
    which = EQUAL if ties else NO_TIES
    kept = np.ones((3, 3)) if ties else np.outer([1, 0, 1], [1, 0, 1]).astype(float)
    equal = np.einsum("ic,cd,id->i", counts, which, others)
    pairs = np.einsum("ic,cd,id->i", counts, kept, others)
    if counts is others:
        # a vote is not paired with itself, and each pair counts once
        itself = counts @ np.diag(which)
        equal, pairs = (equal - itself) / 2, (pairs - itself) / 2
    return clustered_ratio(equal, pairs, clusters, confidence=confidence, share=True)


def majority(counts: Floats) -> Floats:
    """Return the majority as (items, 3) one-hot votes: the side of the mean vote, a tie if the mean is 1.5."""
    side = (np.sign(counts[:, 2] - counts[:, 0]) + 1).astype(np.int64)
    return np.where(counts.sum(1, keepdims=True) > 0, EQUAL[side], 0.0)


def mode(counts: Floats) -> Floats:
    """Return the mode as (items, 3) weights; tied modes share.

    AlpacaEval draws one of tied modes with a fixed seed, which always gives output_2; sharing is its expectation.
    """
    top = (counts == counts.max(1, keepdims=True)) & (counts > 0)
    return np.asarray(top / np.maximum(top.sum(1, keepdims=True), 1), float)


def _mode_of_others(counts: Floats, own: int) -> Floats:
    rest = counts.copy()
    rest[:, own] = np.maximum(rest[:, own] - 1, 0)
    return mode(rest)


def alpacaeval_agreement(counts: Floats, human: Floats, clusters: Ints, *, confidence: float = 0.95) -> Estimate:
    """AlpacaEval's "human agreement": mean closeness of one verdict to the mode of the humans. A share."""
    score = np.einsum("ic,cd,id->i", counts, CLOSENESS, mode(human))
    n = counts.sum(1) * (human.sum(1) > 0)
    return clustered_ratio(score * (n > 0), n, clusters, confidence=confidence, share=True)


def alpacaeval_leave_one_out(counts: Floats, clusters: Ints, *, confidence: float = 0.95) -> Estimate:
    """Mean closeness of each vote to the mode of the others on its item. A share.

    For humans this is AlpacaEval's "human agreement" of humans.
    """
    several = counts.sum(1) > 1
    score = sum(counts[:, c] * (_mode_of_others(counts, c) @ CLOSENESS[c]) for c in range(3))
    return clustered_ratio(score * several, counts.sum(1) * several, clusters, confidence=confidence, share=True)


def alpacaeval_variance(counts: Floats, clusters: Ints, *, confidence: float = 0.95) -> Estimate:
    """AlpacaEval's "variance": mean distance of one replicate's verdict from the mode of the others. A share."""
    same = alpacaeval_leave_one_out(counts, clusters, confidence=confidence)
    return Estimate(1 - same.value, same.standard_error, 1 - same.ci_high, 1 - same.ci_low, same.note)


def alpacaeval_bias(counts: Floats, human: Floats, clusters: Ints, *, confidence: float = 0.95) -> Estimate:
    """AlpacaEval's "bias": mean distance of the mode of a judge's replicates from the mode of the humans. A share."""
    both = (counts.sum(1) > 1) & (human.sum(1) > 0)
    error = 1 - np.einsum("ic,cd,id->i", mode(counts), CLOSENESS, mode(human))
    return clustered_ratio(error * both, both.astype(float), clusters, confidence=confidence, share=True)


def _per_cluster(values: Floats, clusters: Ints) -> Floats:
    groups = int(clusters.max()) + 1
    return np.column_stack([np.bincount(clusters, column, groups) for column in values.reshape(len(values), -1).T])


def cohen_kappa(
    table: Floats, clusters: Ints, *, draws_wanted: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Cohen's kappa (1960) of two raters.

    Args:
        table: (rows, C, C) votes of the first rater by class times those of the second; one-hot outer products.
        clusters: (rows,) instruction of each row.
        draws_wanted: Of the clustered bootstrap.
        confidence: Of its interval.
        seed: Of the bootstrap.

    Raises:
        DataError: There are no common votes.
    """
    if not table.sum():
        raise DataError("The two raters have no item in common; kappa is not defined.")
    c = table.shape[1]

    def kappa(totals: Floats) -> Floats:
        p = totals.reshape(-1, c, c)
        p = p / np.maximum(p.sum((1, 2), keepdims=True), 1e-300)
        return _coefficient(np.trace(p, axis1=1, axis2=2), np.einsum("bc,bc->b", p.sum(2), p.sum(1)))

    return bootstrap_interval(
        _per_cluster(table, clusters), kappa, draws_wanted=draws_wanted, confidence=confidence, seed=seed
    )


def _coefficient(seen: Floats, expected: Floats) -> Floats:
    room = 1 - expected
    return np.asarray(np.divide(seen - expected, room, out=np.full_like(seen, np.nan), where=room > 1e-12), float)


def fleiss_kappa(
    counts: Floats, clusters: Ints, *, draws_wanted: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Fleiss' kappa (1971) over items with two votes or more; the number of votes may vary.

    Raises:
        DataError: No item has two votes.
    """
    m = counts.sum(1)
    several = m > 1
    if not several.any():
        raise DataError("No item has two votes; agreement among raters is not defined.")
    n, m, clusters = counts[several], m[several], clusters[several]
    agree = ((n**2).sum(1) - m) / (m * (m - 1))

    def kappa(totals: Floats) -> Floats:
        p = totals[:, 2:] / np.maximum(totals[:, 2:].sum(1, keepdims=True), 1e-300)
        return _coefficient(totals[:, 0] / np.maximum(totals[:, 1], 1e-300), (p**2).sum(1))

    sums = _per_cluster(np.column_stack([agree, np.ones(len(n)), n]), np.unique(clusters, return_inverse=True)[1])
    return bootstrap_interval(sums, kappa, draws_wanted=draws_wanted, confidence=confidence, seed=seed)


def krippendorff_alpha(
    counts: Floats,
    clusters: Ints,
    *,
    metric: Literal["nominal", "interval"] = "nominal",
    draws_wanted: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Krippendorff's alpha (1980): 1 - observed disagreement / expected, any number of votes per item.

    Args:
        counts: (items, 3) votes per class.
        clusters: (items,) instruction of each item.
        metric: "nominal" counts unequal votes; "interval" squares the distance of preferences 1, 1.5, 2.
        draws_wanted: Of the clustered bootstrap.
        confidence: Of its interval.
        seed: Of the bootstrap.

    Raises:
        DataError: No item has two votes.
    """
    m = counts.sum(1)
    several = m > 1
    if not several.any():
        raise DataError("No item has two votes; agreement among raters is not defined.")
    n, m = counts[several], m[several]
    distance = (CLASSES[:, None] - CLASSES[None, :]) ** 2 if metric == "interval" else 1 - EQUAL
    # pairs within an item, each value being pairable m-1 times
    disagree = np.einsum("ic,cd,id->i", n, distance, n) / (m - 1)

    def alpha(totals: Floats) -> Floats:
        values = totals[:, 1:]
        size = values.sum(1)
        expected = np.einsum("bc,cd,bd->b", values, distance, values) / np.maximum(size * (size - 1), 1e-300)
        seen = totals[:, 0] / np.maximum(size, 1e-300)
        ratio = np.divide(seen, expected, out=np.full_like(seen, np.nan), where=expected > 0)
        return np.asarray(1 - ratio, float)

    groups = np.unique(clusters[several], return_inverse=True)[1]
    return bootstrap_interval(
        _per_cluster(np.column_stack([disagree, n]), groups),
        alpha,
        draws_wanted=draws_wanted,
        confidence=confidence,
        seed=seed,
    )
