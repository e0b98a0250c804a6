import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from simfarm.errors import DataError
from simfarm.evaluation import bradley_terry
from simfarm.evaluation.bradley_terry import battles, bootstrap, fit, win_probabilities
from simfarm.evaluation.clustering import bootstrap_counts
from simfarm.evaluation.correlation import correlations, rank_correlations
from simfarm.evaluation.ranking import probability_above, rank_intervals, rank_table
from simfarm.evaluation.separability import agreement_with_confidence, separability
from simfarm.evaluation.style_control import style_controlled


def simulate(rng, theta, n, *, nu=0.5, instructions=100, effect=0.0):
    k = len(theta)
    first = rng.integers(0, k, n)
    second = (first + rng.integers(1, k, n)) % k
    instruction = rng.integers(0, instructions, n)
    # an instruction favours some generators: verdicts on it are not independent
    gap = (theta + effect * rng.normal(size=(instructions, k)))[instruction, first]
    gap = gap - (theta + effect * np.zeros((instructions, k)))[instruction, second]
    weights = np.stack([np.exp(gap / 2), np.exp(-gap / 2), np.full(n, nu)])
    edges = np.cumsum(weights / weights.sum(0), axis=0)
    outcome = (rng.random(n) > edges).sum(0)
    return pd.DataFrame(
        {
            "instruction": [f"i{i}" for i in instruction],
            "output_1": "a",
            "output_2": "b",
            "generator_1": [f"m{i:02d}" for i in first],
            "generator_2": [f"m{i:02d}" for i in second],
            "preference": np.array([1.0, 2.0, 1.5])[outcome],
            "replicate": np.arange(n),
        }
    )


@pytest.fixture(scope="module")
def llmfao(shared_data):
    votes = pd.read_parquet(shared_data / "llmfao_votes.parquet")
    golden = pd.read_csv(shared_data / "llmfao_golden.csv").astype({"item": str})
    labels = pd.DataFrame(
        {
            "instruction": votes["prompt"],
            "output_1": "a",
            "output_2": "b",
            "generator_1": votes["left"],
            "generator_2": votes["right"],
            "preference": votes["preference"],
            "replicate": votes["row"],
        }
    )
    return labels, golden


@pytest.mark.parametrize(("ties", "algorithm"), [("half", "bradley_terry"), ("davidson", "newman")])
def test_llmfao_golden(llmfao, ties, algorithm):
    labels, golden = llmfao
    fitted = fit(battles(labels, ties))
    scores = golden[golden["algorithm"] == algorithm].set_index("item")["score"]
    ratio = scores[list(fitted.names)].to_numpy() / np.exp(fitted.theta)
    # the golden scores are normalised otherwise, by one factor
    assert ratio.max() / ratio.min() == pytest.approx(1, abs=1e-5)


def test_equals_evalica():
    evalica = pytest.importorskip("evalica")
    labels = simulate(np.random.default_rng(0), np.linspace(-1, 1, 6), 3000)
    winners = labels["preference"].map({1.0: evalica.Winner.X, 2.0: evalica.Winner.Y, 1.5: evalica.Winner.Draw})
    for ties, algorithm in (("half", evalica.bradley_terry), ("davidson", evalica.newman)):
        oracle = np.log(algorithm(labels["generator_1"], labels["generator_2"], winners, tolerance=1e-10).scores)
        fitted = fit(battles(labels, ties))
        gap = oracle[list(fitted.names)].to_numpy() - fitted.theta
        assert np.ptp(gap) < 1e-3


def test_equals_choix_without_ties():
    choix = pytest.importorskip("choix")
    labels = simulate(np.random.default_rng(1), np.linspace(-1, 1, 5), 2000, nu=0.0)
    fitted = fit(battles(labels))
    number = {name: i for i, name in enumerate(fitted.names)}
    pairs = [
        (number[a], number[b]) if p == 1 else (number[b], number[a])
        for a, b, p in zip(labels["generator_1"], labels["generator_2"], labels["preference"], strict=True)
    ]
    oracle = choix.opt_pairwise(len(number), pairs)
    assert fitted.theta == pytest.approx(oracle - oracle.mean(), abs=1e-4)
    assert np.isneginf(fitted.log_nu)


def test_planted_ratings_and_tie_parameter():
    theta = np.linspace(-1.5, 1.5, 8)
    fitted = fit(battles(simulate(np.random.default_rng(2), theta, 20_000, nu=0.7)))
    assert fitted.theta == pytest.approx(theta, abs=0.1)
    assert fitted.log_nu == pytest.approx(np.log(0.7), abs=0.06)
    p = win_probabilities(fitted)
    assert p.to_numpy() + p.to_numpy().T == pytest.approx(np.ones((8, 8)))


