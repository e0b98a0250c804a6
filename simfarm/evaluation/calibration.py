"""Fit a pool to a few human labels: the numbers. `annotators.calibration` turns them into a pool.

A person's vote on a pair, shown in some order, is a draw from the pool:

    P(output_1) = sum_k w_k q_k,    q_k = sigmoid((logit p_k + position o + length l_k) / temperature)

p_k is member k's own probability in the order shown; o = +1, -1, 0 if output_1 was shown first, second, unknown; l_k is
output_1's excess in length in the member's own unit. Members that know no probabilities have q_k = (1-flip) p_k +
flip (1-p_k). Since each person's vote is such a draw, the fit matches agreement and disagreement alike. Ties are half a
vote for each side.

Priors: w ~ Dirichlet around the pool's own weights; log temperature, position, length ~ N(0, 0.5^2);
logit flip ~ N(logit 0.05, 1). With few labels the fit stays at them. Maximum a posteriori by L-BFGS; intervals by
resampling instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit, softmax

from simfarm import draws
from simfarm.errors import ConfigError, DataError
from simfarm.evaluation.clustering import bootstrap_counts, clustered_ratio, codes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SPREAD = 0.5
"""Prior standard deviation of log temperature, position and length."""
FLIP_CENTRE, FLIP_SPREAD = -2.944, 1.0
"""Prior of logit flip: its centre is logit 0.05."""
SAME_WEIGHTS = 20.0
"""Prior strength of the weights, in votes."""
SURE = 0.995
"""Probabilities are held between 1 - SURE and SURE, so that a temperature can soften a sure verdict."""
FEW = 200
LOG_LOSS = "log loss (nats)"
HELD_OUT = ("humans", "before", "after", "change")


@dataclass(frozen=True, slots=True)
class Votes:
    """Human votes, and what the members say of the same pairs."""

    score: Floats
    """(n,) 1 for output_1, 0 for output_2, .5 for a tie."""
    item: Ints
    """(n,) which pair."""
    cluster: Ints
    """(n,) which instruction."""
    order: Floats
    """(n,) +1 if output_1 was shown first, -1 if second, 0 if not known."""
    member: Floats
    """(n, K) each member's P(output_1) in that order."""
    length: Floats
    """(n, K) output_1's excess in length, in the member's unit; 0 for members that know no length."""
    longer: Floats
    """(n,) sign of output_1's excess in characters."""

    def take(self, rows: NDArray[np.bool_]) -> Votes:
        """Return some of the votes."""
        return Votes(*(getattr(self, name)[rows] for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Members:
    """What of each member can be fitted, besides its weight; (K,) each."""

    names: Sequence[str]
    weight: Floats
    """As the pool has them; 0 stays 0."""
    soft: NDArray[np.bool_]
    """Whether it has a temperature; the others have a flip rate."""
    positioned: NDArray[np.bool_]
    lengthened: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Calibration:
    """The fit."""

    parameters: pd.DataFrame
    """parameter, value, ci_low, ci_high, prior, from_data: share of the prior's uncertainty that the data removed."""
    weights: Floats
    """(K,), sum 1."""
    temperature: float
    position: float
    length: float
    flip: float
    n_votes: int
    n_items: int
    held_out: pd.DataFrame
    """figure, humans, before, after, change (paired; interval of each), on pairs the fit had not seen."""
    notes: list[str] = field(default_factory=list)


def _unpack(theta: Floats, members: Members) -> tuple[Floats, float, float, float, float]:
    k = len(members.weight)
    with np.errstate(divide="ignore"):
        start = np.log(members.weight)
    weights = np.asarray(softmax(start + theta[:k]), float)
    return weights, float(np.exp(theta[k])), float(theta[k + 1]), float(theta[k + 2]), float(expit(theta[k + 3]))


def probabilities(theta: Floats, votes: Votes, members: Members) -> Floats:
    """Return P(output_1) of each vote, (n,)."""
    return _forward(theta, votes, members)[0]


def _forward(theta: Floats, votes: Votes, members: Members) -> tuple[Floats, Floats, Floats, Floats]:
    weights, temperature, position, length, flip = _unpack(theta, members)
    raw = logit(np.clip(votes.member, 1 - SURE, SURE))
    shifted = raw + position * members.positioned * votes.order[:, None] + length * members.lengthened * votes.length
    z = np.where(members.soft, shifted / temperature, raw)
    soft = expit(z)
    q = np.where(members.soft, soft, (1 - flip) * votes.member + flip * (1 - votes.member))
    return q @ weights, q, z, weights


def _objective(theta: Floats, votes: Votes, members: Members, multiplicity: Floats) -> tuple[float, Floats]:
    """Return minus the log posterior and its gradient."""
    k = len(members.weight)
    p, q, z, weights = _forward(theta, votes, members)
    _, temperature, _, _, flip = _unpack(theta, members)
    p = np.clip(p, 1e-9, 1 - 1e-9)
    value = -float(multiplicity @ (votes.score * np.log(p) + (1 - votes.score) * np.log1p(-p)))
    slope = -multiplicity * (votes.score - p) / (p * (1 - p))
    gradient = np.zeros(len(theta))
    gradient[:k] = weights * (slope @ (q - p[:, None]))
    inner = slope[:, None] * weights * q * (1 - q) * members.soft
    gradient[k] = -float((inner * z).sum())
    gradient[k + 1] = float((inner * members.positioned * votes.order[:, None]).sum()) / temperature
    gradient[k + 2] = float((inner * members.lengthened * votes.length).sum()) / temperature
    turned = slope[:, None] * weights * (1 - 2 * votes.member) * ~members.soft
    gradient[k + 3] = float(turned.sum()) * flip * (1 - flip)
    # priors
    prior = members.weight / members.weight.sum()
    safe = np.where(prior > 0, weights, 1.0)
    value -= SAME_WEIGHTS * float(prior @ np.log(safe))
    gradient[:k] += SAME_WEIGHTS * (weights - prior)
    centre, spread = _prior(k)
    gap = theta - centre
    value += float((gap**2 / (2 * spread**2)).sum())
    return value, gradient + gap / spread**2


def _prior(k: int) -> tuple[Floats, Floats]:
    centre, spread = np.zeros(k + 4), np.full(k + 4, SPREAD)
    # the weights have a prior of their own; this one only fixes the direction that softmax leaves open
    spread[:k] = 10.0
    centre[k + 3], spread[k + 3] = FLIP_CENTRE, FLIP_SPREAD
    return centre, spread


def _fit(votes: Votes, members: Members, multiplicity: Floats, start: Floats) -> Floats:
    found = minimize(_objective, start, args=(votes, members, multiplicity), jac=True, method="L-BFGS-B")
    return np.asarray(found.x, float)


def calibrate(
    votes: Votes, members: Members, *, folds: int = 5, bootstrap: int = 200, confidence: float = 0.95, seed: int = 0
) -> Calibration:
    """Fit a pool to human votes.

    Args:
        votes: Of the humans, with what the members say of the same pairs.
        members: Of the pool.
        folds: Of instructions, for figures on pairs the fit had not seen.
        bootstrap: Resamples of instructions, for the intervals.
        confidence: Of the intervals.
        seed: Of the resamples and folds.

    Raises:
        DataError: There are no votes, or of fewer than two instructions.
        ConfigError: All weights are zero, or `folds` is below 2.
    """
    if not len(votes.score):
        raise DataError("There is no human vote on a pair that the pool has judged; nothing can be fitted.")
    if members.weight.sum() <= 0:
        raise ConfigError("All members have weight 0; there is nothing to calibrate.")
    if folds < 2:
        raise ConfigError(f"folds is {folds}; give 2 or more.")
    groups = int(votes.cluster.max()) + 1
    if groups < 2:
        raise DataError("All human votes are on one instruction; calibration needs two or more.")
    k = len(members.weight)
    centre, _ = _prior(k)
    ones = np.ones(len(votes.score))
    theta = _fit(votes, members, ones, centre)
    drawn = np.array(
        [
            _fit(votes, members, counts[votes.cluster], theta)
            for block in bootstrap_counts(groups, bootstrap, seed)
            for counts in block
        ]
    )
    weights, temperature, position, length, flip = _unpack(theta, members)
    table = _parameter_table(theta, drawn, votes, members, confidence)
    notes = []
    if len(votes.score) < FEW:
        notes.append(f"{len(votes.score)} votes are few: the fit stays near the pool as it was")
    unsure = table.loc[table["from_data"] < 0.2, "parameter"]
    notes += [f"{name}: the data say little, the value is mostly the prior's" for name in unsure]
    return Calibration(
        table, weights, temperature, position, length, flip, len(votes.score), len(np.unique(votes.item)),
        _held_out(votes, members, folds, confidence, seed), notes,
    )  # fmt: skip


def _parameter_table(theta: Floats, drawn: Floats, votes: Votes, members: Members, confidence: float) -> pd.DataFrame:
    k = len(members.weight)
    centre, spread = _prior(k)
    every = [np.concatenate([w, rest]) for w, *rest in (_unpack(t, members) for t in (theta, centre, *drawn))]
    value, prior, samples = every[0], every[1], np.array(every[2:])
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    information = _information(theta, votes, members)
    from_data = np.array([information[j] / (information[j] + 1 / spread[j] ** 2) for j in range(k, k + 4)])
    p = prior[:k]
    weight_info = information[:k] / (information[:k] + SAME_WEIGHTS * np.maximum(p * (1 - p), 1e-12))
    names = [f"weight of {n}" for n in members.names] + ["temperature", "position", "length", "flip"]
    used = [*(members.weight > 0), members.soft.any(), members.positioned.any(), members.lengthened.any()]
    used.append(bool((~members.soft).any()))
    table = pd.DataFrame({"parameter": names, "value": value, "ci_low": low, "ci_high": high, "prior": prior})
    table["from_data"] = np.concatenate([weight_info, from_data])
    return table[np.array(used, bool)].reset_index(drop=True)


def _information(theta: Floats, votes: Votes, members: Members) -> Floats:
    """Return the diagonal of the expected information of the votes, by differences of P."""
    p = np.clip(probabilities(theta, votes, members), 1e-9, 1 - 1e-9)
    result = np.empty(len(theta))
    for j in range(len(theta)):
        step = np.zeros(len(theta))
        step[j] = 1e-4
        slope = (probabilities(theta + step, votes, members) - probabilities(theta - step, votes, members)) / 2e-4
        result[j] = float((slope**2 / (p * (1 - p))).sum())
    return result


def _held_out(votes: Votes, members: Members, folds: int, confidence: float, seed: int) -> pd.DataFrame:
    groups = int(votes.cluster.max()) + 1
    folds = min(folds, groups)
    fold = np.random.default_rng(draws.seed_for(seed, "folds")).permutation(groups)[votes.cluster] % folds
    centre, _ = _prior(len(members.weight))
    before, after = np.empty(len(votes.score)), np.empty(len(votes.score))
    untouched = centre.copy()
    untouched[-1] = -30.0
    for f in range(folds):
        train, test = votes.take(fold != f), votes.take(fold == f)
        theta = _fit(train, members, np.ones(len(train.score)), centre)
        before[fold == f] = probabilities(untouched, test, members)
        after[fold == f] = probabilities(theta, test, members)
    rows = []
    for figure, columns in (
        ("agrees with a person (%)", _agreement(votes, before, after)),
        ("two votes agree (%)", _concord(votes, before, after)),
        ("prefers the longer (%)", _taste(votes.longer, votes, before, after)),
        ("prefers the first (%)", _taste(votes.order, votes, before, after)),
        (LOG_LOSS, _losses(votes, before, after)),
    ):
        row: dict[str, object] = {"figure": figure}
        share = figure != LOG_LOSS
        unit = 100 if share else 1
        (first, asked, clusters), (second, _, _) = columns[1:]
        change = (second - first, asked, clusters)
        for name, (numerator, denominator, clusters) in zip(HELD_OUT, [*columns, change], strict=True):
            if not (denominator > 0).any():
                row |= {name: np.nan, f"{name}_low": np.nan, f"{name}_high": np.nan}
                continue
            bounded = share and name != "change"
            e = clustered_ratio(numerator, denominator, codes(clusters), confidence=confidence, share=bounded)
            row |= {name: unit * e.value, f"{name}_low": unit * e.ci_low, f"{name}_high": unit * e.ci_high}
        rows.append(row)
    return pd.DataFrame(rows)


Column = tuple[Floats, Floats, Ints]


def _agreement(votes: Votes, before: Floats, after: Floats) -> list[Column]:
    ones = np.ones(len(votes.score))
    pairs = _pairs(votes)
    y = votes.score
    human = 1 - np.abs(y[pairs[0]] - y[pairs[1]])
    columns = [(human, np.ones(len(human)), votes.cluster[pairs[0]])]
    return columns + [(p * y + (1 - p) * (1 - y), ones, votes.cluster) for p in (before, after)]


def _losses(votes: Votes, before: Floats, after: Floats) -> list[Column]:
    nothing = np.zeros(len(votes.score))
    columns = [(nothing, nothing, votes.cluster)]
    for p in (before, after):
        q = np.clip(p, 1e-9, 1 - 1e-9)
        loss = -(votes.score * np.log(q) + (1 - votes.score) * np.log1p(-q))
        columns.append((loss, nothing + 1, votes.cluster))
    return columns


def _concord(votes: Votes, before: Floats, after: Floats) -> list[Column]:
    """Two votes on one pair: two humans, or two draws from the pool."""
    ones = np.ones(len(votes.score))
    return [
        _agreement(votes, before, after)[0],
        *((p**2 + (1 - p) ** 2, ones, votes.cluster) for p in (before, after)),
    ]


def _taste(sign: Floats, votes: Votes, before: Floats, after: Floats) -> list[Column]:
    asked = (sign != 0).astype(float)
    return [(asked * (0.5 + sign * (p - 0.5)), asked, votes.cluster) for p in (votes.score, before, after)]


def _pairs(votes: Votes) -> tuple[Ints, Ints]:
    """Return all pairs of votes on one item."""
    order = np.argsort(votes.item, kind="stable")
    item = votes.item[order]
    left, right = [], []
    for gap in range(1, int(np.bincount(item).max())):
        same = np.flatnonzero(item[gap:] == item[:-gap])
        left.append(order[same])
        right.append(order[same + gap])
    empty = np.empty(0, np.int64)
    return (np.concatenate(left), np.concatenate(right)) if left else (empty, empty)
