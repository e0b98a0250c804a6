import numpy as np
import pandas as pd
import pytest
from evaluation_data import alpacaeval_gamed, alpacaeval_labels
from scipy.special import expit

from simfarm.errors import ConfigError, DataError, UnknownNameError
from simfarm.evaluation import alpacaeval
from simfarm.evaluation.length_control import joint_difficulty, length_controlled
from simfarm.evaluation.logistic import fit_logistic
from simfarm.evaluation.style import measure, style_differences
from simfarm.evaluation.winrate import win_rates


@pytest.fixture(scope="module")
def published(shared_data):
    folder = shared_data / "alpaca_eval_2"
    judged = pd.read_parquet(folder / "judgments.parquet")
    instructions = pd.read_parquet(folder / "instructions.parquet").set_index("instruction_id")
    board = pd.read_csv(folder / "leaderboard.csv").set_index("model")
    weights = pd.read_csv(folder / "weights.csv").set_index("model")
    return folder, judged, instructions["difficulty"], board, weights


def planted(rng, n=600, generators=4, length_effect=1.0):
    rows = []
    difficulty = rng.normal(0, 1, n)
    for m in range(generators):
        gap = rng.normal(0.5 * m, 1, n)
        baseline = 2000
        lengths = (baseline + 400 * gap).astype(int).clip(10)
        spread = (lengths - baseline).std(ddof=1)
        p = expit(-1 + 0.5 * m + length_effect * np.tanh((lengths - baseline) / spread) + difficulty)
        for i in range(n):
            rows.append((f"i{i}", "x" * baseline, "y" * lengths[i], "base", f"m{m}", 1.0 + (rng.random() < p[i])))
    columns = ["instruction", "output_1", "output_2", "generator_1", "generator_2", "preference"]
    truth = {f"m{m}": 100 * expit(-1 + 0.5 * m + difficulty).mean() for m in range(generators)}
    return pd.DataFrame(rows, columns=columns), truth


def test_published_win_rates(published):
    folder, _, _, board, _ = published
    ours = win_rates(alpacaeval_labels(folder)).set_index("generator")
    both = ours.join(board.add_suffix("_published"), how="inner")
    assert len(both) == 27
    for column in ("win_rate", "standard_error", "discrete_win_rate"):
        assert np.abs(both[column] - both[f"{column}_published"]).max() < 1e-6
    assert (both["n_kept"] == both["n_total_published"]).all()
    assert (both["wins"] == both["n_wins_published"]).all()


def test_published_length_controlled_and_the_row_shift(published):
    _, judged, difficulty, board, weights = published
    shifted = 0
    for model, rows in judged.groupby("model"):
        if model not in weights.index:
            continue
        w = alpacaeval.Weights(*weights.loc[model, ["a", "b", "c"]])
        present = difficulty.index.isin(rows["instruction_id"])
        right, _ = alpacaeval.length_controlled(w, difficulty.loc[rows["instruction_id"]].to_numpy())
        as_published, se = alpacaeval.length_controlled(
            w, alpacaeval.shifted_difficulty(difficulty.to_numpy(), present)
        )
        assert as_published == pytest.approx(board.loc[model, "length_controlled_winrate"], abs=1e-3)
        if not np.isnan(board.loc[model, "lc_standard_error"]):
            assert se == pytest.approx(board.loc[model, "lc_standard_error"], abs=1e-3)
        if not present.all():
            shifted += 1
            assert right != pytest.approx(as_published, abs=1e-4)
    assert shifted == 4


def test_refit_from_judgments(published):
    folder, judged, difficulty, _, weights = published
    gamed = alpacaeval_gamed(folder)
    errors = []
    for model, rows in judged.groupby("model"):
        if model not in weights.index or model == "gpt4_1106_preview":
            continue
        delta = difficulty.iloc[rows["published_row"]].to_numpy()
        length = alpacaeval.scaled_length(rows["len_model_chars"].to_numpy(), rows["len_baseline_chars"].to_numpy())
        fitted = alpacaeval.fit(
            rows["preference"].to_numpy() - 1, length, delta, gamed, inverse_penalty=weights.loc[model, "C_grid"]
        )
        target = alpacaeval.length_controlled(alpacaeval.Weights(*weights.loc[model, ["a", "b", "c"]]), delta)[0]
        errors.append(abs(alpacaeval.length_controlled(fitted, delta)[0] - target))
    assert max(errors) < 0.1
    assert np.mean(errors) < 0.03


