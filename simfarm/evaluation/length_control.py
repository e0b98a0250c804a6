"""Win rates at equal length (or equal style): any data, any baseline, with standard errors that are sampling errors.

Per generator m, on its rows against the baseline:

    logit P(m wins) = c + sum_k a_k s_k + b delta_i

s: tanh of the length difference over its standard deviation (as AlpacaEval 2), and any further covariates of `style`.
delta_i: how easily instruction i is won against this baseline, from a joint fit of all generators
(logit P = c_m + a_m s + delta_i, delta_i ~ N(0, tau^2), tau by EM) with the generator's own row taken out; matched by
instruction, never by row. Prediction: mean_i sigmoid(c + b delta_i), the win rate if style did not differ
(standardisation; Dubois et al. 2024 for the idea). The standard error is the sandwich by the delta method, from the
influence of each row on both the coefficients and the mean, summed within instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit

from simfarm.errors import ConfigError, DataError
from simfarm.evaluation.clustering import (
    bootstrap_counts,
    cluster_variance,
    clustered_mean,
    codes,
    critical_value,
    instruction_codes,
    wilson,
)
from simfarm.evaluation.labels import against, check_battles, choose_baseline
from simfarm.evaluation.logistic import fit_logistic
from simfarm.evaluation.style import COVARIATES, Covariate, style_differences

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
RIDGE = 0.01
"""A prior N(0, 10^2) on each coefficient: of no weight, but it keeps a fit finite where one side always wins."""
FEWEST_FOR_DIFFICULTY = 3


def length_controlled(
    labels: pd.DataFrame,
    *,
    baseline: str | None = None,
    covariates: Sequence[Covariate] = ("length",),
    difficulty: Literal["joint", "none"] = "joint",
    confidence: float = 0.95,
    bootstrap: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute each generator's win rate against the baseline if their answers did not differ in style.

    Args:
        labels: As for `winrate.win_rates`.
        baseline: As for `winrate.win_rates`.
        covariates: What to hold equal: length, lists, headers, bold.
        difficulty: "joint" estimates the instructions' difficulty where at least three generators share them;
            "none" leaves it out.
        confidence: Of the intervals.
        bootstrap: Draws of a clustered bootstrap of the fit (instructions resampled, coefficients fitted again) for
            `bootstrap_se`; 0 for none.
        seed: Of the bootstrap.

    Returns:
        One row per generator, best first: generator, baseline, lc_win_rate, standard_error, ci_low, ci_high (percent),
        win_rate (percent, not controlled), per covariate `effect_<name>` and `effect_<name>_se` (log-odds of winning
        per standard deviation of difference; positive if more of it wins), n_kept, n_instructions, difficulty ("joint"
        or "none"), note; with `bootstrap`, bootstrap_se (percent).

    Raises:
        DataError: The table is not one of labels, or has no verdict.
        UnknownNameError: There is no such baseline or covariate.
        ConfigError: No covariate is given, or one stands twice.
    """
    if not covariates or len(set(covariates)) < len(covariates):
        raise ConfigError(f"covariates are {list(covariates)}; give different ones of {', '.join(COVARIATES)}.")
    labels = check_battles(labels)
    baseline = choose_baseline(labels, baseline)
    table = against(labels, baseline)
    table = table[table["score"].notna()].reset_index(drop=True)
    if table.empty:
        raise DataError(f"There is no verdict against {baseline!r}; nothing can be estimated.")
    generator, names = pd.factorize(table["generator"])
    instruction, score = instruction_codes(table), table["score"].to_numpy(float)
    style = _style(table, generator, covariates)
    joint = difficulty == "joint" and len(names) >= FEWEST_FOR_DIFFICULTY
    delta = joint_difficulty(score, style, generator, instruction) if joint else np.zeros(len(score))
    gap = (table["length"] - table["baseline_length"]).to_numpy(float)
    rows = []
    for m, name in enumerate(names):
        mine = generator == m
        data = score[mine], style[mine], delta[mine], codes(instruction[mine])
        numbers, notes = _controlled(*data, covariates, confidence)
        if "length" in covariates:
            notes += _reach(gap[mine])
        row: dict[str, object] = {"generator": str(name), "baseline": baseline, **numbers, "note": "; ".join(notes)}
        if bootstrap:
            row["bootstrap_se"] = 100 * _bootstrap(*data, bootstrap, seed)
        rows.append(row)
    result = pd.DataFrame(rows).assign(difficulty="joint" if joint else "none")
    return result.sort_values("lc_win_rate", ascending=False, kind="stable").reset_index(drop=True)


