"""`simfarm compare`: runs side by side, in words, tables and a page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from test_report import HOSTILE, Page, build

from simfarm import tables
from simfarm.cli import cli
from simfarm.errors import DataError, RunError
from simfarm.report.compare import compare_runs, run_names, write_comparison


def change(folder: Path, key: str, value: object) -> Path:
    record = json.loads((folder / "config.json").read_text("utf-8"))
    *path, last = key.split(".")
    section = record["config"]
    for part in path:
        section = section[part]
    section[last] = value
    (folder / "config.json").write_text(json.dumps(record), "utf-8")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    first = build(tmp_path / "first", rates={"ppo": 0.5, "sft": 0.5})
    second = build(tmp_path / "second", rates={"ppo": 0.9, "sft": 0.5, "own": 0.2})
    change(second, "annotation.flip", 0.1)
    return [first, second]


def test_differences_are_paired_and_have_the_sign_of_later_minus_first(runs: list[Path]) -> None:
    found = compare_runs(runs)
    table = found.differences.set_index("method")
    assert set(table.index) == {"ppo", "sft"}
    assert table.loc["ppo", "difference"] == pytest.approx(100 * (36 - 20) / 40)
    assert table.loc["ppo", "ci_low"] > 0 and table.loc["ppo", "p_adjusted"] < 0.001
    assert table.loc["sft", "difference"] == 0 and table.loc["sft", "p_adjusted"] == 1
    back = compare_runs(runs[::-1]).differences.set_index("method")
    assert back.loc["ppo", "difference"] == -table.loc["ppo", "difference"]
    assert back.loc["ppo", "ci_low"] == -table.loc["ppo", "ci_high"]
    assert any(note.startswith("ppo in second is +40.0 points from first") for note in found.notes)


def test_config_differences_are_named(runs: list[Path]) -> None:
    found = compare_runs(runs)
    settings = found.settings.set_index("key")
    assert settings.loc["annotation.flip"].to_list() == ["0.25", "0.1"]
    assert "methods" in settings.index and "seed" not in settings.index
    assert any("annotation.flip" in note for note in found.notes)
    assert found.seeds.empty


def test_runs_that_differ_in_their_seed_are_averaged(tmp_path: Path) -> None:
    folders = [
        change(build(tmp_path / f"s{k}", rates={"ppo": rate, "sft": 0.5}), "seed", k)
        for k, rate in enumerate((0.5, 0.6, 0.7))
    ]
    found = compare_runs(folders)
    row = found.seeds.set_index("method").loc["ppo"]
    assert (row["mean"], row["n_seeds"]) == (pytest.approx(60), 3)
    assert row["sd"] == pytest.approx(10)
    # Student's t with two degrees of freedom: 4.303
    assert row["ci_high"] - row["mean"] == pytest.approx(4.3027 * 10 / 3**0.5, rel=1e-4)
    assert "The runs differ in their seed alone: the spread between them is chance" in found.notes


def test_what_cannot_be_compared_is_said(runs: list[Path], tmp_path: Path) -> None:
    change(runs[1], "evaluation.pool", "other")
    for folder, said in zip(runs, ("a", "b"), strict=True):
        tables.write_table(
            pd.DataFrame({"instruction": ["q"], "output": [said], "generator": "baseline"}),
            folder / "outputs/baseline.json",
        )
    notes = " ".join(compare_runs(runs).notes)
    assert "judged by different pools" in notes and "its own baseline's outputs" in notes
    with pytest.raises(DataError, match="needs two runs or more; 1 given"):
        compare_runs(runs[:1])
    with pytest.raises(DataError, match="is given twice"):
        compare_runs([runs[0], runs[0]])
    with pytest.raises(RunError, match="holds no run"):
        compare_runs([runs[0], tmp_path])


def test_runs_of_one_name_are_told_apart_by_their_folders() -> None:
    assert run_names([Path("/x/a/run"), Path("/x/b/run")]) == ["a/run", "b/run"]
    assert run_names([Path("/x/a"), Path("/x/b")]) == ["a", "b"]


def test_the_page_is_self_contained_and_the_same_twice(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    folders = [
        build(tmp_path / hostile, rates={hostile: 0.5, "ppo": 0.8}, texts=HOSTILE, n=10),
        build(tmp_path / "bare", rates={"other": 0.5}, extras=False, n=6),
    ]
    found = compare_runs(folders)
    write_comparison(found, tmp_path / "a.html")
    write_comparison(compare_runs(folders), tmp_path / "b.html")
    text = (tmp_path / "a.html").read_text("utf-8")
    assert text == (tmp_path / "b.html").read_text("utf-8")
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag in ("img", "link", "iframe")]
    assert "No method is in two runs" in text
    assert "default-src 'none'" in text and len(page.scripts) == 1


def test_the_verb_prints_tables_json_and_csv(runs: list[Path], tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["compare", *map(str, runs), "--out", str(tmp_path / "c.html")])
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines()[:-1])) <= 100
    assert "annotation.flip" in result.output and (tmp_path / "c.html").is_file()
    result = CliRunner().invoke(cli, ["compare", *map(str, runs), "--json"])
    assert {"methods", "differences", "summary", "settings", "seeds"} <= json.loads(result.output).keys()
    result = CliRunner().invoke(cli, ["compare", *map(str, runs), "--csv", "--table", "settings"])
    assert result.output.startswith("key,first,second\n")


def test_a_third_run_without_labels_keeps_its_rates(runs: list[Path], tmp_path: Path) -> None:
    third = tmp_path / "third"
    shutil.copytree(runs[0], third)
    (third / "evaluation/labels.parquet").unlink()
    found = compare_runs([*runs, third])
    assert set(found.methods["run"]) == {"first", "second", "third"}
    assert "third" not in set(found.differences["run"])
    assert found.summary.set_index("run")["label_cost"].isna().all()