def test_ours_on_published_judgments(published):
    folder, _, _, board, _ = published
    labels = alpacaeval_labels(folder)
    some = labels[labels["generator_2"].str.contains("FuseChat|vicuna|claude")]
    ours = length_controlled(some, bootstrap=200).set_index("generator")
    # 0.59 is published for this model; the sampling error is 1.37
    assert ours.loc["FuseChat-Gemma-2-9B-Instruct", "standard_error"] == pytest.approx(1.37, abs=0.1)
    assert (ours["standard_error"] / ours["bootstrap_se"]).between(0.8, 1.25).all()
    joined = ours.join(board["length_controlled_winrate"], how="inner")
    assert joined["lc_win_rate"].corr(joined["length_controlled_winrate"], method="spearman") > 0.95


def test_choosing_the_penalty_as_sklearn_does():
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    n, m = 400, 300
    x = np.column_stack([rng.uniform(-0.9, 0.9, n), rng.normal(size=n), np.ones(n)])
    y = rng.random(n) * 0.2 + 0.8 * (rng.random(n) < expit(x @ [-1.0, 0.7, -0.5]))
    g = np.column_stack([rng.uniform(-0.9, 0.9, m), rng.normal(size=m)])
    gamed = alpacaeval.GamedRows(g[:, 0], g[:, 1], (rng.random(m) < expit(g @ [-1.0, 0.7])).astype(float))
    for c in (0.3, 2.78, 1000.0):
        ours = alpacaeval.fit(y, x[:, 0], x[:, 1], gamed, inverse_penalty=c)
        rows = np.vstack([x, np.column_stack([g, np.zeros(m)])])
        score = np.concatenate([y, gamed.score])
        weight = np.concatenate([np.ones(n), np.full(m, 0.1)])
        model = linear.LogisticRegression(
            l1_ratio=1, solver="liblinear", fit_intercept=False, C=c, tol=1e-8, max_iter=10_000, random_state=0
        )
        model.fit(
            np.vstack([rows, rows]), np.repeat([1, 0], n + m), np.concatenate([weight * score, weight * (1 - score)])
        )
        assert [ours.a, ours.b, ours.c] == pytest.approx(list(model.coef_[0]), abs=2e-4)
    chosen = alpacaeval.fit(y, x[:, 0], x[:, 1], gamed)
    assert [chosen.a, chosen.b, chosen.c] == pytest.approx([-1.0, 0.45, -0.3], abs=0.4)


def test_zero_spread_is_refused_or_noted():
    with pytest.raises(DataError, match="no spread"):
        alpacaeval.scaled_length(np.array([10, 20]), np.array([10, 20]))
    labels, _ = planted(np.random.default_rng(0), n=40, generators=1)
    equal = labels.assign(output_2="y" * 2000)
    row = length_controlled(equal).iloc[0]
    assert row["lc_win_rate"] == pytest.approx(row["win_rate"], abs=0.1)
    assert "not controlled for" in row["note"]


@pytest.mark.parametrize("generators", [2, 5])
def test_planted_truth_is_recovered(generators):
    labels, truth = planted(np.random.default_rng(3), generators=generators)
    ours = length_controlled(labels).set_index("generator")
    assert set(ours["difficulty"]) == {"joint" if generators > 2 else "none"}
    for name, value in truth.items():
        # without the instructions' difficulty the estimate is of the marginal model, which is close but not the same
        assert abs(ours.loc[name, "lc_win_rate"] - value) < 3 * ours.loc[name, "standard_error"] + 0.5
        assert ours.loc[name, "effect_length"] > 0.3


