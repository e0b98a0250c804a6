"""Correlation of two rankings: Spearman, Kendall (tau-b) and Pearson, with permutation p-values.

p-values are two-sided: the share of permutations of one side whose |coefficient| is at least the one seen; all n!
permutations for n <= 9, random ones (counting the identity, Phipson & Smyth 2010) beyond.

Intervals carry the uncertainty of both sides: see the module `true_scores`.
"""

from __future__ import annotations

from itertools import permutations
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from simfarm import draws
from simfarm.errors import DataError, suggest
from simfarm.evaluation.true_scores import true_scores
from simfarm.tables import RANKING_COLUMNS, require_columns

Floats = NDArray[np.float64]
Coefficient = Literal["spearman", "kendall", "pearson"]
COEFFICIENTS: tuple[Coefficient, ...] = ("spearman", "kendall", "pearson")
EXACT_UP_TO = 9
BLOCK = 20_000


def features(values: Floats, coefficient: Coefficient) -> Floats:
    """Turn numbers into vectors whose cosine is the coefficient.

    Args:
        values: (..., n).
        coefficient: spearman: centred mid-ranks; pearson: centred values; kendall: signs of all n(n-1)/2 differences,
            so that the cosine is tau-b.

    Returns:
        (..., n) or (..., n(n-1)/2), of unit length; zero where all values are equal.
    """
    if coefficient == "kendall":
        i, j = np.triu_indices(values.shape[-1], 1)
        vectors = np.sign(values[..., i] - values[..., j])
    else:
        vectors = stats.rankdata(values, axis=-1) if coefficient == "spearman" else values
        vectors = vectors - vectors.mean(-1, keepdims=True)
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(np.divide(vectors, norm, out=np.zeros_like(vectors), where=norm > 1e-12), float)


def coefficient_of(x: Floats, y: Floats, coefficient: Coefficient) -> Floats:
    """Correlate the last axes of x and y; leading axes broadcast."""
    return np.asarray((features(x, coefficient) * features(y, coefficient)).sum(-1), float)


def _permuted(x: Floats, y: Floats, coefficient: Coefficient, order: NDArray[np.intp]) -> Floats:
    return np.asarray(features(y[order], coefficient) @ features(x, coefficient), float)