def test_names_and_sides_do_not_matter():
    labels = simulate(np.random.default_rng(3), np.linspace(-1, 1, 4), 800)
    one = fit(battles(labels))
    swapped = labels.rename(columns={"generator_1": "generator_2", "generator_2": "generator_1"})
    two = fit(battles(swapped.assign(preference=3 - swapped["preference"])))
    assert two.theta == pytest.approx(one.theta)
    assert two.covariance == pytest.approx(one.covariance)
    renamed = {f"m{i:02d}": f"z{9 - i}" for i in range(4)}
    three = fit(battles(labels.replace({"generator_1": renamed, "generator_2": renamed})))
    assert [dict(zip(three.names, three.theta, strict=True))[renamed[n]] for n in one.names] == pytest.approx(one.theta)


def test_sandwich_equals_bootstrap_and_beats_rows():
    rng = np.random.default_rng(4)
    labels = simulate(rng, np.linspace(-1, 1, 5), 3000, instructions=60, effect=0.8)
    data = battles(labels)
    fitted = fit(data)
    se = np.sqrt(np.diag(fitted.covariance))
    drawn = bootstrap(data, fitted, 500)
    assert drawn.std(0) / se == pytest.approx(1, abs=0.2)
    assert drawn.mean(0) == pytest.approx(fitted.theta, abs=0.1)
    by_row = fit(battles(labels.assign(input=[str(i) for i in range(len(labels))])))
    assert (se / np.sqrt(np.diag(by_row.covariance))).mean() > 1.2


def test_bootstrap_draws_are_exact_fits():
    labels = simulate(np.random.default_rng(5), np.linspace(-2, 2, 5), 300, instructions=30)
    data = battles(labels)
    drawn = bootstrap(data, fit(data), 5, seed=3)
    counts = next(iter(bootstrap_counts(data.outcomes.shape[0], 5, 3)))
    for row, weights in zip(drawn, counts, strict=True):
        totals = (weights @ data.outcomes).reshape(3, -1)
        assert row == pytest.approx(bradley_terry._newton(data, totals, bradley_terry.RIDGE)[0], abs=1e-4)


def test_soft_labels_count_as_fractions():
    labels = simulate(np.random.default_rng(6), np.array([0.0, 1.0]), 400, nu=0.0)
    soft = labels.assign(preference=labels["preference"].map({1.0: 1.2, 2.0: 1.8}))
    share = np.where(soft["generator_1"] == "m00", 2 - soft["preference"], soft["preference"] - 1).mean()
    fitted = fit(battles(soft))
    assert expit(fitted.theta[0] - fitted.theta[1]) == pytest.approx(share)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[(t["generator_1"] + t["generator_2"]).isin(["m00m01", "m01m00", "m02m03", "m03m02"])], "2 groups"),
        (lambda t: t.assign(instruction="one"), "one instruction"),
        (lambda t: t.assign(preference=None), "missing"),
        (lambda t: t.assign(preference=np.where(t["generator_1"] == "m00", 1.0, np.where(
            t["generator_2"] == "m00", 2.0, t["preference"]))), "not finite: m00"),
    ],
)  # fmt: skip
def test_bad_tables_are_refused(change, message):
    labels = simulate(np.random.default_rng(7), np.linspace(-1, 1, 4), 400)
    with pytest.raises(DataError, match=message):
        fit(battles(change(labels)))


def test_rank_table():
    theta = np.array([-1.0, 0.0, 0.02, 1.0])
    data = battles(simulate(np.random.default_rng(8), theta, 4000))
    fitted = fit(data)
    table = rank_table(fitted, data, bootstrap_draws=200).set_index("generator")
    assert list(table.loc[["m03", "m00"], "rank"]) == [1, 4]
    assert (table.loc["m03", "rank_low"], table.loc["m03", "rank_high"]) == (1, 1)
    assert (table.loc["m01", "rank_low"], table.loc["m01", "rank_high"]) == (2, 3)
    assert table["rating"].mean() == pytest.approx(1000)
    assert table["n_comparisons"].sum() == 8000
    assert (table["bootstrap_ci_low"] < table["rating"]).all()
    above = probability_above(fitted)
    assert above.loc["m03", "m00"] > 0.999
    assert above.to_numpy() + above.to_numpy().T == pytest.approx(np.ones((4, 4)))


def test_rank_intervals_cover_with_ties():
    rng = np.random.default_rng(9)
    truth = np.array([0.0, 0.0, 0.0, 1.0])
    covariance = np.eye(4) * 0.1
    hits = 0
    for run in range(200):
        low, high = rank_intervals(rng.multivariate_normal(truth, covariance), covariance, n_draws=1000, seed=run)
        # tied generators hold ranks 2 to 4
        hits += bool((low[:3] <= 2).all() and (high[:3] >= 4).all() and low[3] <= 1)
    assert hits >= 180


