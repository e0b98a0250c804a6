import json
import shutil

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from tiny import save_tiny

from simfarm.cli import cli
from simfarm.cli.overopt import overopt
from simfarm.cli.run import run
from simfarm.errors import ConfigError, DataError, RunError, UnknownNameError
from simfarm.experiments.config import load_config, load_experiment
from simfarm.experiments.laboratory import grammar
from simfarm.experiments.laboratory.analysis import analyse
from simfarm.experiments.laboratory.runner import plan_laboratory, run_laboratory
from simfarm.experiments.runner import run_experiment
from simfarm.overoptimization.curves import best_of_n_of, curves_of_run, samples_matrix, spaced
from simfarm.report.laboratory import family_table

TINY = [
    "seed=0", "seeds=2", "processes=1", "prompts=4", "samples=20", "members=2", "model.steps=6", "model.hidden_size=16",
    "model.batch_size=16", "ppo.steps=4", "ppo.rollouts=8", "ppo.minibatch=8", "base.labels=40", "reward.epochs=1",
    'families={noise=[{flip=0.0},{}],ensemble=[{},{rule="wco"}]}',
]  # fmt: skip


def worth(*responses, thing="describe the old tiger"):
    return grammar.worth(np.array([grammar.traits(thing, r) for r in responses]))


def test_gold_is_computed_from_the_words():
    facts = ["", "has claws", "has claws has fur", "has claws has claws", "has wheels"]
    assert worth(*facts) == pytest.approx([0, 1, 1.5, 0.9, -0.1])
    # a manner helps up to an eighth of the words, is worth nothing at a quarter, and at a third is as bad as it gets
    seven = "has claws has fur has teeth old"
    base = 1 + 1 / 2 + 1 / 3
    praise = worth(*(" ".join([seven, *["lovely"] * k]) for k in (0, 1))) - base
    assert praise == pytest.approx([0, 3])
    more = worth("has claws lovely old has fur lovely old", "has claws lovely", *["lovely " * k for k in (1, 9)])
    assert more == pytest.approx([1.5, 1 + 3 * (1 - (8 / 3 - 1)), -2, -2])
    # a reader who likes twice as much
    half = np.array([grammar.traits("describe the old tiger", "has claws lovely old")])
    assert grammar.worth(half, (2.0, 1.0)) - 1 == pytest.approx([3])


def test_writers_write_what_the_vocabulary_holds():
    rng = np.random.default_rng(0)
    for instruction in grammar.instructions():
        words = grammar.write(instruction, rng).split()
        assert {*words, *instruction.split()} <= set(grammar.VOCABULARY) and len(words) <= grammar.LONGEST
    assert len(set(grammar.VOCABULARY)) == len(grammar.VOCABULARY)


@pytest.fixture(scope="module")
def config():
    return load_config("overopt-small", TINY)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    return run_laboratory(config, tmp_path_factory.mktemp("lab") / "run").path


def test_a_laboratory_writes_curves_verdicts_and_a_report(config, finished):
    verdicts = pd.read_csv(finished / "overoptimization/verdicts.csv")
    assert list(verdicts["family"].unique()) == ["noise", "ensemble"]
    assert set(verdicts["arm"]) == {"0 % flips", "25 % flips", "one model", "wco of 2"}
    assert verdicts["verdict"].str.len().min() > 20
    curve = pd.read_csv(finished / "overoptimization/best_of_n.csv")
    one = curve[(curve["family"] == "noise") & (curve["arm"] == "0 % flips")]
    assert list(one["n"]) == spaced(20) and set(one["seeds"]) == {2}
    assert (one["gold_ci_low"] <= one["gold"]).all() and one["proxy"].is_monotonic_increasing
    # best of one is the initial policy, whatever the arm
    assert np.ptp(curve[curve["n"] == 1]["gold"]) < 1e-9
    for name in ("report.md", "report.html", "figures/noise.svg", "figures/ensemble.png"):
        assert (finished / name).is_file()
    page = (finished / "report.html").read_text("utf-8")
    assert "<script src" not in page and "http" not in page.split("</style>")[1].split("<svg")[0]


