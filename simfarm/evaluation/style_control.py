"""Ratings with style held equal, as Arena's style control: Bradley–Terry with the answers' style as covariates.

    logit P(1 is preferred to 2) = theta_1 - theta_2 + sum_k beta_k s_k

s: differences of style (`style.style_differences`). Soft labels count as fractions, ties as half (Arena's convention;
LMSYS 2024, "Does style matter?"). Standard errors: sandwich clustered by instruction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import expit

from simfarm.errors import DataError
from simfarm.evaluation.bradley_terry import Fit, battles, check_finite
from simfarm.evaluation.clustering import Floats, critical_value, instruction_codes
from simfarm.evaluation.labels import check_battles
from simfarm.evaluation.style import Covariate, style_differences


def style_controlled(
    labels: pd.DataFrame,
    covariates: Sequence[Covariate] = ("length", "lists", "headers", "bold"),
    *,
    confidence: float = 0.95,
) -> tuple[Fit, pd.DataFrame]:
    """Fit ratings and the effects of style together.

    Args:
        labels: With generator_1 and generator_2.
        covariates: What to hold equal.
        confidence: Of the effects' intervals.

    Returns:
        The fit of the ratings at equal style, and the effects: covariate, effect (log-odds per standard deviation of
        difference; positive if more of it wins), standard_error, ci_low, ci_high, p.

    Raises:
        DataError: As `bradley_terry.fit`; or the answers never differ in a covariate.
        UnknownNameError: There is no such covariate.
    """
    labels = check_battles(labels)
    labels = labels[labels["preference"].notna()].reset_index(drop=True)
    counts = battles(labels, "half")
    if counts.outcomes.shape[0] < 2:
        raise DataError("All comparisons are of one instruction; intervals need two or more.")
    check_finite(counts, counts.totals)
    style = style_differences(labels["output_1"], labels["output_2"], covariates)
    for covariate, column in zip(covariates, style.T, strict=True):
        if not column.any():
            raise DataError(
                f"The answers do not differ in {covariate} in any of {len(labels)} rows; its effect cannot be "
                f"estimated. Leave {covariate!r} out."
            )
    number = {name: k for k, name in enumerate(counts.names)}
    first, second = (labels[c].map(number).to_numpy(np.int64) for c in ("generator_1", "generator_2"))
    k = len(counts.names)
    y = 2 - labels["preference"].to_numpy(float)
    parameters = np.zeros(k + len(covariates))
    for _ in range(100):
        residual, hessian = _derivatives(parameters, first, second, style, y, k)
        gradient = np.concatenate(
            [np.bincount(first, residual, k) - np.bincount(second, residual, k), residual @ style]
        )
        step = np.linalg.solve(hessian, gradient)
        parameters += step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-300))
        if np.abs(step).max() < 1e-10:
            break
    residual, hessian = _derivatives(parameters, first, second, style, y, k)
    cluster = instruction_codes(labels)
    groups = int(cluster.max()) + 1
    scores = np.zeros((groups, k + len(covariates)))
    np.add.at(scores, (cluster, first), residual)
    np.add.at(scores, (cluster, second), -residual)
    np.add.at(scores[:, k:], cluster, residual[:, None] * style)
    bread = np.linalg.inv(hessian)
    covariance = groups / (groups - 1) * bread @ (scores.T @ scores) @ bread
    theta = parameters[:k] - parameters[:k].mean()
    se, t = np.sqrt(np.diag(covariance)[k:]), critical_value(groups, confidence)
    effect = parameters[k:]
    effects = pd.DataFrame({"covariate": list(covariates), "effect": effect, "standard_error": se})
    effects["ci_low"], effects["ci_high"] = effect - t * se, effect + t * se
    effects["p"] = 2 * stats.t.sf(np.abs(effect) / se, groups - 1)
    return Fit(counts.names, theta, -np.inf, covariance[:k, :k], groups), effects


def _derivatives(
    parameters: Floats, first: np.ndarray, second: np.ndarray, style: Floats, y: Floats, k: int
) -> tuple[Floats, Floats]:
    p = expit(parameters[first] - parameters[second] + style @ parameters[k:])
    weight = p * (1 - p)
    hessian = np.zeros((len(parameters), len(parameters)))
    np.add.at(hessian, (first, second), -weight)
    hessian += hessian.T
    hessian[np.arange(k), np.arange(k)] = -hessian[:k, :k].sum(1)
    hessian[:k, :k] += 1 / k  # sum(theta) = 0 makes the information regular
    weighted = style * weight[:, None]
    cross = np.stack([np.bincount(first, c, k) - np.bincount(second, c, k) for c in weighted.T], axis=1)
    hessian[:k, k:], hessian[k:, :k] = cross, cross.T
    hessian[k:, k:] = style.T @ weighted
    return y - p, hessian
