"""Best-of-n for every n at once, from N samples per instruction whose proxy and gold rewards are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import gammaln

from simfarm.errors import ConfigError, DataError

Floats = NDArray[np.float64]


def kl_best_of_n(n: ArrayLike) -> Floats:
    """KL divergence, in nats, of best-of-n from the policy it samples: log n - (n-1)/n.

    Exact if no two samples tie, an upper bound otherwise (Stiennon et al. 2020, appendix G.3; Beirami et al. 2024).
    """
    n = np.asarray(n, float)
    return np.asarray(np.log(n) - (n - 1) / n, float)


def best_of_n_weights(ns: Sequence[int], samples: int) -> Floats:
    """Probability that the i-th lowest of N samples is the best of n drawn without replacement: C(i-1,n-1)/C(N,n).

    Returns:
        (len(ns), N); each row sums to 1.
    """
    n = np.asarray(ns)[:, None]
    i = np.arange(1, samples + 1)[None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        log_weight = _log_choose(i - 1, n - 1) - _log_choose(samples, n)
    return np.where(i >= n, np.exp(np.where(i >= n, log_weight, -np.inf)), 0.0)


def _log_choose(n: ArrayLike, k: ArrayLike) -> Floats:
    n, k = np.asarray(n, float), np.asarray(k, float)
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(np.maximum(n - k, 0) + 1), float)


def best_of_n_values(proxy: Floats, gold: Floats, ns: Sequence[int]) -> tuple[Floats, Floats]:
    """Estimate, per instruction, proxy and gold reward of the sample that the proxy likes best among n.

    R_n = sum_{i=n}^{N} C(i-1,n-1)/C(N,n) gold(S_i), samples sorted by ascending proxy: unbiased, the mean over all
    n-subsets (Nakano et al. 2021; Gao et al. 2022). Samples that tie in proxy count with the mean of their golds,
    which is the expectation of breaking ties at random.

    Returns:
        Two arrays (instructions, len(ns)): proxy, gold.
    """
    order = np.argsort(proxy, axis=1, kind="stable")
    ranked = np.take_along_axis(proxy, order, axis=1)
    golds = _mean_over_ties(ranked, np.take_along_axis(gold, order, axis=1))
    # blocks of n keep the weight matrix small for N of many thousands
    blocks = [best_of_n_weights(ns[k : k + 256], proxy.shape[1]) for k in range(0, len(ns), 256)]
    return np.hstack([ranked @ w.T for w in blocks]), np.hstack([golds @ w.T for w in blocks])


def _mean_over_ties(ranked: Floats, gold: Floats) -> Floats:
    starts = np.ones(ranked.shape, bool)
    starts[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    group = np.cumsum(starts.ravel()) - 1
    means = np.bincount(group, gold.ravel()) / np.bincount(group)
    return np.asarray(means[group].reshape(ranked.shape), float)


def best_of_n_curve(
    proxy: ArrayLike, gold: ArrayLike, *, ns: Sequence[int] | None = None, confidence: float = 0.95
) -> pd.DataFrame:
    """Estimate the best-of-n curve: proxy and gold reward against n and KL.

    An instruction of which a sample has no score (NaN, such as a gold verdict that is missing) is left out whole and
    counted: without that sample its best of n is not known.

    Args:
        proxy: (instructions, N) proxy rewards of N samples each.
        gold: (instructions, N) gold rewards of the same samples.
        ns: The n to estimate; all from 1 to N if left out.
        confidence: Of the intervals.

    Returns:
        One row per n: n, kl (nats), proxy, proxy_se, proxy_ci_low, proxy_ci_high, gold, gold_se, gold_ci_low,
        gold_ci_high, in the units given; n_instructions (used), n_dropped (left out). Intervals are Student's t over
        instructions.

    Raises:
        DataError: The shapes differ, a value is infinite, or fewer than two instructions have all their scores.
        ConfigError: An n is not between 1 and N.
    """
    proxies, golds = np.asarray(proxy, float), np.asarray(gold, float)
    if proxies.ndim != 2 or proxies.shape != golds.shape:
        raise DataError(f"proxy is {proxies.shape} and gold {golds.shape}; both must be (instructions, samples).")
    given, samples = proxies.shape
    for name, values in (("proxy", proxies), ("gold", golds)):
        if np.isinf(values).any():
            row, column = np.argwhere(np.isinf(values))[0]
            raise DataError(f"{name}[{row}, {column}] is {values[row, column]}; a reward is a finite number.")
    complete = ~(np.isnan(proxies) | np.isnan(golds)).any(axis=1)
    proxies, golds, instructions = proxies[complete], golds[complete], int(complete.sum())
    if instructions < 2:
        raise DataError(
            f"{instructions} of {given} instructions have a proxy and a gold score for every sample; intervals are "
            "over instructions and need two or more."
        )
    if samples < 1:
        raise DataError("There are no samples; best-of-n needs at least one per instruction.")
    chosen = list(range(1, samples + 1)) if ns is None else list(ns)
    if not chosen or min(chosen) < 1 or max(chosen) > samples:
        raise ConfigError(f"n must lie between 1 and the {samples} samples per instruction; got {chosen[:10]}.")
    t = float(stats.t.ppf((1 + confidence) / 2, instructions - 1))
    table = pd.DataFrame({"n": chosen, "kl": kl_best_of_n(chosen)})
    for name, values in zip(("proxy", "gold"), best_of_n_values(proxies, golds, chosen), strict=True):
        mean, se = values.mean(0), values.std(0, ddof=1) / np.sqrt(instructions)
        table[name], table[f"{name}_se"] = mean, se
        table[f"{name}_ci_low"], table[f"{name}_ci_high"] = mean - t * se, mean + t * se
    return table.assign(n_instructions=instructions, n_dropped=given - instructions)
