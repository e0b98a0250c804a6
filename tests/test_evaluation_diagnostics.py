import numpy as np
import pandas as pd
import pytest
from evaluation_data import alpacaeval_labels, votes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from simfarm.errors import DataError, UnknownNameError
from simfarm.evaluation import agreement as a
from simfarm.evaluation.clustering import instruction_codes
from simfarm.evaluation.dawid_skene import dawid_skene
from simfarm.evaluation.diagnostics import HUMANS, POOL, diagnose
from simfarm.evaluation.items import align, vote_counts
from simfarm.evaluation.tastes import order_consistency, position_effect, prefers_first

QUICK = {"bootstrap": 50}


def as_items(table, order=None):
    """Number the items as the source does, with votes in the source's coordinates."""
    return table.assign(
        item=pd.factorize(table["item_id"])[0] if order is None else table["item_id"].map(order),
        vote=table["preference"],
        cluster=pd.factorize(table["instruction"])[0],
    )


def planted(rng, *, n=400, position=0.0, length=0.0, accuracy=(0.9, 0.7, 0.6), ties=0.0):
    quality = rng.integers(0, 2, n)
    lengths = rng.integers(50, 400, (n, 2))
    base = pd.DataFrame(
        {
            "instruction": [f"i{i}" for i in range(n)],
            "output_1": [f"A{i}" + "x" * k for i, k in enumerate(lengths[:, 0])],
            "output_2": [f"B{i}" + "x" * k for i, k in enumerate(lengths[:, 1])],
            "generator_1": "g1",
            "generator_2": "g2",
        }
    )
    human = pd.concat([base.assign(preference=1.0 + quality, annotator=f"h{k}") for k in range(2)])
    rows = []
    for k, share in enumerate(accuracy):
        first = rng.random(n) < 0.5
        logit = np.where(quality == 1, -1, 1) * np.log(share / (1 - share)) + position * np.where(first, 1, -1)
        logit = logit + length * np.sign(lengths[:, 0] - lengths[:, 1])
        vote = 2.0 - (rng.random(n) < expit(logit))
        vote[rng.random(n) < ties] = np.nan
        rows.append(base.assign(preference=vote, annotator=f"a{k}", order=np.where(first, "12", "21")))
    return pd.concat(rows, ignore_index=True), human.reset_index(drop=True)


def test_pandalm_coefficients(shared_data):
    _, judge, human = votes(shared_data, "pandalm")
    human = as_items(human)
    clusters = human.drop_duplicates("item")["cluster"].to_numpy()
    counts = {w: vote_counts(rows, 700) for w, rows in human.groupby("annotator")}
    for (one, two), share, kappa in (
        (("annotator1", "annotator2"), 0.8914, 0.8239),
        (("annotator1", "annotator3"), 0.9114, 0.8559),
        (("annotator2", "annotator3"), 0.9000, 0.8392),
    ):
        table = counts[one][:, :, None] * counts[two][:, None, :]
        assert a.agreement(counts[one], counts[two], clusters).value == pytest.approx(share, abs=6e-5)
        assert a.cohen_kappa(table, clusters, draws_wanted=20).value == pytest.approx(kappa, abs=6e-5)
    whole = vote_counts(human, 700)
    assert a.fleiss_kappa(whole, clusters, draws_wanted=20).value == pytest.approx(0.8396, abs=6e-5)
    assert a.mode(whole).sum(0) == pytest.approx([289, 104, 307])
    order = dict(zip(human["item_id"], human["item"], strict=True))
    for name, share in (("gpt-3.5-turbo", 0.6757), ("pandalm-7b", 0.6457)):
        rows = as_items(judge[judge["annotator"] == name], order)
        right = (a.mode(whole) * vote_counts(rows, 700)).sum() / 700
        assert right == pytest.approx(share, abs=6e-5)


def test_prd_humans_and_judges(shared_data):
    _, judge, human = votes(shared_data, "prd")
    human = as_items(human)
    n = human["item"].max() + 1
    counts = vote_counts(human, n)
    clusters = human.drop_duplicates("item")["cluster"].to_numpy()
    assert a.agreement(counts, counts, clusters).value == pytest.approx(0.5133, abs=6e-5)
    assert a.agreement(counts, counts, clusters, ties=False).value == pytest.approx(0.6324, abs=6e-5)
    order = dict(zip(human["item_id"], human["item"], strict=True))
    judge = as_items(judge[judge["replicate"] == 0], order)
    for name, consistency, first, equal, no_ties, most in (
        ("bard", 0.354, 0.8226, 0.5409, 0.6050, 0.571),
        ("claude", 0.598, 0.4128, 0.5909, 0.7131, 0.632),
        ("gpt35", 0.674, 0.4884, 0.5800, 0.7607, 0.641),
        ("gpt4", 0.684, 0.6201, 0.6077, 0.7439, 0.665),
        ("vicuna-13b", 0.290, 0.3970, 0.4991, 0.5529, 0.522),
    ):
        rows = judge[judge["annotator"] == name]
        mine = vote_counts(rows, n)
        assert order_consistency(rows).value == pytest.approx(100 * consistency, abs=6e-3)
        assert prefers_first(rows).value == pytest.approx(100 * first, abs=6e-3)
        assert a.agreement(mine, counts, clusters).value == pytest.approx(equal, abs=6e-5)
        assert a.agreement(mine, counts, clusters, ties=False).value == pytest.approx(no_ties, abs=6e-5)
        assert a.agreement(mine, a.majority(counts), clusters).value == pytest.approx(most, abs=6e-5)