def test_the_report_is_written_again(finished):
    before = (finished / "report.html").read_bytes()
    (finished / "report.html").unlink()
    out = CliRunner().invoke(cli, ["report", str(finished)], catch_exceptions=False)
    assert "25 % flips" in out.output and "minus first arm" in out.output
    assert (finished / "report.html").read_bytes() == before
    begun = finished.parent / "begun"
    begun.mkdir()
    shutil.copy(finished / "config.json", begun)
    early = CliRunner().invoke(cli, ["report", str(begun)])
    assert isinstance(early.exception, RunError) and "2 of 2 seeds are still to do" in str(early.exception)
    missing = CliRunner().invoke(cli, ["report", str(finished / "no")])
    assert isinstance(missing.exception, RunError) and "holds no run" in str(missing.exception)


def test_arms_are_compared_with_the_first_seed_by_seed(config):
    arms = config.arms()
    rows = [
        {"n": n, "kl": kl, "proxy": proxy, "gold": gold + seed, "seed": seed}
        for seed in (0, 1, 2)
        for n, kl, proxy, gold in ((1, 0.0, 0.0, 0.0), (2, 0.2, 1.0, 1.0), (4, 0.6, 2.0, 0.5))
    ]
    first = pd.DataFrame(rows)
    second = first.assign(gold=first["gold"] - 0.25 * (first["n"] == 4))
    family = analyse("x", [{"flip": 0.0}, {}], config, {(arms[0], "best_of_n"): first, (arms[1], "best_of_n"): second})
    row = family.verdicts().set_index("arm").loc["25 % flips"]
    assert row["against_first"] == pytest.approx(-0.25)
    assert row["against_first_ci_low"] == pytest.approx(row["against_first_ci_high"])
    assert list(family.against_first) == [("25 % flips", "best_of_n")]
    shown = family_table(family)
    place = [column.header for column in shown.columns].index("end, minus first arm")
    assert [row[place] for row in shown.rows] == [None, "-0.25 (-0.25 to -0.25)"]
    assert "paired by seed" in shown.caption


def test_it_resumes_and_computes_the_same(config, finished, tmp_path):
    whole = {p.relative_to(finished): p for p in (finished / "seeds").rglob("*.parquet")}
    run_laboratory(config, tmp_path / "run")
    stages = json.loads((tmp_path / "run/stages.json").read_text("utf-8"))
    # as if it had been cut off in the second seed
    (tmp_path / "run/stages.json").write_text(json.dumps({"seed 0": stages["seed 0"]}), "utf-8")
    cut = [path for path in sorted(whole) if path.parts[1] == "1"][2:]
    for path in cut:
        (tmp_path / "run" / path).unlink()
    kept = {p: (tmp_path / "run" / p).stat().st_mtime_ns for p in whole if p not in cut}
    run_laboratory(config, tmp_path / "run")
    for path, original in whole.items():
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "run" / path), pd.read_parquet(original))
    assert kept == {p: (tmp_path / "run" / p).stat().st_mtime_ns for p in kept}
    with pytest.raises(RunError, match="another config"):
        run_laboratory(load_config("overopt-small", [*TINY, "seed=3"]), finished)


def test_more_noise_flips_the_same_pairs_and_more(config):
    from simfarm.experiments.laboratory.config import Arm
    from simfarm.experiments.laboratory.world import World

    world = World(config, 0)
    clean, some, more = (world.labels(Arm(flip=f, labels=40)).p_first for f in (0.0, 0.2, 0.5))
    flipped = clean != some
    assert 0 < flipped.sum() < (clean != more).sum() and ((clean != more)[flipped]).all()
    assert not np.array_equal(clean, world.labels(Arm(flip=0.0, labels=40, judge="pool")).p_first)