def test_rows_may_stand_in_any_order_and_be_missing():
    labels, _ = planted(np.random.default_rng(4), n=100, generators=3)
    part = labels.drop(labels.index[[3, 50, 120]])
    one, other = (
        length_controlled(x).set_index("generator")["lc_win_rate"] for x in (part, part.sample(frac=1, random_state=0))
    )
    assert one.to_numpy() == pytest.approx(other[one.index].to_numpy())


def test_interval_covers_the_length_controlled_rate():
    rng = np.random.default_rng(5)
    hits = 0
    truth = 100 * expit(-0.5 + rng.normal(0, 1, 400_000)).mean()
    for _ in range(60):
        n = 150
        gap = rng.normal(0.6, 1, n)
        lengths = (1000 + 200 * gap).astype(int).clip(5)
        p = expit(-0.5 + 1.2 * np.tanh((lengths - 1000) / 200) + rng.normal(0, 1, n))
        labels = pd.DataFrame(
            {
                "instruction": [str(i) for i in range(n)],
                "output_1": "x" * 1000,
                "output_2": ["y" * k for k in lengths],
                "generator_1": "base",
                "generator_2": "new",
                "preference": 1.0 + (rng.random(n) < p),
            }
        )
        row = length_controlled(labels).iloc[0]
        hits += row["ci_low"] <= truth <= row["ci_high"]
    assert hits >= 53


def test_joint_difficulty_recovers_the_order_of_instructions():
    rng = np.random.default_rng(6)
    delta = rng.normal(0, 1.5, 200)
    generator, instruction = np.repeat(np.arange(12), 200), np.tile(np.arange(200), 12)
    style = rng.normal(size=(2400, 1))
    y = (rng.random(2400) < expit(delta[instruction] + 0.5 * style[:, 0])).astype(float)
    found = pd.Series(joint_difficulty(y, style, generator, instruction)).groupby(instruction).mean()
    assert np.corrcoef(found, delta)[0, 1] > 0.85


def test_logistic_equals_statsmodels_and_its_sandwich():
    api = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(7)
    x = np.column_stack([np.ones(300), rng.normal(size=300)])
    y = (rng.random(300) < expit(x @ [0.3, -0.8])).astype(float)
    oracle = api.GLM(y, x, family=api.families.Binomial()).fit()
    assert fit_logistic(x, y)[0] == pytest.approx(oracle.params, abs=1e-8)
    double = fit_logistic(x, y, np.column_stack([np.ones(300), np.full(300, 2.0)]))
    assert double[0] == pytest.approx(double[1])


def test_separated_data_diverge_loudly():
    x = np.column_stack([np.ones(6), np.arange(6.0)])
    with pytest.raises(DataError, match="separated"):
        fit_logistic(x, np.array([0.0, 0, 0, 1, 1, 1]))


def test_style_counts():
    marked = "# Head\n\n- one\n- two\n1. three\n**bold** and __more__\n```\n- code\n# code\n```"
    text = pd.Series([marked, "plain 3.5 text"])
    assert list(measure(text, "lists")) == [3, 0]
    assert list(measure(text, "headers")) == [1, 0]
    assert list(measure(text, "bold")) == [2, 0]
    assert measure(text, "length")[1] == 14


def test_style_differences_change_sign_when_swapped():
    a, b = pd.Series(["- x\n- y", "abc", ""]), pd.Series(["abc", "- z", "**b**"])
    forward, backward = (style_differences(*pair, ["length", "lists", "bold"]) for pair in ((a, b), (b, a)))
    assert np.allclose(forward, -backward)
    assert np.isfinite(forward).all()


def test_bad_options():
    labels, _ = planted(np.random.default_rng(0), n=20, generators=1)
    with pytest.raises(ConfigError, match="covariates"):
        length_controlled(labels, covariates=[])
    with pytest.raises(UnknownNameError, match="Did you mean 'lists'"):
        length_controlled(labels, covariates=["list"])
    with pytest.raises(UnknownNameError, match="Did you mean 'base'"):
        length_controlled(labels, baseline="bases")