def test_style_control_recovers_planted_effects():
    rng = np.random.default_rng(10)
    labels = simulate(rng, np.linspace(-1, 1, 4), 4000, nu=0.0)
    first, second = rng.integers(50, 500, (2, 4000))
    gap = (first - second) / (first + second)
    gap = gap / np.sqrt((gap**2).mean())
    theta = dict(zip(["m00", "m01", "m02", "m03"], np.linspace(-1, 1, 4), strict=True))
    logit = labels["generator_1"].map(theta) - labels["generator_2"].map(theta) + 0.8 * gap
    labels = labels.assign(
        preference=2.0 - (rng.random(4000) < expit(logit)),
        output_1=["x" * n for n in first],
        output_2=["x" * n for n in second],
    )
    fitted, effects = style_controlled(labels, ["length"])
    assert fitted.theta == pytest.approx(np.linspace(-1, 1, 4), abs=0.15)
    row = effects.iloc[0]
    assert row["ci_low"] < 0.8 < row["ci_high"]
    assert row["p"] < 1e-6
    with pytest.raises(DataError, match="do not differ in bold"):
        style_controlled(labels, ["length", "bold"])


def test_arena_hard_table(shared_data):
    drawn = pd.read_parquet(shared_data / "arena_golden_bootstrap.parquet")
    arena = pd.read_csv(shared_data / "arena_elo_20240329.csv").set_index("model")
    golden = pd.read_csv(shared_data / "arena_golden.csv").set_index("benchmark")
    assert separability(arena["ci_low"], arena["ci_high"]) == pytest.approx(0.9095, abs=1e-4)
    for name, rows in drawn.groupby("benchmark"):
        want, human = golden.loc[name], arena.loc[rows["arena_model"]]
        for tail, percent in ((2.5, "95"), (10, "80")):
            ends = [[np.percentile(b, q) for b in rows["bootstrap"]] for q in (tail, 100 - tail)]
            assert 100 * separability(*ends) == pytest.approx(want[f"separability_{percent}_pct"])
        got = agreement_with_confidence(
            rows["score"], list(rows["bootstrap"]), human["rating"], human["ci_low"], human["ci_high"]
        )
        assert got.with_confidence == pytest.approx(want["agreement_with_confidence"])
        assert got.confident_pairs == want["n_confident_pairs"] == 177
        assert got.strict_pairs == pytest.approx(want["strict_pair_agreement"])
        assert (got.brier, got.log_loss) == pytest.approx((want["brier"], want["log_loss"]))
        values = correlations(rows["score"], human["rating"].to_numpy(), permutations_drawn=99)
        assert values["value"].to_list()[:2] == pytest.approx([want["spearman"], want["kendall"]])


def test_arena_correlations(shared_data):
    table = pd.read_csv(shared_data / "arena_elo.csv")
    for column, human, n, spearman, kendall in (
        ("ae2_lc_winrate", "arena_elo_20240202", 37, 0.9746295267069284, 0.8692),
        ("ae2_winrate", "arena_elo_20240202", 37, 0.9305, 0.8150),
        ("ae1_winrate", "arena_elo_20240202", 21, 0.7381, 0.5837),
        ("mt_bench", "arena_elo_20240202", 33, 0.9331, 0.7882),
        ("wildbench", "arena_elo_20240202", 16, 0.9676, 0.8833),
        ("output_length", "arena_elo_20240202", 37, 0.2985, 0.2092),
        ("ae2_lc_winrate", "arena_elo_20240418", 20, 0.8698, 0.6984),
        ("ae2_winrate", "arena_elo_20240418", 17, 0.4000, 0.3259),
    ):
        rows = correlations(table[column], table[human], permutations_drawn=99).set_index("coefficient")
        assert rows["n"].iloc[0] == n
        assert (rows.loc["spearman", "value"], rows.loc["kendall", "value"]) == pytest.approx(
            (spearman, kendall), abs=6e-5
        )


def test_rank_correlations():
    simulated = pd.DataFrame({"generator": list("abcdef"), "score": [1.0, 2, 3, 4, 5, 6], "standard_error": 0.5})
    human = pd.DataFrame({"generator": list("abcdeg"), "score": [1.0, 3, 2, 5, 6, 0]})
    table = rank_correlations(simulated, human, draws_wanted=500)
    assert (table["n"] == 5).all()
    assert (table["ci_low"] <= table["value"]).all()
    assert "human scores have no standard errors" in table["note"].iloc[0]
    bare = rank_correlations(simulated.drop(columns="standard_error"), human)
    assert bare["ci_low"].isna().all()
    assert "no interval" in bare["note"].iloc[0]


def test_rank_correlations_bad_input():
    simulated = pd.DataFrame({"generator": ["davinci", "b", "c"], "score": [1.0, 2, 3]})
    human = pd.DataFrame({"generator": ["davinci3", "b", "c"], "score": [1.0, 2, 3]})
    with pytest.raises(DataError, match=r"Not in the human ranking: davinci\. Did you mean 'davinci3'"):
        rank_correlations(simulated, human)
    with pytest.raises(DataError, match="more than once"):
        rank_correlations(pd.concat([simulated, simulated]), human)
    with pytest.raises(DataError, match="no column 'score'"):
        rank_correlations(simulated.drop(columns="score"), human)