def test_config_errors():
    with pytest.raises(ConfigError, match=r"'flipp'.*Did you mean 'flip'"):
        load_config("overopt-small", ["families={x=[{flipp=0.1}]}"])
    with pytest.raises(ConfigError, match="trains 9 of 3 layers"):
        load_config("overopt-small", ["families={x=[{layers=9}]}"])
    with pytest.raises(ConfigError, match="seedz"):
        load_config("overopt-small", ["seedz=1"])
    with pytest.raises(ConfigError, match="simfarm run overopt-small"):
        load_experiment("overopt-small")


def test_dry_run_counts_and_does_nothing(tmp_path):
    out = CliRunner().invoke(run, ["overopt-small", "--dry-run", "--out", str(tmp_path / "x")], catch_exceptions=False)
    assert "reward models trained" in out.output and not (tmp_path / "x").exists()
    work = plan_laboratory(load_config("overopt-small", TINY)).set_index("what")["count"]
    assert work["reward models trained"] == 2 * 3 and work["rollouts"] == 2 * 3 * 4 * 8


def samples(tmp_path, name="samples.csv", instructions=40, n=64):
    rng = np.random.default_rng(0)
    proxy = rng.normal(size=(instructions, n))
    # gold is good up to a proxy of one, and harmed beyond
    gold = 1 - np.abs(proxy - 1) + 0.3 * rng.normal(size=proxy.shape)
    table = pd.DataFrame(
        {
            "instruction": np.repeat([f"i{k}" for k in range(instructions)], n),
            "rm": proxy.ravel(),
            "human": gold.ravel(),
        }
    )
    table.sample(frac=1, random_state=0).to_csv(tmp_path / name, index=False)
    return tmp_path / name


def test_overopt_of_a_file(tmp_path):
    file = samples(tmp_path)
    arguments = ["--samples", str(file), "--proxy", "rm", "--gold", "human"]
    shown = CliRunner().invoke(overopt, [*arguments, "--figure", str(tmp_path / "x.svg")], catch_exceptions=False)
    assert "Gold peaks at n ≈" in shown.output and "d(α − βd)" in shown.output
    assert (tmp_path / "x.svg").read_text("utf-8").startswith("<?xml")
    found = json.loads(CliRunner().invoke(overopt, [*arguments, "--json"], catch_exceptions=False).output)
    verdict = found["verdicts"][0]
    assert verdict["falls"] and 2 <= verdict["peak"] <= 16 and verdict["fall_ci_high"] < 0
    assert len(found["curves"]["best_of_n"]) == 64 and found["fits"][0]["beta"] > 0


def test_overopt_refuses_what_it_cannot_read(tmp_path):
    file = samples(tmp_path, instructions=3, n=5)
    with pytest.raises(UnknownNameError, match="Did you mean 'human'"):
        CliRunner().invoke(
            overopt, ["--samples", str(file), "--proxy", "rm", "--gold", "humans"], catch_exceptions=False
        )
    with pytest.raises(ConfigError, match="--proxy COLUMN"):
        CliRunner().invoke(overopt, ["--samples", str(file)], catch_exceptions=False)
    with pytest.raises(ConfigError, match="Give a run directory"):
        CliRunner().invoke(overopt, [], catch_exceptions=False)
    with pytest.raises(RunError, match="is not a run directory"):
        curves_of_run(tmp_path)
    table = pd.read_csv(file)
    with pytest.raises(DataError, match="from 4 to 5 samples"):
        samples_matrix(table.iloc[1:], "rm", "human", ["instruction"])
    with pytest.raises(DataError, match="'high'"):
        samples_matrix(table.assign(rm=["high", *table["rm"][1:]]), "rm", "human", ["instruction"])


def test_a_missing_gold_leaves_its_instruction_out_and_says_so():
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(2, 10, 8))
    gold[3, 2] = np.nan
    curve = best_of_n_of(proxy, gold)
    assert curve.notes == ("1 instructions with a missing score are left out",)
    assert curve.fit is not None and curve.fit.n_clusters == 9


