"""Experiments end to end on a tiny model: results, resume, bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from tiny import save_tiny

from simfarm import draws
from simfarm.annotators.costs import judgments
from simfarm.annotators.pool import Pool, load_pool
from simfarm.annotators.pool_config import pool_folder
from simfarm.cli import cli
from simfarm.errors import ConfigError, MissingExtraError, RunError, SimfarmError, UnknownNameError
from simfarm.experiments.config import load_experiment
from simfarm.experiments.judging import gold_scores
from simfarm.experiments.rundir import RunDirectory
from simfarm.experiments.runner import plan, run_experiment
from simfarm.experiments.stages import stages_of

TINY = """
name = "tiny"
[data]
preference = "{folder}/instructions.jsonl"
unlabeled = "{folder}/instructions.jsonl"
eval = "{folder}/instructions.jsonl"
[policy]
model = "hf/{folder}/model"
trainable_layers = 2
max_new_tokens = 8
batch_size = 8
[annotation]
pool = "fake-biased"
responses = 4
held_out = 0.25
[best_of_n]
n = 3
[expert_iteration]
n = 2
[ppo]
steps = 4
rollouts = 8
minibatch = 4
checkpoint_every = 1
[evaluation]
pool = "fake-biased"
"""


@pytest.fixture(scope="module")
def tiny_toml(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder / "model")
    rows = [
        {"instruction": f"say {word} and {word} again"}
        for word in ["red", "green", "blue", "black", "white", "pink", "grey", "tan"]
    ]
    (folder / "instructions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "tiny.toml").write_text(TINY.format(folder=folder))
    return folder / "tiny.toml"


@pytest.fixture(scope="module")
def finished(tiny_toml: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    return run_experiment(load_experiment(str(tiny_toml)), out).path


def results(folder: Path) -> dict[str, object]:
    """Everything a run concludes, without the times it took."""
    labels = [
        pd.read_parquet(folder / name).drop(columns="latency")
        for name in ("labels.parquet", "evaluation/labels.parquet", "evaluation/judge.parquet")
    ]
    ppo = [json.loads(line) for line in (folder / "methods/ppo/metrics.jsonl").read_text().splitlines()]
    return {
        "labels": [table.to_json() for table in labels],
        "outputs": {p.name: p.read_text() for p in (folder / "outputs").glob("*.json")},
        "ppo": [{k: v for k, v in row.items() if k != "seconds"} for row in ppo],
        "curve": (folder / "overoptimization/best_of_n.csv").read_text(),
        "win rates": (folder / "evaluation/win_rates.csv").read_text(),
        "reward": (folder / "reward/accuracy.json").read_text(),
        "rewards": pd.read_parquet(folder / "evaluation/output_rewards.parquet").to_json(),
    }


def test_a_run_leaves_what_it_should(finished: Path) -> None:
    rates = pd.read_csv(finished / "evaluation/win_rates.csv")
    assert set(rates["generator"]) == {"sft", "best_of_n", "expert_iteration", "ppo"}
    assert rates["win_rate"].between(0, 100).all() and (rates["n_instructions"] == 8).all()
    assert pd.read_csv(finished / "evaluation/correlations.csv")["n"].eq(4).all()
    outputs = json.loads((finished / "outputs/ppo.json").read_text())
    assert {"instruction", "output", "generator"} <= outputs[0].keys() and len(outputs) == 8
    labels = pd.read_parquet(finished / "labels.parquet")
    assert len(labels) == 16 and labels["held_out"].sum() == 4
    curve = pd.read_csv(finished / "overoptimization/best_of_n.csv")
    assert list(curve["n"]) == [1, 2, 3]
    assert (finished / "report.html").is_file() and (finished / "report.md").is_file()
    assert json.loads((finished / "config.json").read_text())["prices"] == {"pool fake-biased": "free (this machine)"}
    assert "price of pool fake-biased" in (finished / "report.html").read_text()


def test_outputs_have_rewards_and_the_noisy_annotators_verdicts(finished: Path) -> None:
    rewards = pd.read_parquet(finished / "evaluation/output_rewards.parquet")
    assert rewards.groupby("generator").size().to_dict() == dict.fromkeys(
        ["baseline", "sft", "best_of_n", "expert_iteration", "ppo"], 8
    )
    assert rewards["reward"].notna().all()
    drawn = pd.read_parquet(finished / "samples/eval.parquet").merge(
        pd.read_parquet(finished / "samples/eval_rewards.parquet"), on=["id", "sample"]
    )
    best = drawn[drawn["sample"] != "baseline"].groupby("instruction")["reward"].max()
    chosen = rewards[rewards["generator"] == "best_of_n"].set_index("instruction")["reward"]
    assert chosen.to_dict() == best.to_dict()
    clean, noisy = (pd.read_parquet(finished / f"evaluation/{name}.parquet") for name in ("labels", "judge"))
    assert (noisy["preference_clean"] == clean["preference"]).all()
    assert 0 < noisy["flipped"].sum() < len(noisy)
    assert (noisy["preference"] == clean["preference"].where(~noisy["flipped"], 3 - clean["preference"])).all()
    assert (finished / "figures/goodhart.svg").is_file()


def test_another_pool_for_labels_is_asked_of_the_outputs_too(tiny_toml: Path, tmp_path: Path) -> None:
    # the same pool under another name: asked anew, it must say what the flips of its known verdicts give
    copy = shutil.copytree(pool_folder("fake-biased"), tmp_path / "twin")
    settings = ['methods=["sft"]']
    other = load_experiment(str(tiny_toml), [*settings, f"annotation.pool={copy}"])
    work = plan(other)
    asked = work[work["stage"] == "judgements"].set_index("what")["count"].to_dict()
    assert asked == {
        "verdicts by fake-biased, no noise": 8 * 2,
        "verdicts by fake-biased on all samples (gold)": 8 * 2 * 4,
        f"verdicts by {copy}, flip 0.25": 8 * 2,
    }
    own = load_experiment(str(tiny_toml), settings)
    judges = []
    for name, config in (("other", other), ("own", own)):
        out = run_experiment(config, tmp_path / name).path
        judges.append(pd.read_parquet(out / "evaluation/judge.parquet"))
    columns = ["instruction", "preference", "preference_clean", "flipped", "annotator"]
    pd.testing.assert_frame_equal(judges[0][columns], judges[1][columns])


def test_the_same_seed_gives_the_same_results(tiny_toml: Path, finished: Path, tmp_path: Path) -> None:
    again = run_experiment(load_experiment(str(tiny_toml)), tmp_path / "again").path
    assert results(again) == results(finished)
    other = run_experiment(load_experiment(str(tiny_toml), seed=1), tmp_path / "other").path
    assert results(other)["outputs"] != results(finished)["outputs"]


def test_a_config_written_by_a_run_runs_again(finished: Path) -> None:
    assert load_experiment(str(finished / "config.json")).policy.max_new_tokens == 8


def test_a_finished_run_is_only_opened(tiny_toml: Path, finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    run_experiment(load_experiment(str(tiny_toml)), finished)
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


def test_a_killed_run_ends_as_an_uninterrupted_one(tiny_toml: Path, finished: Path, tmp_path: Path) -> None:
    """kill -9 at some moment of every stage; the last start finishes."""
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "simfarm", "run", str(tiny_toml), "--out", str(out)]
    seconds = json.loads((finished / "stages.json").read_text())
    stages = stages_of(load_experiment(str(tiny_toml)))
    for stage, following in zip(stages, [*stages[1:], None], strict=True):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        blow = threading.Timer(draws.uniform(0, "kill", stage) * seconds[stage], process.kill)
        for line in process.stderr:
            said = line.strip().partition("] ")[2].replace(" ", "_")
            if said == stage:
                blow.start()
            # a stage that ended before the blow: at once, so that the next is left to be killed as well
            elif said == following:
                process.kill()
        blow.cancel()
        process.wait()
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert results(out) == results(finished)
    assert not list(out.rglob("unit-*"))


def test_a_run_at_work_is_left_alone(tiny_toml: Path, tmp_path: Path) -> None:
    config = load_experiment(str(tiny_toml))
    with RunDirectory(tmp_path, config).at_work({}, {}), pytest.raises(RunError, match="is at work in"):
        run_experiment(config, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "config.json"}


def test_a_changed_key_is_named_and_nothing_is_touched(tiny_toml: Path, finished: Path) -> None:
    before = (finished / "config.json").read_bytes()
    with pytest.raises(RunError, match=r"ppo\.steps was 4 and is now 5"):
        run_experiment(load_experiment(str(tiny_toml), ["ppo.steps=5"]), finished)
    assert (finished / "config.json").read_bytes() == before


def test_changed_instructions_are_named(tiny_toml: Path, finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    stages = json.loads((copy / "stages.json").read_text())
    del stages["report"]
    (copy / "stages.json").write_text(json.dumps(stages))
    record = json.loads((copy / "config.json").read_text())
    name = next(key for key in record["inputs"] if key.startswith("instructions"))
    record["inputs"][name] = "0" * 64
    (copy / "config.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="another content of: instructions"):
        run_experiment(load_experiment(str(tiny_toml)), copy)


def test_own_outputs_join_the_comparison(tiny_toml: Path, finished: Path, tmp_path: Path) -> None:
    rows = [
        {"instruction": row["instruction"], "output": row["instruction"]}
        for row in json.loads((finished / "outputs/sft.json").read_text())
    ]
    (tmp_path / "parrot.json").write_text(json.dumps(rows))
    settings = ['methods=["sft"]', f"outputs.parrot={tmp_path}/parrot.json"]
    out = run_experiment(load_experiment(str(tiny_toml), settings), tmp_path / "run").path
    rates = pd.read_csv(out / "evaluation/win_rates.csv").set_index("generator")["win_rate"]
    # a fake annotator likes words of the instruction: its echo wins
    assert rates["parrot"] > 75


def test_a_name_may_hold_dots() -> None:
    assert load_experiment("quickstart", ["outputs.gpt-4.1=x.json"]).outputs == {"gpt-4.1": "x.json"}


def test_a_slip_in_a_file_read_late_is_told_before_the_run_begins(tiny_toml: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('[{"instruction": "another", "output": "x"}]')
    for setting, message in (
        (f"outputs.mine={tmp_path}/mine.json", "not in both tables"),
        ("evaluation.human_ranking=alpcafarm", "Did you mean 'alpacafarm'"),
    ):
        with pytest.raises(SimfarmError, match=message):
            run_experiment(load_experiment(str(tiny_toml), [setting]), tmp_path / "run")
        assert not any((tmp_path / "run").iterdir())


def test_the_plan_counts_without_doing(tiny_toml: Path) -> None:
    work = plan(load_experiment(str(tiny_toml))).set_index("stage")
    assert work.loc["preference_samples", "count"] == 32
    assert work.loc["ppo", "tokens"] == 4 * 8 * 8
    assert list(work.loc["judgements", "count"]) == [8 * 2 * 4, 8 * 2 * 3 * 4]


@pytest.mark.parametrize("pool", ["fake-biased", "alpacafarm"])
def test_the_plan_counts_the_gold_verdicts_that_are_asked(
    tiny_toml: Path, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []

    def annotate(self: Pool, table: pd.DataFrame, **draws: Any) -> pd.DataFrame:
        draws = {key: value for key, value in draws.items() if key not in ("client", "progress", "soft")}
        shown.append(judgments(self.plan(table, **draws)))
        rows = table.loc[table.index.repeat(shown[-1] // len(table) // 2)]
        return rows.assign(preference=1.0, annotator=self.config.members[0].name)

    monkeypatch.setattr(Pool, "annotate", annotate)
    samples = pd.DataFrame({"instruction": map(str, range(8 * 3)), "output_1": "a", "output_2": "b"})
    gold_scores(load_pool(pool), samples, seed=0, orders="both")
    settings = [f"evaluation.pool={pool}", "overoptimization.every=3"]
    work = plan(load_experiment(str(tiny_toml), settings)).set_index("what")["count"]
    assert work[f"verdicts by {pool} on all samples (gold)"] == shown[0]
    # PPO's four steps are looked at before the first, after the third and after the last
    assert work[f"verdicts by {pool} along PPO (gold)"] == shown[0] and work["responses looked at"] == 8 * 2


def test_a_missing_vllm_is_said_before_anything_is_done(
    tiny_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match=r"simfarm\[vllm\]"):
        run_experiment(load_experiment(str(tiny_toml), ["ppo.rollout=vllm"]), tmp_path / "run")
    assert not (tmp_path / "run/samples").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["ppo.lrr=1"], "Did you mean 'learning_rate'"),
        (["pppo.steps=1"], "Did you mean 'ppo'"),
        (["ppo.steps"], "takes key=value"),
        (["ppo.steps=0"], "greater than or equal to 1"),
        (["ppo.steps=many"], "valid integer"),
        (['methods=["sft", "pppo"]'], "methods"),
        (["annotation.responses=3", "annotation.pairs=disjoint"], "even number"),
        (["outputs.ppo=x.json"], "makes itself"),
        (["seed.x=1"], "seed"),
        (["outputs.a/b=x.json"], "leave out slashes"),
        (["expert_iteration.rollout=vllm"], "transformers draws its candidates"),
    ],
)
def test_bad_settings_are_explained(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment("quickstart", settings)


def test_an_unknown_experiment_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'quickstart'"):
        load_experiment("quikstart")


def test_values_are_toml_and_bare_words_are_text() -> None:
    config = load_experiment(
        "quickstart", ["ppo.learning_rate=2e-5", "evaluation.pool=fake-biased", "data.limit=4", 'methods=["sft"]']
    )
    assert config.ppo.learning_rate == 2e-5 and config.evaluation.pool == "fake-biased"
    assert config.data.limit_of("eval") == config.data.limit_of("preference") == 4 and config.methods == ["sft"]


def test_a_foreign_or_unusable_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="holds no run of simfarm"):
        run_experiment(load_experiment("quickstart"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunError, match="cannot be used"):
        run_experiment(load_experiment("quickstart"), tmp_path / "thesis.tex" / "run")


def test_errors_reach_the_terminal_as_one_paragraph_with_exit_code_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "simfarm", "run", "quickstart", "--set", "ppo.lrr=1"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ") and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_dry_run_prints_the_plan() -> None:
    done = CliRunner().invoke(cli, ["run", "quickstart", "--dry-run"])
    assert done.exit_code == 0 and "rollouts" in done.output
