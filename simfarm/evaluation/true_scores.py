"""The methods' true scores on two sides, given measured ones and their standard errors: draws of a posterior.

    measured_i = true_i + N(0, diag(se_i^2)),    true_i ~ N(mu, Sigma), bivariate,    mu flat

Prior of Sigma: the correlation rho = sin(phi) with phi uniform in (-pi/2, pi/2), that is p(rho) ~ (1 - rho^2)^(-1/2);
of each variance p(sigma^2) ~ 1 / (sigma^2 + s^2), s^2 the median squared error, which is Jeffreys's where the errors
are equal (Tiao & Tan 1965). mu is integrated out; phi and both log(sigma^2 + s^2) are drawn from a grid that closes in
on where the posterior is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simfarm import draws

Floats = NDArray[np.float64]
CELLS = 24
ROUNDS = 4
NEGLIGIBLE = 1e-5
SMALLEST, LARGEST = 1e-4, 1e3
"""Of the variances on the first grid, in units of the measured scores' variance."""


@dataclass(frozen=True, slots=True)
class _Model:
    """Scores given Sigma: precisions (p, q; q, r) of each, those of mu (its sums), mu's estimate, log likelihood."""

    p: Floats
    q: Floats
    r: Floats
    precision: tuple[Floats, Floats, Floats]
    mean: tuple[Floats, Floats]
    log_likelihood: Floats

    @classmethod
    def of(cls, x: Floats, noise: Floats, first: Floats, second: Floats, covariance: Floats) -> _Model:
        """Make it for many Sigma at once; 2 x 2 matrices by hand, as numpy's are slow for so small ones."""
        a, c, b = first[..., None] + noise[:, 0], second[..., None] + noise[:, 1], covariance[..., None]
        determinant = a * c - b**2
        p, q, r = c / determinant, -b / determinant, a / determinant
        one, two = p * x[:, 0] + q * x[:, 1], q * x[:, 0] + r * x[:, 1]
        pp, qq, rr = p.sum(-1), q.sum(-1), r.sum(-1)
        g, h = one.sum(-1), two.sum(-1)
        of_mu = pp * rr - qq**2
        mean = (rr * g - qq * h) / of_mu, (pp * h - qq * g) / of_mu
        quadratic = (one * x[:, 0] + two * x[:, 1]).sum(-1) - mean[0] * g - mean[1] * h
        value = -0.5 * (np.log(determinant).sum(-1) + np.log(of_mu) + quadratic)
        return cls(p, q, r, (pp, qq, rr), mean, value)


def true_scores(scores: Floats, standard_errors: Floats, *, draws_wanted: int = 4000, seed: int = 0) -> Floats:
    """Draw the methods' true scores on both sides; see the module's text for the model.

    Adding noise to measured scores, as a bootstrap of each side does, would count the noise twice and pull the
    correlation of noisy scores to zero.

    Args:
        scores: (n, 2), one column per side; each varies.
        standard_errors: (n, 2); zero where a score is known exactly.
        draws_wanted: Independent draws.
        seed: Of the draws.

    Returns:
        (draws, n, 2).
    """
    rng = np.random.default_rng(draws.seed_for(seed, "true scores", len(scores)))
    unit = scores.std(0, ddof=1)
    x, noise = (scores - scores.mean(0)) / unit, (standard_errors / unit) ** 2
    first, second, covariance = _draw_sigma(x, noise, draws_wanted, rng)
    model = _Model.of(x, noise, first, second, covariance)
    pp, qq, rr = model.precision
    spread = pp * rr - qq**2
    z = _correlated(rr / spread, -qq / spread, pp / spread, rng.normal(size=(2, draws_wanted)))
    d, e = (x[:, k] - (model.mean[k] + z[k])[:, None] for k in range(2))
    u, v = noise.T
    # E(true) = measured - noise precision (measured - mu), Var(true) = noise - noise precision noise
    z = _correlated(u - u**2 * model.p, -u * v * model.q, v - v**2 * model.r, rng.normal(size=(2, *d.shape)))
    true = [x[:, 0] - u * (model.p * d + model.q * e) + z[0], x[:, 1] - v * (model.q * d + model.r * e) + z[1]]
    return np.asarray(np.stack(true, -1) * unit + scores.mean(0), float)


def _correlated(first: Floats, covariance: Floats, second: Floats, z: Floats) -> tuple[Floats, Floats]:
    """Give standard normal numbers a covariance, which is singular where a side is exact."""
    a = np.sqrt(np.maximum(first, 0))
    b = np.divide(covariance, a, out=np.zeros_like(a), where=a > 1e-9)
    return a * z[0], b * z[0] + np.sqrt(np.maximum(second - b**2, 0)) * z[1]


def _draw_sigma(x: Floats, noise: Floats, draws_wanted: int, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    floor = np.median(noise, axis=0)

    def variances(logs: Floats) -> Floats:
        return np.asarray(np.maximum(np.exp(logs) - floor, 1e-9), float)

    low = np.array([-np.pi / 2, *np.log(np.maximum(floor, SMALLEST))])
    high = np.array([np.pi / 2, *np.log(floor + LARGEST)])
    for last in range(ROUNDS, 0, -1):
        width = (high - low) / CELLS
        middle = low + width * (np.arange(CELLS)[:, None] + 0.5)
        first, second = np.meshgrid(*variances(middle[:, 1:]).T, indexing="ij")
        root = np.sqrt(first * second)
        log = np.stack([_Model.of(x, noise, first, second, s * root).log_likelihood for s in np.sin(middle[:, 0])])
        weight = np.exp(log - log.max())
        if last == 1:
            break
        ends = []
        for axis in range(3):
            share = weight.max(axis=tuple(k for k in range(3) if k != axis))
            kept = np.flatnonzero(share > NEGLIGIBLE)
            ends.append((max(kept[0] - 1, 0), min(kept[-1] + 2, CELLS)))
        low, high = low + width * np.array(ends)[:, 0], low + width * np.array(ends)[:, 1]
    total = weight.ravel().cumsum()
    cells = np.stack(np.unravel_index(np.searchsorted(total, rng.random(draws_wanted) * total[-1]), weight.shape), 1)
    at = low + width * (cells + rng.random((draws_wanted, 3)))
    first, second = variances(at[:, 1:]).T
    return first, second, np.sin(at[:, 0]) * np.sqrt(first * second)