def test_overopt_of_a_run_with_gold_along_training(tmp_path):
    rng = np.random.default_rng(1)
    ids, n = [f"i{k}" for k in range(30)], 16
    index = pd.MultiIndex.from_product([ids, [f"{k:05}" for k in range(n)]], names=["id", "sample"]).to_frame(
        index=False
    )
    reward = rng.normal(size=len(index))
    (tmp_path / "config.json").write_text("{}", "utf-8")
    for folder in ("samples", "evaluation", "overoptimization", "methods/ppo"):
        (tmp_path / folder).mkdir(parents=True)
    index.assign(reward=reward).to_parquet(tmp_path / "samples/eval_rewards.parquet")
    index.assign(gold=0.5 + 0.1 * reward).to_parquet(tmp_path / "evaluation/sample_gold.parquet")
    log = pd.DataFrame({"step": range(30), "kl": np.linspace(0, 9, 30), "reward": np.linspace(0, 1, 30)})
    log.to_json(tmp_path / "methods/ppo/metrics.jsonl", orient="records", lines=True)
    only_proxy = curves_of_run(tmp_path)[1]
    assert only_proxy.peak is None and "gold was not judged" in only_proxy.said()
    steps = np.arange(0, 31, 3)
    d = np.sqrt(0.3 * steps)
    looks = pd.DataFrame(
        [
            {"id": i, "step": s, "kl": 0.3 * s + 0.1 * rng.normal(), "proxy": s, "gold": 0.5 + 0.1 * x - 0.04 * x * x}
            for i in ids
            for s, x in zip(steps, d + 0.1 * rng.normal(), strict=True)
        ]
    )
    looks.to_parquet(tmp_path / "overoptimization/ppo.parquet")
    best, ppo = curves_of_run(tmp_path)
    assert best.peak.position == best.peak.end == n and "No over-optimization" in best.said()
    assert ppo.peak.falls and 0 < ppo.peak.position < 30 and ppo.fit.form == "rl"


SMALL = """
name = "smollm2 in small"
methods = ["best_of_n", "ppo"]
[data]
preference = "{folder}/instructions.jsonl"
unlabeled = "{folder}/instructions.jsonl"
eval = "{folder}/instructions.jsonl"
[policy]
model = "hf/{folder}/model"
trainable_layers = 2
max_new_tokens = 6
batch_size = 16
[annotation]
pool = "fake-biased"
held_out = 0.25
[best_of_n]
n = 6
[ppo]
steps = 6
rollouts = 8
minibatch = 4
checkpoint_every = 2
[overoptimization]
every = 2
[evaluation]
pool = "fake-biased"
"""


def test_gold_is_judged_along_ppo_and_resumes(tmp_path):
    save_tiny(tmp_path / "model")
    rows = [
        {"instruction": f"say {word} and {word} again"} for word in ("red", "green", "blue", "black", "white", "tan")
    ]
    (tmp_path / "instructions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "small.toml").write_text(SMALL.format(folder=tmp_path))
    config = load_experiment(str(tmp_path / "small.toml"))
    done = run_experiment(config, tmp_path / "run").path
    looks = pd.read_parquet(done / "overoptimization/ppo.parquet")
    assert sorted(set(looks["step"])) == [0, 2, 4, 6] and len(looks) == 4 * len(rows)
    assert (looks[looks["step"] == 0]["kl"] == 0).all() and looks["gold"].between(0, 1).all()
    best, ppo = curves_of_run(done)
    assert best.peak is not None and ppo.peak is not None and ppo.peak.end == 6
    # cut off while the pool judged: only that is done again
    (done / "overoptimization/ppo.parquet").unlink()
    stages = json.loads((done / "stages.json").read_text("utf-8"))
    (done / "stages.json").write_text(json.dumps({k: v for k, v in stages.items() if k != "training_gold"}), "utf-8")
    run_experiment(config, done)
    pd.testing.assert_frame_equal(pd.read_parquet(done / "overoptimization/ppo.parquet"), looks)


def test_overopt_smollm2_is_what_the_docs_say():
    config = load_experiment("overopt-smollm2")
    assert config.best_of_n.n == 64 and config.data.limit_of("eval") == 72 and config.overoptimization.every is not None