def test_alpacafarm_variance_and_agreement(shared_data):
    items, judge, human = votes(shared_data, "alpacafarm648")
    order = {item: k for k, item in enumerate(items["item_id"])}
    human, judge = as_items(human, order), as_items(judge, order)
    clusters = instruction_codes(items)
    for name, variance, by_seed in (
        ("gpt4_b1", 14.9306, [0.72, 0.69, 0.69, 0.66]),
        ("gpt4_b5", 17.9012, [0.68, 0.70, 0.67, 0.71]),
    ):
        rows = judge[judge["annotator"] == name]
        counts = vote_counts(rows, 648)
        assert 100 * a.alpacaeval_variance(counts, clusters).value == pytest.approx(variance, abs=1e-4)
        for seed, share in enumerate(by_seed):
            one = vote_counts(rows[rows["replicate"] == seed], 648)
            assert a.alpacaeval_agreement(one, vote_counts(human, 648), clusters).value == pytest.approx(share)


def test_position_effect_of_alpacaeval_2(shared_data):
    labels = alpacaeval_labels(shared_data / "alpaca_eval_2")
    effect, p = position_effect(labels.assign(cluster=instruction_codes(labels)))
    assert effect.value == pytest.approx(-8.4, abs=0.5)
    assert effect.standard_error == pytest.approx(0.89, abs=0.05)
    assert p < 1e-15


def test_kappa_equals_sklearn_and_statsmodels():
    metrics = pytest.importorskip("sklearn.metrics")
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 3, (2, 200))
    two = np.where(rng.random(200) < 0.5, one, two)
    eye, clusters = np.eye(3), np.arange(200)
    ours = a.cohen_kappa(eye[one][:, :, None] * eye[two][:, None, :], clusters, draws_wanted=200)
    assert ours.value == pytest.approx(metrics.cohen_kappa_score(one, two))
    assert ours.ci_low < ours.value < ours.ci_high
    counts = eye[one] + eye[two] + eye[rng.integers(0, 3, 200)]
    fleiss = a.fleiss_kappa(counts, clusters, draws_wanted=20)
    assert fleiss.value == pytest.approx(inter_rater.fleiss_kappa(counts))


def test_krippendorff_golden():
    # two raters, nominal, from Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section A: 0.095
    one = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    two = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    counts = np.zeros((10, 3))
    for i, pair in enumerate(zip(one, two, strict=True)):
        for v in pair:
            counts[i, 2 * v] += 1
    assert a.krippendorff_alpha(counts, np.arange(10), draws_wanted=20).value == pytest.approx(0.095, abs=5e-4)
    assert a.krippendorff_alpha(counts, np.arange(10), metric="interval", draws_wanted=20).value == pytest.approx(
        0.095, abs=5e-4
    )


def test_tied_modes_are_shared_not_given_to_output_2():
    counts = np.array([[2.0, 0, 2], [3, 0, 1]])
    assert a.mode(counts).tolist() == [[0.5, 0, 0.5], [1, 0, 0]]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6))
def test_exchanging_the_outputs_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    labels, human = planted(rng, n=30, position=0.5, ties=0.1)
    swap = {"output_1": "output_2", "output_2": "output_1", "generator_1": "generator_2", "generator_2": "generator_1"}
    other = labels.rename(columns=swap).assign(
        preference=3 - labels["preference"], order=labels["order"].map({"12": "21", "21": "12"})
    )
    one, two = diagnose(labels, human, bootstrap=20), diagnose(other, human, bootstrap=20)
    pd.testing.assert_frame_equal(one.agreement, two.agreement)
    columns = ["annotator", "tie_rate", "prefers_first", "prefers_longer", "longer_excess"]
    pd.testing.assert_frame_equal(one.tastes[columns], two.tastes[columns])


