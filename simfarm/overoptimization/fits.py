"""Functional forms of over-optimization (Gao, Schulman & Hilton 2023, scaling laws of reward-model overoptimization).

With d = √KL(π ‖ π_init), in √nats, and R the gold reward minus that of the initial policy:

    best-of-n   R_bon(d) = d (α - β d)        highest at d* = α / 2β,             R* = α² / 4β
    RL          R_RL(d)  = d (α - β log d)    highest at d* = exp(α/β - 1),       R* = β d*

Both are linear in α and β: least squares has a closed form, and a thousand bootstrap refits cost one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from simfarm.errors import ConfigError, DataError
from simfarm.evaluation.clustering import Estimate, bootstrap_counts, clustered_mean
from simfarm.overoptimization.best_of_n import kl_best_of_n

Floats = NDArray[np.float64]
Form = Literal["bon", "rl"]
FORMULAS: dict[Form, str] = {"bon": "d(α − βd)", "rl": "d(α − β log d)"}


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted form. Gold and its gain are in the units given."""

    form: Form
    alpha: Estimate
    beta: Estimate
    r2: float
    """Share of the curve's variance over d that the form explains."""
    peak_kl: Estimate
    """KL at which the form is highest, nats; infinite where β ≤ 0, for then it never falls."""
    peak_gain: Estimate
    """Gold there, minus the initial policy's."""
    n_points: int
    n_clusters: int

    def at(self, kl: ArrayLike) -> Floats:
        """Return the fitted gain at a KL in nats."""
        return np.asarray(design(np.asarray(kl, float), self.form) @ [self.alpha.value, self.beta.value], float)


def design(kl: Floats, form: Form) -> Floats:
    """Return the columns that α and β multiply: (…, 2).

    Raises:
        ConfigError: There is no such form.
    """
    if form not in get_args(Form):
        raise ConfigError(f"There is no form {form!r}; choose bon or rl.")
    d = np.sqrt(np.maximum(kl, 0.0))
    # d log d -> 0 as d -> 0
    shape = d if form == "bon" else np.log(np.where(d > 0, d, 1.0))
    return np.stack([d, -d * shape], -1)


def fit_form(
    kl: ArrayLike,
    values: ArrayLike,
    *,
    form: Form,
    confidence: float = 0.95,
    draws_wanted: int = 1000,
    seed: int = 0,
) -> Fit:
    """Fit a form to a curve of gold, with a bootstrap over clusters.

    Args:
        kl: (points,) KL from the initial policy, nats; one of them is 0, the initial policy itself.
        values: (clusters, points) gold of each instruction, or of each seed.
        form: "bon" or "rl".
        confidence: Of the percentile intervals.
        draws_wanted: Bootstrap draws of clusters.
        seed: Of the bootstrap.

    Raises:
        DataError: The shapes differ, a number is not finite, no point has KL 0, fewer than three have more, or there
            are fewer than two clusters.
        ConfigError: There is no such form.
    """
    kl, values = np.asarray(kl, float), np.asarray(values, float)
    if values.ndim != 2 or kl.shape != values.shape[1:]:
        raise DataError(f"kl is {kl.shape} and values {values.shape}; give (points,) and (clusters, points).")
    if not (np.isfinite(kl).all() and np.isfinite(values).all()):
        raise DataError("A KL or a gold value is not finite; leave out what was not judged before fitting a curve.")
    if len(values) < 2:
        raise DataError(f"A fit needs two or more instructions or seeds for its intervals; {len(values)} was given.")
    start, away = kl == 0, kl > 0
    if not start.any() or len(np.unique(kl[away])) < 3:
        raise DataError(
            f"A fit needs the initial policy (KL 0) and three or more points away from it; given are {start.sum()} "
            f"and {len(np.unique(kl[away]))}."
        )
    gains = values[:, away] - values[:, start].mean(1, keepdims=True)
    solve = np.linalg.pinv(design(kl[away], form))
    curve = gains.mean(0)
    alpha, beta = solve @ curve
    drawn = np.concatenate(
        [(counts @ gains) @ solve.T / len(values) for counts in bootstrap_counts(len(values), draws_wanted, seed)]
    )
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]

    def estimate(value: float, sample: Floats) -> Estimate:
        # a bound may be infinite: "lower" and "higher" never interpolate between a number and infinity
        low, high = np.quantile(sample, ends[0], method="lower"), np.quantile(sample, ends[1], method="higher")
        known = sample[np.isfinite(sample)]
        spread = float(known.std(ddof=1)) if len(known) == len(sample) else float("nan")
        return Estimate(float(value), spread, float(low), float(high))

    where, height = _peak(alpha, beta, form)
    each = [_peak(a, b, form) for a, b in drawn]
    residual = curve - design(kl[away], form) @ [alpha, beta]
    total = float(((curve - curve.mean()) ** 2).sum())
    return Fit(
        form=form,
        alpha=estimate(alpha, drawn[:, 0]),
        beta=estimate(beta, drawn[:, 1]),
        r2=1 - float((residual**2).sum()) / total if total > 0 else float("nan"),
        peak_kl=estimate(where, np.array([w for w, _ in each])),
        peak_gain=estimate(height, np.array([h for _, h in each])),
        n_points=int(away.sum()),
        n_clusters=len(values),
    )


def _peak(alpha: float, beta: float, form: Form) -> tuple[float, float]:
    """Return KL and gain at the highest point: (0, 0) if the form falls from the start, infinite if it never falls."""
    if beta <= 0:
        return (np.inf, np.inf) if alpha > 0 or form == "rl" else (0.0, 0.0)
    if form == "bon":
        return ((alpha / (2 * beta)) ** 2, alpha**2 / (4 * beta)) if alpha > 0 else (0.0, 0.0)
    # exp overflows where the peak is beyond any KL there is
    d = np.exp(min(alpha / beta - 1, 50.0))
    return float(d**2), float(beta * d)