def _style(table: pd.DataFrame, generator: Ints, covariates: Sequence[Covariate]) -> Floats:
    """Return the covariates (n, k), scaled per generator: the generator's answer minus the baseline's."""
    style = np.zeros((len(table), len(covariates)))
    gap = (table["length"] - table["baseline_length"]).to_numpy(float)
    first = table["baseline_first"].to_numpy(bool)
    for m in range(int(generator.max()) + 1):
        mine = np.flatnonzero(generator == m)
        for k, covariate in enumerate(covariates):
            if covariate != "length":
                one, two = (table[column].iloc[mine] for column in ("output_1", "output_2"))
                own, theirs = two.where(first[mine], one), one.where(first[mine], two)
                style[mine, k] = style_differences(own, theirs, [covariate])[:, 0]
            elif len(mine) > 1 and (spread := gap[mine].std(ddof=1)) > 0:
                style[mine, k] = np.tanh(gap[mine] / spread)
    return style


def _columns(style: Floats, delta: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Return the columns of the fit, the same at equal style, and which covariates are among them."""
    # a column without spread cannot be told from the intercept
    used = np.ptp(style, axis=0) > 0
    difficulty = [delta[:, None]] if np.ptp(delta) > 0 else []
    x = np.hstack([np.ones((len(style), 1)), style[:, used], *difficulty])
    neutral = x.copy()
    neutral[:, 1 : 1 + int(used.sum())] = 0.0
    return x, neutral, used


def _start(score: Floats, columns: int) -> Floats:
    start = np.zeros(columns)
    start[0] = logit(np.clip(score.mean(), 0.02, 0.98))
    return start


def _controlled(
    score: Floats, style: Floats, delta: Floats, clusters: Ints, covariates: Sequence[Covariate], confidence: float
) -> tuple[dict[str, float], list[str]]:
    x, neutral, used = _columns(style, delta)
    beta = fit_logistic(x, score, ridge=RIDGE, start=_start(score, x.shape[1]))[0]
    p = expit(x @ beta)
    inverse = np.linalg.inv((x.T * (p * (1 - p))) @ x + RIDGE * np.eye(x.shape[1]))
    scores = x * (score - p)[:, None] @ inverse
    q = expit(neutral @ beta)
    value = float(q.mean())
    slope = (neutral * (q * (1 - q))[:, None]).mean(0)
    variance = cluster_variance(scores @ slope + (q - value) / len(q), clusters)
    plain = clustered_mean(score, clusters, confidence=confidence, share=True)
    notes = [plain.note] if plain.note else []
    same = bool(np.ptp(score) < 1e-12)
    if same and not np.isnan(plain.standard_error):
        # the fit is all prior: equal verdicts say nothing of what length does
        value, se, low, high = plain.value, plain.standard_error, plain.ci_low, plain.ci_high
        notes.append("not controlled")
    else:
        se = float(np.sqrt(variance))
        t = critical_value(int(clusters.max()) + 1, confidence)
        low, high = (np.nan, np.nan) if np.isnan(se) else wilson(value, se, t)
    result: dict[str, float] = {
        "lc_win_rate": 100 * value,
        "standard_error": 100 * se,
        "ci_low": 100 * low,
        "ci_high": 100 * high,
        "win_rate": 100 * plain.value,
        "n_kept": len(score),
        "n_instructions": int(clusters.max()) + 1,
    }
    effect = iter(range(1, 1 + int(used.sum())))
    for name, has_spread in zip(covariates, used, strict=True):
        k = next(effect) if has_spread else 0
        if has_spread and not same:
            error = float(np.sqrt(cluster_variance(scores[:, k], clusters)))
            result |= {f"effect_{name}": float(beta[k]), f"effect_{name}_se": error}
        else:
            result |= {f"effect_{name}": np.nan, f"effect_{name}_se": np.nan}
            if not has_spread:
                notes.append(f"{name} differs by the same in every row: not controlled for")
    return result, notes


def _reach(gap: Floats) -> list[str]:
    """Say if the answers are nearly all longer, or all shorter, than the baseline's."""
    if np.ptp(gap) == 0:
        return []
    for share, word in ((np.mean(gap >= 0), "longer"), (np.mean(gap <= 0), "shorter")):
        if share < 0.05:
            return [f"only {100 * share:.1f}% of its answers are {word} than the baseline's: an extrapolation"]
    return []


def joint_difficulty(score: Floats, style: Floats, generator: Ints, instruction: Ints) -> Floats:
    """Estimate how easily each instruction is won against the baseline, each row's own verdict left out.

    logit P = c_m + a_m s + delta_i, delta_i ~ N(0, tau^2). Coefficients and difficulties are fitted in turn by Newton
    steps; tau^2 by EM (Laplace). A row's own verdict is taken out by one Newton step backwards.

    Args:
        score: (n,) in [0, 1].
        style: (n, k).
        generator: (n,) numbers of the generators.
        instruction: (n,) numbers of the instructions.

    Returns:
        (n,) log-odds; by row, since each row's own verdict is left out of its own.
    """
    models, items = int(generator.max()) + 1, int(instruction.max()) + 1
    x = np.column_stack([np.ones(len(score)), style])
    k = x.shape[1]
    beta, delta, variance = np.zeros((models, k)), np.zeros(items), 1.0
    upper = np.triu_indices(k)
    products = x[:, upper[0]] * x[:, upper[1]]
    for _ in range(100):
        p = expit(np.einsum("nk,nk->n", x, beta[generator]) + delta[instruction])
        w = p * (1 - p)
        gradient = np.column_stack([np.bincount(generator, (score - p) * column, models) for column in x.T])
        hessian = np.zeros((models, k, k))
        hessian[:, upper[0], upper[1]] = hessian[:, upper[1], upper[0]] = np.column_stack(
            [np.bincount(generator, w * column, models) for column in products.T]
        )
        hessian += RIDGE * np.eye(k)
        beta += np.clip(np.linalg.solve(hessian, (gradient - RIDGE * beta)[..., None])[..., 0], -1, 1)
        p = expit(np.einsum("nk,nk->n", x, beta[generator]) + delta[instruction])
        precision = np.bincount(instruction, p * (1 - p), items) + 1 / variance
        step = np.clip((np.bincount(instruction, score - p, items) - delta / variance) / precision, -1, 1)
        delta += step
        variance = max(float(np.mean(delta**2 + 1 / precision)), 1e-3)
        if np.abs(step).max() < 1e-3:
            break
    p = expit(np.einsum("nk,nk->n", x, beta[generator]) + delta[instruction])
    others = np.bincount(instruction, p * (1 - p), items)[instruction] + 1 / variance - p * (1 - p)
    return np.asarray(delta[instruction] - (score - p) / others, float)


def _bootstrap(score: Floats, style: Floats, delta: Floats, clusters: Ints, draws_wanted: int, seed: int) -> float:
    """Return the standard deviation over resampled instructions of the refitted rate at equal style (a share)."""
    x, neutral, _ = _columns(style, delta)
    start = fit_logistic(x, score, ridge=RIDGE, start=_start(score, x.shape[1]))
    rates = []
    for counts in bootstrap_counts(int(clusters.max()) + 1, draws_wanted, seed):
        weights = counts.T[clusters]
        beta = fit_logistic(x, score, weights, ridge=RIDGE, start=start)
        rates.append((weights * expit(neutral @ beta.T)).sum(0) / weights.sum(0))
    return float(np.concatenate(rates).std(ddof=1))
