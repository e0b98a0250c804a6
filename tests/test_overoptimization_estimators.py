from itertools import combinations

import numpy as np
import pytest

from simfarm.errors import ConfigError, DataError
from simfarm.overoptimization.best_of_n import best_of_n_curve, best_of_n_values, best_of_n_weights, kl_best_of_n
from simfarm.overoptimization.kl import exact_kl, kl_terms


def brute_force(proxy, gold, n):
    values = []
    for subset in combinations(range(len(proxy)), n):
        s = list(subset)
        best = proxy[s].max()
        values.append((best, gold[s][proxy[s] == best].mean()))
    return np.mean(values, axis=0)


@pytest.mark.parametrize("tied", [False, True])
def test_equals_mean_over_all_subsets(tied):
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(2, 3, 7))
    if tied:
        proxy = np.round(proxy)
    ours = best_of_n_values(proxy, gold, range(1, 8))
    for row in range(3):
        for n in range(1, 8):
            assert (ours[0][row, n - 1], ours[1][row, n - 1]) == pytest.approx(brute_force(proxy[row], gold[row], n))


def test_curve_has_intervals_over_instructions():
    rng = np.random.default_rng(1)
    proxy = rng.normal(size=(50, 16))
    gold = 0.5 * proxy + rng.normal(size=(50, 16))
    table = best_of_n_curve(proxy, gold)
    assert list(table["n"]) == list(range(1, 17))
    assert table["proxy"].is_monotonic_increasing
    one = table.iloc[0]
    assert one["gold"] == pytest.approx(gold.mean())
    assert one["gold_se"] == pytest.approx(gold.mean(1).std(ddof=1) / np.sqrt(50))
    # the expected maximum of 16 standard normals is 1.766
    assert table["proxy_ci_low"].iloc[-1] < 1.766 < table["proxy_ci_high"].iloc[-1]
    assert table["gold_ci_low"].iloc[-1] < 0.883 < table["gold_ci_high"].iloc[-1]


def test_weights_sum_to_one_for_large_n():
    weights = best_of_n_weights([1, 100, 12_600], 12_600)
    assert weights.sum(1) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize(
    ("n", "kl"), [(1, 0), (2, 0.1931), (4, 0.6363), (16, 1.8351), (64, 3.1745), (1000, 5.9088), (60_000, 10.0021)]
)
def test_kl_of_best_of_n(n, kl):
    assert float(kl_best_of_n(n)) == pytest.approx(kl, abs=5e-5)


def test_kl_of_best_of_n_is_exact_without_ties():
    # best of n among K equally likely ordered outcomes, K large: P(rank k) = (k/K)^n - ((k-1)/K)^n
    grid = np.linspace(0, 1, 200_001)
    best = np.diff(grid**4)
    assert float(exact_kl(best, np.full(200_000, 1 / 200_000))) == pytest.approx(float(kl_best_of_n(4)), abs=1e-4)


def test_an_instruction_with_a_missing_score_is_left_out_and_counted():
    rng = np.random.default_rng(2)
    proxy, gold = rng.normal(size=(2, 6, 4))
    whole = best_of_n_curve(proxy[[0, 1, 3, 5]], gold[[0, 1, 3, 5]])
    proxy[2, 1], gold[4, 3] = np.nan, np.nan
    table = best_of_n_curve(proxy, gold)
    assert set(table["n_dropped"]) == {2} and set(table["n_instructions"]) == {4}
    assert table.drop(columns="n_dropped").equals(whole.drop(columns="n_dropped"))
    assert set(whole["n_dropped"]) == {0}


def test_bad_input():
    with pytest.raises(DataError, match="both must be"):
        best_of_n_curve(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(DataError, match="finite"):
        best_of_n_curve(np.full((2, 3), -np.inf), np.zeros((2, 3)))
    with pytest.raises(DataError, match="0 of 2 instructions"):
        best_of_n_curve(np.full((2, 3), np.nan), np.zeros((2, 3)))
    with pytest.raises(DataError, match="two or more"):
        best_of_n_curve(np.zeros((1, 3)), np.zeros((1, 3)))
    with pytest.raises(ConfigError, match="between 1 and the 3"):
        best_of_n_curve(np.zeros((2, 3)), np.zeros((2, 3)), ns=[4])


def test_kl_estimators_agree_with_exact_on_a_table():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    exact = float(exact_kl(p, q))
    assert exact == pytest.approx(0.3 * np.log(2.5))
    terms = {k: kl_terms(np.log(p), np.log(q), estimator=k) for k in ("k1", "k2", "k3")}
    # expectation over x ~ policy, without sampling
    assert p @ terms["k1"] == pytest.approx(exact)
    assert p @ terms["k3"] == pytest.approx(exact)
    assert p @ terms["k2"] == pytest.approx(p @ (np.log(p / q) ** 2) / 2)
    assert (terms["k3"] >= 0).all()
    assert float(exact_kl([1.0, 0.0], [0.0, 1.0])) == np.inf


def test_kl_bad_input():
    with pytest.raises(DataError):
        kl_terms([0.0], [0.0, 0.0])
    with pytest.raises(ConfigError, match="k4"):
        kl_terms([0.0], [0.0], estimator="k4")
    with pytest.raises(DataError, match="sum to 1"):
        exact_kl([0.5, 0.4], [0.5, 0.5])