def n_of_kl(kl: float) -> float:
    """Return the n at which best-of-n has this KL: the inverse of log n - (n-1)/n, at least 1."""
    if not np.isfinite(kl) or kl > 30:
        return float("inf")
    if kl <= 0:
        return 1.0
    return float(brentq(lambda n: float(kl_best_of_n(n)) - kl, 1.0, np.exp(kl + 1.0) + 1.0))


@dataclass(frozen=True, slots=True)
class Peak:
    """Where gold was seen to be highest along a curve, and what going on to its end costs."""

    start: float
    """Position of the initial policy."""
    position: float
    """Of the highest point: n, or a step."""
    low: float
    high: float
    """Percentile interval of where it is highest, over bootstrap draws of clusters."""
    end: float
    """Position of the last point."""
    gain: Estimate
    """Gold at the highest point minus the initial policy's; measured on halves (`seen_peak`) unless it is the end."""
    fall: Estimate
    """Gold at the end minus gold at the peak."""
    proxy_rises: bool
    """Whether the proxy is higher at the end than at the peak."""

    @property
    def falls(self) -> bool:
        """Whether the fall lies outside its interval."""
        return bool(self.fall.ci_high < 0)


def seen_peak(
    positions: ArrayLike,
    gold: ArrayLike,
    proxy: ArrayLike,
    *,
    confidence: float = 0.95,
    draws_wanted: int = 1000,
    seed: int = 0,
) -> Peak:
    """Find where gold is highest, and estimate the fall from there to the end.

    A peak that is picked from the same numbers that measure it looks higher than it is. So each half of the clusters
    (every other one) is measured at the peak of the other half: the fall does not profit from its own noise, and may
    turn out positive.

    Args:
        positions: (points,) n or steps, ascending; the first is the initial policy.
        gold: (clusters, points).
        proxy: (clusters, points).
        confidence: Of the intervals.
        draws_wanted: Bootstrap draws.
        seed: Of the bootstrap.

    Raises:
        DataError: The shapes differ, a number is not finite, or there are fewer than two clusters.
    """
    positions, gold, proxy = np.asarray(positions, float), np.asarray(gold, float), np.asarray(proxy, float)
    if gold.ndim != 2 or gold.shape != proxy.shape or positions.shape != gold.shape[1:]:
        raise DataError(f"positions are {positions.shape}, gold {gold.shape}, proxy {proxy.shape}; they do not fit.")
    if not (np.isfinite(gold).all() and np.isfinite(proxy).all()) or len(gold) < 2:
        raise DataError("A peak needs finite gold and proxy of two or more instructions or seeds.")
    at = int(gold.mean(0).argmax())
    drawn = np.concatenate([(counts @ gold).argmax(1) for counts in bootstrap_counts(len(gold), draws_wanted, seed)])
    low, high = np.quantile(positions[drawn], [(1 - confidence) / 2, (1 + confidence) / 2], method="nearest")
    clusters = np.arange(len(gold))
    other_half = np.array([gold[1::2].mean(0).argmax(), gold[::2].mean(0).argmax()])
    own = gold[clusters, other_half[clusters % 2]]
    # the end is no pick: gold there is measured by all clusters
    highest = gold[:, -1] if at == len(positions) - 1 else own
    return Peak(
        start=float(positions[0]),
        position=float(positions[at]),
        low=float(low),
        high=float(high),
        end=float(positions[-1]),
        gain=clustered_mean(highest - gold[:, 0], clusters, confidence=confidence),
        fall=clustered_mean(gold[:, -1] - own, clusters, confidence=confidence),
        proxy_rises=bool(proxy[:, -1].mean() > proxy[:, at].mean()),
    )


def verdict(peak: Peak, *, name: str = "n", unit: str = "points", confidence: float = 0.95) -> str:
    """Say in a sentence or two whether gold falls, where it peaks, and how sure that is.

    Args:
        peak: From `seen_peak`.
        name: What positions are called: "n" or "step".
        unit: Of gold.
        confidence: That of the intervals.
    """
    at, end, sure = f"{peak.position:g}", f"{peak.end:g}", f"{100 * confidence:g} %"
    gain = f"{peak.gain.value:+.3g} {unit} ({sure}: {peak.gain.ci_low:+.3g} to {peak.gain.ci_high:+.3g})"
    cost = f"{-peak.fall.value:.3g} {unit} ({sure}: {-peak.fall.ci_high:.3g} to {-peak.fall.ci_low:.3g})"
    parted = " The proxy goes on rising." if peak.proxy_rises and peak.position != peak.end else ""
    if peak.falls and peak.position == peak.start:
        return f"Gold falls from the start: {name} = {end} costs {cost}.{parted}"
    if peak.falls:
        return (
            f"Gold peaks at {name} ≈ {at} ({sure}: {peak.low:g} to {peak.high:g}), {gain} against the initial policy; "
            f"going on to {name} = {end} costs {cost}.{parted}"
        )
    if peak.position == peak.end:
        highest = f"Gold is highest at the end, {name} = {end}: {gain} against the initial policy."
        return f"{highest} No over-optimization up to there."
    return (
        f"Gold is highest at {name} = {at} ({sure}: {peak.low:g} to {peak.high:g}), but {name} = {end} is not shown to "
        f"be worse: it costs {cost}, and the interval holds 0." + parted
    )
