"""What an annotator goes by besides quality: the place on the screen, length, lists, its own answers."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from simfarm.errors import DataError
from simfarm.evaluation.clustering import Estimate, cluster_variance, clustered_mean, codes, critical_value

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
LENGTH_GAP = 30
"""Characters of difference below which length is not asked about (AlpacaEval's threshold)."""
NOTHING = Estimate(np.nan, np.nan, np.nan, np.nan, "no such pairs")


def share_or_nothing(
    chosen: Floats, asked: NDArray[np.bool_], clusters: NDArray[np.int64], confidence: float
) -> Estimate:
    """Return the mean of `chosen` where `asked`, in percent, or an estimate without a value if nothing was asked."""
    if not asked.any():
        return NOTHING
    return clustered_mean(chosen[asked], codes(clusters[asked]), confidence=confidence, share=True).scaled(100)


def prefers_first(rows: pd.DataFrame, *, confidence: float = 0.95) -> Estimate:
    """Share (percent) of verdicts for the output shown first, among verdicts that are not ties.

    Args:
        rows: Labels with `order` ("12", "21"), `preference` and `cluster`.
        confidence: Of the interval.
    """
    rows = _with_order(rows)
    shown = np.where(rows["order"] == "12", rows["preference"], 3 - rows["preference"])
    return share_or_nothing((shown < 1.5).astype(float), shown != 1.5, rows["cluster"].to_numpy(np.int64), confidence)


def _with_order(rows: pd.DataFrame) -> pd.DataFrame:
    if "order" not in rows.columns:
        return rows.iloc[:0].assign(order="")
    return rows[rows["order"].isin(["12", "21"]) & rows["preference"].notna()]


def position_effect(rows: pd.DataFrame, *, confidence: float = 0.95) -> tuple[Estimate, float]:
    """How much an output gains by being shown first, in percentage points, and the p-value of no effect.

    mean(score of output_1 | shown first) - mean(score of output_1 | shown second), score = 2 - preference. With
    orders drawn at random this estimates the effect of the position, whatever the outputs; with both orders of each
    pair it is the paired difference. Clustered by instruction, so that an order shared by all pairs of an instruction
    counts once. Negative if the one shown second gains.

    Args:
        rows: Labels with `order`, `preference` and `cluster`.
        confidence: Of the interval.
    """
    rows = _with_order(rows)
    first = (rows["order"] == "12").to_numpy()
    clusters = codes(rows["cluster"])
    if first.all() or not first.any():
        return Estimate(np.nan, np.nan, np.nan, np.nan, "all pairs are shown in one order, or it is not known"), np.nan
    score = 2 - rows["preference"].to_numpy(float)
    means = score[first].mean(), score[~first].mean()
    effect = float(means[0] - means[1])
    residual = np.where(first, (score - means[0]) / first.sum(), -(score - means[1]) / (~first).sum())
    groups = int(clusters.max()) + 1
    if groups < 2:
        return Estimate(effect, np.nan, np.nan, np.nan, "one instruction only: no interval").scaled(100), np.nan
    se = float(np.sqrt(cluster_variance(residual, clusters)))
    t = critical_value(groups, confidence)
    if se == 0:
        # without spread the sign test is what is left
        p = 1.0 if effect == 0 else float(2.0 ** (1 - groups))
        return Estimate(effect, 0.0, effect, effect, "every instruction shows the same effect").scaled(100), p
    p = float(2 * stats.t.sf(abs(effect) / se, groups - 1))
    return Estimate(effect, se, effect - t * se, effect + t * se).scaled(100), p


def order_consistency(rows: pd.DataFrame, *, confidence: float = 0.95) -> Estimate:
    """Share (percent) of pairs shown in both orders that got the same verdict twice.

    Args:
        rows: Labels of one annotator with `item`, `order`, `vote` and `cluster`, and `replicate` if there are several;
            or with `consistent`, as a pool writes it when it shows both orders.
        confidence: Of the interval.
    """
    if "order" in rows.columns and (rows["order"] == "both").all() and "consistent" in rows.columns:
        known = rows[rows["consistent"].notna()]
        same = np.asarray(known["consistent"], float)
        return share_or_nothing(same, np.ones(len(known), bool), known["cluster"].to_numpy(np.int64), confidence)
    rows = _with_order(rows)
    keys = ["item", "cluster", *(["replicate"] if "replicate" in rows.columns else [])]
    table = rows.pivot_table(index=keys, columns="order", values="vote", aggfunc="mean") if len(rows) else rows
    if not {"12", "21"} <= set(table.columns):
        return Estimate(np.nan, np.nan, np.nan, np.nan, "no pair was shown in both orders")
    table = table.dropna()
    side = np.sign(table[["12", "21"]].to_numpy(float) - 1.5)
    clusters = table.index.get_level_values("cluster").to_numpy(np.int64)
    return share_or_nothing((side[:, 0] == side[:, 1]).astype(float), np.ones(len(table), bool), clusters, confidence)


def prefers(rows: pd.DataFrame, sign: Floats, *, confidence: float = 0.95) -> Estimate:
    """Share (percent) of verdicts, not ties, for the output that `sign` points to: + output_2, - output_1, 0 neither.

    Args:
        rows: Labels with `vote`, `item` and `cluster`.
        sign: (items,).
        confidence: Of the interval.
    """
    rows = rows[rows["vote"].notna()]
    side = np.sign(rows["vote"].to_numpy(float) - 1.5)
    want = np.sign(sign[rows["item"].to_numpy(np.int64)])
    return share_or_nothing(
        (side == want).astype(float), (side != 0) & (want != 0), rows["cluster"].to_numpy(np.int64), confidence
    )


def excess(rows: pd.DataFrame, human: pd.DataFrame, sign: Floats, *, confidence: float = 0.95) -> Estimate:
    """By how many percentage points an annotator prefers what `sign` points to more often than humans, same items.

    Per item, the difference of mean scores (1 preferred, .5 tie, 0 not); clustered by instruction.
    """
    n = len(sign)
    sums = []
    for table in (rows, human):
        table = table[table["vote"].notna()]
        item = table["item"].to_numpy(np.int64)
        score = 0.5 + np.sign(sign[item]) * (table["vote"].to_numpy(float) - 1.5)
        sums.append((np.bincount(item, score, n), np.bincount(item, minlength=n)))
    both = (sums[0][1] > 0) & (sums[1][1] > 0) & (sign != 0)
    if not both.any():
        return NOTHING
    means = [total[both] / count[both] for total, count in sums]
    clusters = np.zeros(n, np.int64)
    clusters[rows["item"].to_numpy(np.int64)] = rows["cluster"].to_numpy(np.int64)
    return clustered_mean(means[0] - means[1], codes(clusters[both]), confidence=confidence).scaled(100)


def self_preference(
    rows: pd.DataFrame, human: pd.DataFrame, items: pd.DataFrame, generator: str, *, confidence: float = 0.95
) -> Estimate:
    """By how many percentage points an annotator likes the answers of `generator` (its own) better than humans do.

    Raises:
        DataError: The items do not name their generators.
    """
    if "generator_1" not in items.columns:
        raise DataError("Self-preference needs the columns generator_1 and generator_2 in both tables.")
    first, second = (items[c].to_numpy() == generator for c in ("generator_1", "generator_2"))
    return excess(rows, human, second.astype(float) - first.astype(float), confidence=confidence)
