from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from simfarm.errors import DataError
from simfarm.evaluation.correlation import coefficient_of, correlations
from simfarm.evaluation.true_scores import true_scores


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 8), st.booleans())
def test_equals_scipy(seed, n, tied):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, n))
    if tied:
        x[0] = x[1]
    table = correlations(x, y).set_index("coefficient")["value"]
    assert table["spearman"] == pytest.approx(stats.spearmanr(x, y)[0])
    assert table["kendall"] == pytest.approx(stats.kendalltau(x, y)[0])
    assert table["pearson"] == pytest.approx(stats.pearsonr(x, y)[0])


def test_exact_p_equals_brute_force():
    x, y = [1.0, 2, 3, 4, 5], [2.0, 1, 3, 5, 4]
    seen = abs(stats.kendalltau(x, y)[0])
    brute = np.mean([abs(stats.kendalltau(x, p)[0]) >= seen - 1e-12 for p in permutations(y)])
    row = correlations(x, y).set_index("coefficient").loc["kendall"]
    assert row["p"] == pytest.approx(brute)
    assert row["method"] == "exact, 120 permutations"
    # a perfect order of five: 2 of 120 permutations are as extreme
    assert correlations(x, x).set_index("coefficient").loc["spearman", "p"] == pytest.approx(2 / 120)


def test_monte_carlo_p_near_asymptotic():
    rng = np.random.default_rng(0)
    x = rng.normal(size=20)
    y = 0.5 * x + rng.normal(size=20)
    row = correlations(x, y).set_index("coefficient").loc["kendall"]
    assert row["p"] == pytest.approx(stats.kendalltau(x, y)[1], abs=0.01)
    assert "Monte Carlo, 19,999" in row["method"]


def test_missing_pairs_are_left_out_and_bad_input_refused():
    assert correlations([1.0, 2, 3, np.nan], [1.0, 3, 2, 4])["n"].iloc[0] == 3
    with pytest.raises(DataError, match="three or more"):
        correlations([1.0, 2.0], [1.0, 2.0])
    with pytest.raises(DataError, match="nothing can be correlated"):
        correlations([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    with pytest.raises(DataError, match="shapes"):
        correlations([1.0, 1.0, 1.0], [1.0, 2.0])


@pytest.mark.parametrize(("rho", "error", "least"), [(0.98, 0.15, 35), (0.6, 0.3, 35)])
def test_interval_of_a_correlation_holds_that_of_the_true_scores(rho, error, least):
    rng = np.random.default_rng(11)
    hits = dict.fromkeys(("kendall", "pearson"), 0)
    for run in range(40):
        true = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], 12)
        errors = np.full((12, 2), error)
        drawn = true_scores(true + errors * rng.normal(size=(12, 2)), errors, draws_wanted=400, seed=run)
        for name in hits:
            low, high = np.quantile(coefficient_of(drawn[..., 0], drawn[..., 1], name), [0.025, 0.975])
            hits[name] += low <= coefficient_of(true[:, 0], true[:, 1], name) <= high
    assert min(hits.values()) >= least, hits


def test_true_scores():
    rng = np.random.default_rng(1)
    scores = rng.multivariate_normal([10, 1000], [[4, 150], [150, 10_000]], 8)
    errors = np.column_stack([np.full(8, 0.5), np.zeros(8)])
    drawn = true_scores(scores, errors, draws_wanted=2000)
    assert (drawn == true_scores(scores, errors, draws_wanted=2000)).all()
    assert drawn.shape == (2000, 8, 2)
    # exact scores are what they are; measured ones are drawn towards what the exact side tells
    assert np.abs(drawn[..., 1] - scores[:, 1]).max() < 1e-6
    assert drawn[..., 0].std(0).max() < 0.55
    # scale and place do not matter
    moved = true_scores(scores * [3, 0.1] + [5, 7], errors * [3, 0.1], draws_wanted=2000)
    assert (moved - [5, 7]) / [3, 0.1] == pytest.approx(drawn, rel=1e-6)
    assert (
        true_scores(scores, errors, draws_wanted=5, seed=2) == true_scores(scores, errors, draws_wanted=5, seed=2)
    ).all()


def test_true_scores_with_few_exact_or_worthless_ones():
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(5, 2))
    for errors in (np.zeros((5, 2)), np.full((5, 2), 1e-6), np.full((5, 2), 20.0), np.diag([30.0, 1, 1, 1, 1])[:, :2]):
        drawn = true_scores(scores, errors, draws_wanted=500)
        assert np.isfinite(drawn).all()
    assert true_scores(scores, np.zeros((5, 2)), draws_wanted=3)[0] == pytest.approx(scores)
    # nothing is known: any correlation is possible
    drawn = true_scores(scores, np.full((5, 2), 20.0), draws_wanted=2000)
    low, high = np.quantile(coefficient_of(drawn[..., 0], drawn[..., 1], "pearson"), [0.025, 0.975])
    assert low < -0.8
    assert high > 0.8
