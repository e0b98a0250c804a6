"""Files of other tools: each in the form its own code writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

import simfarm as sf
from simfarm import tables
from simfarm.cli import cli
from simfarm.errors import ConfigError, DataError, MissingExtraError
from simfarm.interchange import SHOWN, read_foreign


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_alpaca_eval_annotations_become_labels_and_go_back(tmp_path: Path) -> None:
    row = {
        "instruction": "q", "output_1": "base", "generator_1": "gpt4", "output_2": "mine", "generator_2": "m",
        "dataset": "d", "annotator": "weighted", "raw_completion": "M", "price_per_example": 0.02,
        "time_per_example": 1.5,
    }  # fmt: skip
    (tmp_path / "annotations.json").write_text(
        json.dumps(
            [{**row, "preference": 1.9}, {**row, "instruction": "r", "preference": 0}, {**row, "preference": None}]
        )
    )
    found = read_foreign(tmp_path / "annotations.json")
    assert found.format == "alpaca_eval"
    assert found.table["preference"].fillna(-1).to_list() == [1.9, 1.5, -1]
    assert {"raw", "cost", "latency"} <= set(found.table.columns)
    again = sf.to_alpaca_eval(found.table)
    assert {key: again.iloc[0][key] for key in row} == row


def arena(tmp_path: Path) -> dict[str, Path]:
    """Write a question, two models' answers and judgments as Arena-Hard 2 does."""
    asked = [{"uid": f"u{i}", "category": "hard", "prompt": f"question {i}"} for i in range(3)]

    def answer(model: str) -> list[dict[str, Any]]:
        return [
            {
                "uid": q["uid"], "ans_id": "x", "model": model, "tstamp": 0, "metadata": {},
                "messages": [
                    {"role": "user", "content": q["prompt"]},
                    {"role": "assistant", "content": {"answer": f"{model} on {q['uid']}"}},
                ],
            }
            for q in asked
        ]  # fmt: skip

    games = [("A>B", "B>>A"), ("B>A", "A>B"), ("A=B", None)]
    judged = [
        {
            "uid": q["uid"], "category": "hard", "judge": "gpt", "model": "mine",
            "games": [{"score": score, "judgment": {"answer": "…"}, "prompt": []} for score in scores],
        }
        for q, scores in zip(asked, games, strict=True)
    ]  # fmt: skip
    return {
        "questions": lines(tmp_path / "question.jsonl", asked),
        "mine": lines(tmp_path / "model_answer/mine.jsonl", answer("mine")),
        "o3": lines(tmp_path / "model_answer/o3.jsonl", answer("o3")),
        "judged": lines(tmp_path / "model_judgment/gpt/mine.jsonl", judged),
    }


def test_arena_hard_judgments_are_turned_to_item_coordinates(tmp_path: Path) -> None:
    files = arena(tmp_path)
    found = read_foreign(files["judged"], answers=[files["mine"], files["o3"]], baseline="o3")
    table = found.table
    assert found.format == "arena_hard_judgments" and len(table) == 6
    # the baseline is A in the first game and B in the second
    assert table["preference"].fillna(-1).to_list() == [1.0, 1.0, 2.0, 2.0, 1.5, -1]
    assert table["order"].to_list() == ["12", "21"] * 3
    assert table["reason"].iloc[5] == "no verdict of Arena-Hard: None"
    assert (table["output_1"].iloc[0], table["output_2"].iloc[0]) == ("o3 on u0", "mine on u0")
    assert sf.win_rates(table, baseline="o3")["win_rate"].iloc[0] == pytest.approx(100 * 2.5 / 5)
    with pytest.raises(ConfigError, match="--baseline NAME and --answers FILE"):
        read_foreign(files["judged"])
    with pytest.raises(DataError, match="no answer of 'o3' to u0"):
        read_foreign(files["judged"], answers=[files["mine"]], baseline="o3")


def test_arena_hard_answers_of_both_versions_become_outputs(tmp_path: Path) -> None:
    files = arena(tmp_path)
    assert read_foreign(files["mine"]).table.iloc[1].to_dict() == {
        "instruction": "question 1", "input": "", "output": "mine on u1", "generator": "mine"
    }  # fmt: skip
    old = lines(
        tmp_path / "old.jsonl",
        [{"question_id": "u2", "model_id": "old", "choices": [{"index": 0, "turns": [{"content": "said"}]}]}],
    )
    with pytest.raises(ConfigError, match="--questions FILE"):
        read_foreign(old)
    turns = lines(tmp_path / "q01.jsonl", [{"question_id": "u2", "turns": [{"content": "question 2"}]}])
    row = read_foreign(old, questions=turns).table.iloc[0]
    assert (row["instruction"], row["output"], row["generator"]) == ("question 2", "said", "old")


def test_every_verdict_of_arena_hard_has_its_mirror() -> None:
    for label, value in SHOWN.items():
        mirrored = label.translate(str.maketrans("AB", "BA")).replace("", "")
        if mirrored in SHOWN:
            assert SHOWN[mirrored] == 3 - value


@pytest.mark.parametrize(
    "arguments",
    [
        [["What is 2 + 2?", {"until": ["\n"]}]],
        {"gen_args_0": {"arg_0": "What is 2 + 2?", "arg_1": {"until": []}}},
        {
            "gen_args_0": {
                "arg_0": ['[{"role": "system", "content": "s"}, {"role": "user", "content": "What is 2 + 2?"}]']
            }
        },
    ],
)
def test_lm_eval_samples_become_outputs(tmp_path: Path, arguments: object) -> None:
    row = {"doc_id": 0, "doc": {}, "target": "4", "arguments": arguments, "resps": [["4."]], "filtered_resps": ["4"]}
    file = lines(
        tmp_path / "owner__name/samples_sums_2026.jsonl", [{**row, "filter": "strict"}, {**row, "filter": "loose"}]
    )
    found = read_foreign(file)
    assert found.format == "lm_eval"
    assert found.table.to_dict("records") == [
        {"instruction": "What is 2 + 2?", "input": "", "output": "4.", "generator": "owner/name"}
    ]
    assert read_foreign(file, generator="mine").table["generator"].iloc[0] == "mine"


