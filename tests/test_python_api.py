"""`import simfarm as sf`: its names, how fast it is, what its functions do, and the examples that show it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import simfarm as sf
from simfarm import tables
from simfarm.errors import ConfigError, DataError

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != "toy.py")


def test_every_name_is_typed_lazy_and_documented() -> None:
    tree = ast.parse(Path(sf.__file__).read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == {name: f"simfarm.{home}" for name, home in sf._HOME.items()}
    assert sorted(typed) == sorted(sf.__all__) == list(sf.__all__)
    for name in sf.__all__:
        assert getattr(sf, name).__doc__, name
        assert name in dir(sf)
    with pytest.raises(AttributeError, match="Did you mean 'load_pool'"):
        sf.load_pol  # noqa: B018


def test_importing_simfarm_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'pandas', 'numpy', 'matplotlib', 'pydantic', 'aiohttp'}"
    code = f"import sys, simfarm; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    code = "import sys, simfarm as sf; [getattr(sf, name) for name in sf.__all__]; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_example_runs(script: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout and not done.stderr
    assert not list(tmp_path.iterdir())


def test_the_notebook_runs_and_holds_no_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads((EXAMPLES / "tour.ipynb").read_text("utf-8"))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    rates = names["rates"]
    assert isinstance(rates, pd.DataFrame) and list(rates["generator"]) == ["ppo", "best_of_n", "sft"]


def labels() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        {
            "instruction": f"q{i}", "input": "context" if i == 0 else "", "output_1": "base", "output_2": f"{name} {i}",
            "generator_1": "baseline", "generator_2": name, "preference": 1.0 + (rng.random() < p), "annotator": "a",
            "cost": 0.01,
        }
        for name, p in (("good", 0.9), ("bad", 0.2))
        for i in range(60)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_rank_orders_what_was_planted() -> None:
    ranking = sf.rank(labels())
    assert list(ranking["generator"]) == ["good", "baseline", "bad"]
    assert list(ranking["rank_low"]) == list(ranking["rank_high"]) == [1, 2, 3]
    assert "bootstrap_ci_low" in sf.rank(labels(), bootstrap=20)


def test_plan_study_by_assumption_and_by_pilot() -> None:
    assumed = sf.plan_study(5.0, price=0.5, raters=(1, 2))
    assert list(assumed.columns) == ["comparison", "difference", "raters", "instructions", "labels", "cost"]
    assert (assumed["cost"] == assumed["labels"] * 0.5).all()
    # a head-to-head share of 55 %: (1.96 + 0.84)^2 / 4 / 0.05^2 = 785, and a little for Student's t
    assert assumed["labels"].iloc[0] == pytest.approx(787, abs=2)
    pilot = sf.plan_study(pilot=labels())
    assert set(pilot["comparison"]) == {"good - baseline", "bad - baseline", "bad - good"}
    with pytest.raises(ConfigError, match="needs a difference"):
        sf.plan_study()
    even = labels().assign(preference=1.5)
    with pytest.raises(DataError, match="found no difference"):
        sf.plan_study(pilot=even)


def test_best_of_n_takes_a_long_table() -> None:
    samples = pd.DataFrame({"instruction": ["a", "a", "b", "b"], "r": [0.0, 1.0, 3.0, 2.0], "g": [0.2, 0.8, 0.1, 0.5]})
    curve = sf.best_of_n(samples, proxy="r", gold="g").set_index("n")
    assert curve.loc[1, "gold"] == pytest.approx(0.4)
    assert curve.loc[2, "gold"] == pytest.approx((0.8 + 0.1) / 2)
    shuffled = sf.best_of_n(samples.sample(frac=1, random_state=1), proxy="r", gold="g").set_index("n")
    assert shuffled["gold"].to_list() == pytest.approx(curve["gold"].to_list())
    figure = sf.plot_best_of_n(curve.reset_index())
    assert len(figure.axes) == 4
    with pytest.raises(DataError, match="from 1 to 2 samples"):
        sf.best_of_n(samples.head(3), proxy="r", gold="g")
    with pytest.raises(DataError, match="no column 'gold_ci_low'"):
        sf.plot_best_of_n(curve.reset_index().drop(columns="gold_ci_low"))


def test_run_opens_a_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from simfarm.experiments import runner
    from simfarm.experiments.rundir import RunDirectory

    seen = []

    def fake(config: object, out: Path) -> RunDirectory:
        seen.append((config, out))
        (out / "config.json").parent.mkdir(parents=True, exist_ok=True)
        (out / "config.json").write_text('{"config": {"name": "quickstart"}}')
        done = RunDirectory.__new__(RunDirectory)
        done.path = out
        return done

    monkeypatch.setattr(runner, "run_experiment", fake)
    monkeypatch.chdir(tmp_path)
    found = sf.run("quickstart", seed=3, settings=["ppo.steps=2"])
    assert found.folder == Path("runs/quickstart-seed3") and found.setting("name") == "quickstart"
    assert seen[0][0].ppo.steps == 2


def test_to_alpaca_eval_writes_its_two_formats() -> None:
    table = sf.to_alpaca_eval(labels())
    assert list(table.columns) == [
        "instruction", "output_1", "generator_1", "output_2", "generator_2", "dataset", "annotator", "preference",
        "price_per_example",
    ]  # fmt: skip
    assert table["instruction"].iloc[0] == "q0\n\ncontext" and table["dataset"].iloc[0] == "simfarm"
    # alpaca_eval: a win of generator_2 is preference 2, its win rate the mean of preference - 1
    rates = sf.win_rates(labels(), baseline="baseline").set_index("generator")["win_rate"]
    assert 100 * (table[table["generator_2"] == "good"]["preference"] - 1).mean() == pytest.approx(rates["good"])
    outputs = pd.DataFrame({"instruction": ["q"], "output": ["a"], "generator": ["m"], "input": [None]})
    assert sf.to_alpaca_eval(outputs).to_dict("records") == [
        {"dataset": "simfarm", "instruction": "q", "output": "a", "generator": "m"}
    ]
    with pytest.raises(DataError):
        sf.to_alpaca_eval(pd.DataFrame({"a": [1]}))
    assert tables.comparisons(table)[0].instruction == "q0\n\ncontext"
