import numpy as np
import pytest
from evaluation_data import judges_as_pool, votes
from scipy.optimize import check_grad
from scipy.special import expit

from simfarm.annotators.calibration import calibrate_pool
from simfarm.errors import ConfigError, DataError
from simfarm.evaluation import calibration as c
from simfarm.resources import data_dir


def planted(
    rng, n_items=1500, raters=3, *, weights=(0.6, 0.3, 0.1), temperature=1.6, position=0.5, length=-0.4, hard=0
):
    k = len(weights)
    item = np.repeat(np.arange(n_items), raters)
    n = len(item)
    order = rng.choice([-1.0, 1.0], n)
    raw = rng.normal(0, 2, (n_items, k))[item]
    gap = rng.normal(0, 1, n_items)[item]
    member = expit(raw)
    soft = np.arange(k) >= hard
    member[:, ~soft] = np.round(member[:, ~soft])
    votes = c.Votes(np.zeros(n), item, item // 2, order, member, np.tile(gap[:, None], (1, k)) * soft, np.sign(gap))
    members = c.Members([f"m{i}" for i in range(k)], np.full(k, 1 / k), soft, soft, soft)
    theta = np.concatenate([np.log(np.array(weights) * k), [np.log(temperature), position, length, -1.5]])
    score = (rng.random(n) < c.probabilities(theta, votes, members)).astype(float)
    return c.Votes(score, *[getattr(votes, name) for name in votes.__slots__[1:]]), members, theta


def test_gradient():
    votes, members, theta = planted(np.random.default_rng(0), 40, hard=1)
    ones = np.ones(len(votes.score))
    error = check_grad(
        lambda t: c._objective(t, votes, members, ones)[0],
        lambda t: c._objective(t, votes, members, ones)[1],
        theta + 0.1,
    )
    assert error < 1e-3


def test_planted_parameters_are_recovered():
    votes, members, _ = planted(np.random.default_rng(1))
    found = c.calibrate(votes, members, bootstrap=60)
    table = found.parameters.set_index("parameter")
    for name, truth in (
        ("weight of m0", 0.6), ("weight of m1", 0.3), ("weight of m2", 0.1),
        ("temperature", 1.6), ("position", 0.5), ("length", -0.4),
    ):  # fmt: skip
        row = table.loc[name]
        slack = 0.35 * (row["ci_high"] - row["ci_low"])
        assert row["ci_low"] - slack <= truth <= row["ci_high"] + slack
        assert row["from_data"] > 0.8
    assert found.weights.sum() == pytest.approx(1)
    assert not found.notes


def test_held_out_figures_come_nearer_to_the_humans():
    votes, members, _ = planted(np.random.default_rng(2))
    table = c.calibrate(votes, members, bootstrap=10).held_out.set_index("figure")
    loss = table.loc[c.LOG_LOSS]
    assert loss["after"] < loss["before"]
    assert loss["change"] == pytest.approx(loss["after"] - loss["before"])
    assert loss["change_high"] < 0
    for figure in ("two votes agree (%)", "prefers the longer (%)", "prefers the first (%)"):
        row = table.loc[figure]
        assert abs(row["after"] - row["humans"]) < abs(row["before"] - row["humans"])
        assert row["humans_low"] < row["humans"] < row["humans_high"]


def test_flip_rate_of_members_without_probabilities():
    votes, members, _ = planted(np.random.default_rng(3), hard=3)
    found = c.calibrate(votes, members, bootstrap=10)
    assert found.flip == pytest.approx(expit(-1.5), abs=0.04)
    assert "temperature" not in set(found.parameters["parameter"])


def test_few_votes_stay_at_the_prior_and_say_so():
    votes, members, _ = planted(np.random.default_rng(4), 6)
    found = c.calibrate(votes, members, bootstrap=10)
    assert found.weights == pytest.approx(np.full(3, 1 / 3), abs=0.15)
    assert abs(np.log(found.temperature)) < 0.5
    assert "few" in found.notes[0]
    assert any("mostly the prior" in note for note in found.notes)


def test_weight_zero_stays_zero():
    votes, members, _ = planted(np.random.default_rng(5), 100)
    without = c.Members(members.names, np.array([0.5, 0.5, 0.0]), *[getattr(members, n) for n in members.__slots__[2:]])
    found = c.calibrate(votes, without, bootstrap=5)
    assert found.weights[2] == 0
    assert "weight of m2" not in set(found.parameters["parameter"])


def test_bad_input():
    votes, members, _ = planted(np.random.default_rng(6), 10)
    with pytest.raises(DataError, match="no human vote"):
        c.calibrate(votes.take(np.zeros(30, bool)), members)
    with pytest.raises(DataError, match="one instruction"):
        c.calibrate(votes.take(votes.cluster == 0), members)
    with pytest.raises(ConfigError, match="folds"):
        c.calibrate(votes, members, folds=1)


def test_real_judges_are_weighed_by_how_well_they_agree(shared_data):
    # a pool of hard verdicts, as prompted pools give them, in the order that the person saw
    table, members = judges_as_pool(shared_data)
    found = c.calibrate(table, members, bootstrap=10)
    weights = dict(zip(members.names, found.weights, strict=True))
    assert set(sorted(weights, key=weights.get)[-3:]) == {"claude", "gpt35", "gpt4"}
    assert min(weights["claude"], weights["gpt4"]) > 0.2 > 0.18 > max(weights["bard"], weights["vicuna-13b"])
    held = found.held_out.set_index("figure")
    # the judges agree more with one another than people do, and are made to disagree as much as people
    two = held.loc["two votes agree (%)"]
    assert abs(two["after"] - two["humans"]) < 3 < two["before"] - two["humans"]
    assert held.loc[c.LOG_LOSS, "change_high"] < 0
    assert set(found.parameters["parameter"]) == {*(f"weight of {name}" for name in members.names), "flip"}


def test_measuring_members_on_real_votes(shared_data, tmp_path):
    # members that measure form alone, so that no model has to be read
    folder = tmp_path / "pool"
    folder.mkdir()
    (folder / "scales.toml").write_text((data_dir("annotator_pools") / "embedded" / "scales.toml").read_text())
    members = {"long": ("length", 1.0), "short": ("length", -1.0), "rich": ("new_words", 1.0)}
    text = ['name = "form"', 'description = "Form alone."']
    for name, (feature, weight) in members.items():
        text += ["[[members]]", 'kind = "embedded"', f'name = "{name}"', f"weights = {{ {feature} = {weight} }}"]
    (folder / "pool.toml").write_text("\n".join(text))
    human = votes(shared_data, "pandalm")[2].drop(columns=["item_id", "subset"])
    found = calibrate_pool(folder, human, bootstrap=10)
    weights = dict(zip(members, found.fit.weights, strict=True))
    assert weights["rich"] > 0.4 > weights["short"]
    held = found.fit.held_out.set_index("figure")
    assert held.loc["agrees with a person (%)", "change_low"] > 0
    assert held.loc[c.LOG_LOSS, "change_high"] < 0
    assert found.fit.n_votes == 2100
    assert str(found.data_hash) in found.config.description
