"""KL divergence of a policy from its reference, in nats: exact where tabular, else from the policy's own samples."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import rel_entr

from simfarm.errors import ConfigError, DataError

Floats = NDArray[np.float64]
Estimator = Literal["k1", "k2", "k3"]


def kl_terms(policy_logprobs: ArrayLike, reference_logprobs: ArrayLike, *, estimator: Estimator = "k1") -> Floats:
    """Return the terms whose mean over samples x ~ policy estimates KL(policy || reference).

    With r = reference(x)/policy(x): k1 = -log r (unbiased, may be negative); k2 = (log r)^2 / 2 (biased, low
    variance, the one of Coste et al. 2023); k3 = r - 1 - log r (unbiased, never negative). Source: Schulman 2020,
    "Approximating KL divergence".

    Args:
        policy_logprobs: log policy(x), nats, any shape; per token or per sequence.
        reference_logprobs: log reference(x), the same shape.
        estimator: Which.

    Raises:
        DataError: The shapes differ.
        ConfigError: There is no such estimator.
    """
    policy, reference = np.asarray(policy_logprobs, float), np.asarray(reference_logprobs, float)
    if policy.shape != reference.shape:
        raise DataError(f"The policy's log-probabilities are {policy.shape}, the reference's {reference.shape}.")
    log_r: Floats = reference - policy
    match estimator:
        case "k1":
            return np.negative(log_r)
        case "k2":
            return np.square(log_r) / 2
        case "k3":
            return np.subtract(np.expm1(log_r), log_r)
    raise ConfigError(f"There is no KL estimator {estimator!r}; choose k1, k2 or k3.")


def exact_kl(policy: ArrayLike, reference: ArrayLike) -> Floats:
    """Return sum_x policy(x) log(policy(x)/reference(x)) over the last axis of tables of probabilities.

    Raises:
        DataError: A table is not one of probabilities.
    """
    p, q = np.asarray(policy, float), np.asarray(reference, float)
    for name, table in (("policy", p), ("reference", q)):
        if (table < 0).any() or not np.allclose(table.sum(-1), 1):
            raise DataError(f"The {name}'s probabilities must be non-negative and sum to 1 over the last axis.")
    return np.asarray(rel_entr(p, q).sum(-1), float)
