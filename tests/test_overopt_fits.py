import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simfarm.errors import ConfigError, DataError
from simfarm.overoptimization.best_of_n import kl_best_of_n
from simfarm.overoptimization.fits import design, fit_form, n_of_kl, seen_peak, verdict
from simfarm.overoptimization.kl import exact_kl, kl_terms

NS = np.unique(np.round(np.geomspace(1, 1000, 40)).astype(int))
KL = kl_best_of_n(NS)


def planted(kl, form, alpha, beta, *, clusters=60, noise=0.1, seed=0):
    rng = np.random.default_rng(seed)
    curve = design(np.asarray(kl), form) @ [alpha, beta]
    # an instruction's level and its noise: neighbours along a curve are correlated, as real ones are
    level, slope = rng.normal(size=(2, clusters, 1))
    return curve + 3.0 + level + noise * slope * np.sqrt(kl)


@pytest.mark.parametrize(("form", "alpha", "beta"), [("bon", 1.0, 0.3), ("rl", 0.8, 0.5)])
def test_planted_parameters_are_recovered(form, alpha, beta):
    kl = KL if form == "bon" else np.linspace(0, 60, 40)
    fit = fit_form(kl, planted(kl, form, alpha, beta), form=form)
    for found, true in ((fit.alpha, alpha), (fit.beta, beta)):
        assert found.value == pytest.approx(true, abs=0.06)
        assert found.ci_low - 1e-9 <= true <= found.ci_high + 1e-9
    d = alpha / (2 * beta) if form == "bon" else np.exp(alpha / beta - 1)
    height = alpha**2 / (4 * beta) if form == "bon" else beta * d
    assert fit.peak_kl.value == pytest.approx(d**2, rel=0.15)
    assert fit.peak_gain.value == pytest.approx(height, rel=0.15)
    assert fit.r2 > 0.99


def test_intervals_cover_as_often_as_they_say():
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        values = design(KL, "bon") @ [1.0, 0.3] + np.sqrt(KL) * rng.normal(0, 1, (40, 1))
        fit = fit_form(KL, values, form="bon", seed=seed, draws_wanted=300)
        covered += fit.alpha.ci_low <= 1.0 <= fit.alpha.ci_high
    assert 88 <= covered <= 99


def test_a_form_that_never_falls_has_no_peak():
    fit = fit_form(KL, planted(KL, "bon", 1.0, -0.1, noise=0.01), form="bon")
    assert fit.beta.ci_high < 0 and fit.peak_kl.value == np.inf and n_of_kl(fit.peak_kl.value) == np.inf
    falling = fit_form(KL, planted(KL, "bon", -1.0, 0.2, noise=0.01), form="bon")
    assert falling.peak_kl.value == falling.peak_gain.value == 0


@given(st.floats(1.0, 1e6))
def test_n_of_kl_is_the_inverse_of_kl(n):
    assert n_of_kl(float(kl_best_of_n(n))) == pytest.approx(n, rel=1e-4, abs=1e-3)


@given(st.floats(0.1, 3.0), st.floats(0.05, 1.0), st.floats(0.1, 50.0))
def test_gold_in_another_unit_scales_gains_and_leaves_the_peak(alpha, beta, factor):
    values = planted(KL, "bon", alpha, beta)
    one, other = (fit_form(KL, k * values, form="bon", draws_wanted=20) for k in (1.0, factor))
    assert other.alpha.value == pytest.approx(factor * one.alpha.value, rel=1e-6)
    assert other.peak_kl.value == pytest.approx(one.peak_kl.value, rel=1e-5)
    assert one.r2 == pytest.approx(other.r2)


def curves(shape, *, clusters=50, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    return np.asarray(shape, float) + rng.normal(0, noise, (clusters, len(shape)))


def test_a_fall_is_found_and_said():
    positions = [1, 2, 4, 8, 16, 32]
    proxy = curves([0, 1, 2, 3, 4, 5])
    peak = seen_peak(positions, curves([0, 1, 2, 3, 2, 1]), proxy)
    assert peak.falls and peak.position == 8 and peak.proxy_rises
    assert peak.fall.value == pytest.approx(-2, abs=0.2)
    said = verdict(peak)
    assert "peaks at n ≈ 8 (95 %: 8 to 8)" in said and "n = 32 costs" in said and "proxy goes on rising" in said
    rising = seen_peak(positions, curves([0, 1, 2, 3, 4, 5]), proxy)
    assert not rising.falls and "No over-optimization" in verdict(rising)
    worse = seen_peak(positions, curves([0, -1, -2, -3, -4, -5]), proxy)
    assert "falls from the start" in verdict(worse)


def test_a_flat_curve_is_not_called_falling():
    # picked from the same noise, the highest of 40 points would always seem to be followed by a fall
    false = sum(seen_peak(range(40), *[curves(np.zeros(40), seed=s)] * 2, draws_wanted=50).falls for s in range(60))
    assert false <= 5
    assert "not shown to be worse" in verdict(seen_peak(range(40), *[curves(np.zeros(40), seed=1)] * 2))


def test_k1_and_k3_agree_with_exact_kl_on_samples_of_a_table():
    rng = np.random.default_rng(0)
    reference = rng.dirichlet(np.ones(20))
    policy = rng.dirichlet(5 * reference * 20)
    exact = float(exact_kl(policy, reference))
    drawn = rng.choice(20, 200_000, p=policy)
    for estimator in ("k1", "k3"):
        terms = kl_terms(np.log(policy)[drawn], np.log(reference)[drawn], estimator=estimator)
        assert abs(terms.mean() - exact) < 4 * terms.std() / np.sqrt(len(drawn))
    # k2 is biased by the third moment of the log-ratio, little where the policies are near
    near = reference * np.exp(0.1 * rng.normal(size=20))
    near /= near.sum()
    k2 = float(near @ kl_terms(np.log(near), np.log(reference), estimator="k2"))
    assert k2 == pytest.approx(float(exact_kl(near, reference)), rel=0.15)


def test_bad_input():
    values = planted(KL, "bon", 1, 0.3)
    with pytest.raises(DataError, match="clusters, points"):
        fit_form(KL[:-1], values, form="bon")
    with pytest.raises(DataError, match="not finite"):
        fit_form(KL, np.where(np.arange(len(KL)) == 3, np.nan, values), form="bon")
    with pytest.raises(DataError, match="two or more"):
        fit_form(KL, values[:1], form="bon")
    with pytest.raises(DataError, match="initial policy"):
        fit_form(KL[1:], values[:, 1:], form="bon")
    with pytest.raises(ConfigError, match="no form"):
        fit_form(KL, values, form="ppo")
    with pytest.raises(DataError, match="do not fit"):
        seen_peak([1, 2], values, values)


def test_a_gain_at_the_end_is_that_of_all_clusters():
    # one half peaks in the middle, the other at the end, and so does the mean
    gold = np.array([[0.0, 3.0, 2.0], [0.0, 1.0, 5.0]] * 3)
    peak = seen_peak([1, 2, 3], gold, gold)
    assert peak.position == peak.end and peak.gain.value == pytest.approx(3.5)