def permutation_p(
    x: Floats, y: Floats, coefficient: Coefficient, *, permutations_drawn: int = 19_999, seed: int = 0
) -> tuple[float, str]:
    """Return the permutation p-value of a coefficient and how it was had; see the module's text."""
    seen = abs(float(coefficient_of(x, y, coefficient))) - 1e-12
    n = len(x)
    if n <= EXACT_UP_TO:
        every = np.array(list(permutations(range(n))), np.intp)
        hits = sum(
            int((np.abs(_permuted(x, y, coefficient, every[k : k + BLOCK])) >= seen).sum())
            for k in range(0, len(every), BLOCK)
        )
        return hits / len(every), f"exact, {len(every):,} permutations"
    rng = np.random.default_rng(draws.seed_for(seed, "permutation", coefficient, n))
    hits, block = 0, max(1, BLOCK * 36 // (n * n))
    for start in range(0, permutations_drawn, block):
        order = rng.random((min(block, permutations_drawn - start), n)).argsort(-1)
        hits += int((np.abs(_permuted(x, y, coefficient, order)) >= seen).sum())
    return (hits + 1) / (permutations_drawn + 1), f"Monte Carlo, {permutations_drawn:,} permutations"


def correlations(x: ArrayLike, y: ArrayLike, *, permutations_drawn: int = 19_999, seed: int = 0) -> pd.DataFrame:
    """Correlate two scores of the same methods.

    Args:
        x: (n,) scores.
        y: (n,) scores of the same methods in the same order; pairs with a missing score are left out.
        permutations_drawn: For n > 9.
        seed: Of the permutations.

    Returns:
        Rows spearman, kendall (tau-b), pearson: coefficient, value, p, n, method.

    Raises:
        DataError: The lengths differ, fewer than three pairs are complete, or one side does not vary.
    """
    x, y = _complete(np.asarray(x, float), np.asarray(y, float))
    rows = []
    for name in COEFFICIENTS:
        p, method = permutation_p(x, y, name, permutations_drawn=permutations_drawn, seed=seed)
        value = float(coefficient_of(x, y, name))
        rows.append((name, value, p, len(x), method))
    return pd.DataFrame(rows, columns=["coefficient", "value", "p", "n", "method"])


def _complete(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    if x.ndim != 1 or x.shape != y.shape:
        raise DataError(f"The scores have shapes {x.shape} and {y.shape}; give one score per method on each side.")
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    if len(x) < 3:
        raise DataError(f"{len(x)} methods have both scores; a correlation needs three or more.")
    for side, values in (("first", x), ("second", y)):
        if np.ptp(values) == 0:
            raise DataError(
                f"All {len(values)} scores of the {side} side equal {values[0]}; nothing can be correlated."
            )
    return x, y


def rank_correlations(
    simulated: pd.DataFrame,
    human: pd.DataFrame,
    *,
    confidence: float = 0.95,
    draws_wanted: int = 4000,
    permutations_drawn: int = 19_999,
    seed: int = 0,
) -> pd.DataFrame:
    """Correlate a simulated ranking with a human one.

    Args:
        simulated: Columns generator, score and optionally standard_error.
        human: The same; only generators on both sides count.
        confidence: Of the intervals.
        draws_wanted: Of the true scores; see `true_scores`.
        permutations_drawn: See `permutation_p`.
        seed: Of all draws.

    Returns:
        Rows spearman, kendall, pearson: coefficient, value, ci_low, ci_high (of the correlation of these methods' true
        scores), p, n, method, note (which sides' uncertainty the interval carries). Without standard errors on either
        side there is no interval, and the note says so.

    Raises:
        DataError: A column is missing, a generator stands twice, fewer than three are on both sides, or a side does
            not vary.
    """
    both = _joined(simulated, human)
    scores = both[["score_1", "score_2"]].to_numpy(float)
    result = correlations(scores[:, 0], scores[:, 1], permutations_drawn=permutations_drawn, seed=seed)
    errors = both[["standard_error_1", "standard_error_2"]].to_numpy(float)
    known = np.isfinite(errors).all(0)
    if not known.any():
        note = "no standard errors on either side: no interval"
        result["ci_low"], result["ci_high"] = np.nan, np.nan
    else:
        true = true_scores(scores, np.where(known, errors, 0.0), draws_wanted=draws_wanted, seed=seed)
        tails = [(1 - confidence) / 2, (1 + confidence) / 2]
        bounds = [np.quantile(coefficient_of(true[..., 0], true[..., 1], c), tails) for c in COEFFICIENTS]
        result["ci_low"], result["ci_high"] = np.transpose(bounds)
        exact = [side for side, has in zip(("simulated", "human"), known, strict=True) if not has]
        note = f"the {exact[0]} scores have no standard errors and count as exact" if exact else ""
    return result.assign(note=note)[["coefficient", "value", "ci_low", "ci_high", "p", "n", "method", "note"]]


def _joined(simulated: pd.DataFrame, human: pd.DataFrame) -> pd.DataFrame:
    sides = []
    for name, table in (("the simulated ranking", simulated), ("the human ranking", human)):
        require_columns(table, RANKING_COLUMNS, name)
        table = table.assign(generator=table["generator"].astype(str))
        twice = table["generator"].duplicated()
        if twice.any():
            raise DataError(f"In {name}, {table['generator'][twice].iloc[0]!r} stands more than once.")
        if "standard_error" not in table.columns:
            table = table.assign(standard_error=np.nan)
        sides.append(table[["generator", "score", "standard_error"]].dropna(subset="score"))
    both = sides[0].merge(sides[1], on="generator", suffixes=("_1", "_2"))
    if len(both) < 3:
        missing = sorted(set(sides[0]["generator"]) - set(sides[1]["generator"]))
        near = next((s for m in missing if (s := suggest(m, sides[1]["generator"]))), "")
        raise DataError(
            f"{len(both)} generators are in both rankings; a correlation needs three or more. Not in the human "
            f"ranking: {', '.join(missing[:8]) or 'none'}.{near} Give a human ranking (columns generator, score) that "
            "has them by these names, or leave it out."
        )
    return both