def test_planted_annotators_are_recovered():
    labels, human = planted(np.random.default_rng(1), n=800, position=0.6, length=0.5, ties=0.1)
    found = diagnose(labels, human, **QUICK)
    table = found.agreement.set_index("annotator")
    assert table.loc["a0", "agreement"] > table.loc["a2", "agreement"] + 10
    assert table.loc["a0", "null_rate"] == pytest.approx(10, abs=4)
    assert table.loc[HUMANS, "agreement"] == 100
    assert table.loc[POOL, "agreement_low"] < table.loc[POOL, "agreement"] < table.loc[POOL, "agreement_high"]
    assert table.loc["(random)", "agreement"] == pytest.approx(50)
    tastes = found.tastes.set_index("annotator")
    assert (tastes.loc[["a0", "a1", "a2"], "position_effect_low"] > 0).all()
    assert (tastes.loc[["a1", "a2"], "longer_excess_low"] > 0).all()
    # three pairs, and each of the three with two judges that read nothing
    assert len(found.pairs) == 9
    assert tastes.loc["(longest)", "prefers_longer"] == 100
    assert tastes.loc["(random)", ["prefers_longer", "prefers_longer_low"]].tolist() == [50, 50]
    errors = found.pairs.set_index(["annotator_a", "annotator_b"])["error_correlation"]
    assert errors["a1", "(longest)"] > errors["a0", "(longest)"]


def test_errors_that_go_together_are_found():
    rng = np.random.default_rng(2)
    labels, human = planted(rng, n=600, accuracy=(0.7, 0.7, 0.7))
    rows = {name: table.reset_index(drop=True) for name, table in labels.groupby("annotator")}
    # a1 copies a0 two times in three
    copied = np.where(rng.random(600) < 0.67, rows["a0"]["preference"], rows["a1"]["preference"])
    rows["a1"] = rows["a1"].assign(preference=copied)
    table = diagnose(pd.concat(rows.values()), human, **QUICK).pairs.set_index(["annotator_a", "annotator_b"])
    assert table.loc[("a0", "a1"), "error_correlation_low"] > 0.3
    assert table.loc[("a0", "a1"), "p_adjusted"] < 1e-6
    assert abs(table.loc[("a0", "a2"), "error_correlation"]) < 0.15


def test_dawid_skene_recovers_planted_reliability():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 2, 1000) * 2
    accuracy = np.array([0.95, 0.8, 0.7, 0.6, 0.5])
    votes_ = np.zeros((5, 1000, 3))
    for k, share in enumerate(accuracy):
        cast = np.where(rng.random(1000) < share, truth, 2 - truth)
        votes_[k, np.arange(1000), cast] = 1
    fit = dawid_skene(votes_, np.arange(1000), bootstrap=20)
    assert fit.reliability == pytest.approx(accuracy, abs=0.06)
    assert ((fit.ci_low <= fit.reliability) & (fit.reliability <= fit.ci_high)).all()
    assert (fit.posterior.argmax(1) == truth).mean() > 0.93
    with pytest.raises(DataError, match="3 or more"):
        dawid_skene(votes_[:2], np.arange(1000))


def test_self_preference():
    labels, human = planted(np.random.default_rng(4), n=500)
    mine = labels["annotator"] == "a2"
    labels.loc[mine & (np.arange(len(labels)) % 2 == 0), "preference"] = 2.0
    found = diagnose(labels, human, selves={"a2": "g2"}, **QUICK).self_preference.iloc[0]
    assert found["generator"] == "g2"
    assert found["self_preference_low"] > 5
    with pytest.raises(UnknownNameError, match="g3"):
        diagnose(labels, human, selves={"a2": "g3"}, **QUICK)


def test_sparse_tables_give_empty_cells_not_errors():
    labels, human = planted(np.random.default_rng(5), n=12)
    one_vote = human[human["annotator"] == "h0"].drop(columns="annotator")
    found = diagnose(labels.drop(columns=["annotator", "order"]).drop_duplicates("instruction"), one_vote, **QUICK)
    assert np.isnan(found.agreement.set_index("annotator").loc[HUMANS, "agreement"])
    assert set(found.pairs["annotator_b"]) == {"(longest)", "(first)"}


def test_bad_tables_are_refused():
    labels, human = planted(np.random.default_rng(6), n=10)
    with pytest.raises(DataError, match="No pair of outputs"):
        diagnose(labels, human.assign(output_1="other"))
    with pytest.raises(DataError, match="duplicate"):
        diagnose(pd.concat([labels, labels]), human)
    with pytest.raises(DataError, match="missing"):
        diagnose(labels.assign(preference=None), human)
    with pytest.raises(DataError, match="human labels has no column 'preference'"):
        align(labels, human.drop(columns="preference"))