def test_lm_eval_samples_of_likelihoods_are_no_outputs(tmp_path: Path) -> None:
    row = {"doc_id": 0, "arguments": [["ctx", " a"]], "resps": [[[-3.0, False]]], "filtered_resps": [[-3.0, False]]}
    with pytest.raises(DataError, match="scores likelihoods"):
        read_foreign(lines(tmp_path / "samples_x.jsonl", [row]))


INSPECT = {
    "version": 2,
    "eval": {"model": "openai/gpt"},
    "samples": [
        {
            "id": 1,
            "input": "q1",
            "target": "t",
            "output": {"model": "gpt", "choices": [{"message": {"content": "a1"}}]},
        },
        {
            "id": 2,
            "input": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "q2"}]},
            ],
            "output": {"choices": [{"message": {"content": [{"type": "text", "text": "a2"}]}}]},
        },
        {"id": 3, "input": "q3", "output": {"choices": []}},
    ],
}


def test_inspect_logs_become_outputs(tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text(json.dumps(INSPECT))
    table = read_foreign(tmp_path / "log.json").table
    assert table[["instruction", "output", "generator"]].to_numpy().tolist() == [
        ["q1", "a1", "gpt"],
        ["q2", "a2", "openai/gpt"],
    ]


def test_what_is_unknown_or_lacks_a_package_is_said(tmp_path: Path) -> None:
    tables.write_table(pd.DataFrame({"a": [1]}), tmp_path / "x.csv")
    with pytest.raises(DataError, match="which no known format has"):
        read_foreign(tmp_path / "x.csv")
    try:
        import inspect_ai  # noqa: F401
    except ImportError:
        (tmp_path / "log.eval").write_bytes(b"")
        with pytest.raises(MissingExtraError, match=r"simfarm\[inspect\]"):
            read_foreign(tmp_path / "log.eval")


def test_the_verb_pairs_outputs_and_writes_formats(tmp_path: Path) -> None:
    for name in ("base", "ppo", "sft"):
        rows = [{"instruction": f"q{i}", "output": f"{name} {i}"} for i in range(2)]
        tables.write_table(pd.DataFrame(rows), tmp_path / f"{name}.json")
    run = CliRunner().invoke
    files = [str(tmp_path / f"{name}.json") for name in ("ppo", "sft")]
    result = run(
        cli, ["convert", *files, "--baseline", str(tmp_path / "base.json"), "--out", str(tmp_path / "p.jsonl")]
    )
    assert result.exit_code == 0 and result.output.startswith("4 pairs in"), result.output
    pairs = tables.read_table(tmp_path / "p.jsonl")
    assert set(pairs["generator_2"]) == {"ppo", "sft"} and set(pairs["generator_1"]) == {"base"}
    tables.write_table(pairs.assign(preference=2.0), tmp_path / "labels.json")
    for target, columns in (("alpaca_eval", "generator_1"), ("trl", "chosen")):
        out = tmp_path / f"{target}.json"
        result = run(cli, ["convert", str(tmp_path / "labels.json"), "--to", target, "--out", str(out), "--json"])
        assert json.loads(result.output)["kind"] == "labels"
        assert columns in tables.read_table(out).columns
    result = run(cli, ["convert", files[0], str(tmp_path / "labels.json"), "--out", str(tmp_path / "x.json")])
    assert isinstance(result.exception, ConfigError)
    (tmp_path / "other").mkdir()
    twin = tables.write_table(tables.read_table(files[0]), tmp_path / "other" / "ppo.json")
    for again in ([files[0], str(twin)], [str(tmp_path / "base.json")]):
        result = run(
            cli, ["convert", *again, "--baseline", str(tmp_path / "base.json"), "--out", str(tmp_path / "y.json")]
        )
        assert "could not be told apart" in str(result.exception)


def test_a_preference_that_is_no_number_is_refused(tmp_path: Path) -> None:
    row = {"instruction": "q", "output_1": "a", "output_2": "b", "preference": "first"}
    with pytest.raises(DataError, match="'first'"):
        read_foreign(lines(tmp_path / "l.jsonl", [row]))


def test_the_scorer_for_inspect_ai(tmp_path: Path) -> None:
    inspect_ai = pytest.importorskip("inspect_ai")
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ModelOutput
    from inspect_ai.solver import Generate, TaskState, solver

    from simfarm.inspect_scorer import pool_scorer

    said = ["red is red", "nothing"]

    @solver
    def answer():
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            state.output = ModelOutput.from_content("mockllm/model", said[int(state.sample_id)])
            return state

        return solve

    task = inspect_ai.Task(
        dataset=[Sample(id=i, input="red or blue", target="red") for i in range(2)],
        solver=answer(),
        scorer=pool_scorer("fake-biased", assign="all"),
    )
    (log,) = inspect_ai.eval(task, model="mockllm/model", log_dir=str(tmp_path), display="none", max_samples=1)
    assert log.status == "success", log.error
    assert log.samples is not None
    values = [sample.scores["pool_scorer"].value for sample in log.samples if sample.scores]
    assert values[0] > values[1]
    outputs = read_foreign(next(tmp_path.glob("*.eval"))).table
    assert sorted(outputs["output"]) == sorted(said)
