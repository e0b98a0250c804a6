"""Reading what other tools wrote: files of alpaca_eval, Arena-Hard, lm-eval and inspect_ai.

All of it becomes outputs or labels; see docs/interchange.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from simfarm import tables
from simfarm.errors import ConfigError, DataError, require
from simfarm.records import Order, to_item

Format = Literal["outputs", "alpaca_eval", "arena_hard_judgments", "arena_hard_answers", "lm_eval", "inspect"]
LABELS: tuple[Format, ...] = ("alpaca_eval", "arena_hard_judgments")
"""Formats that hold labels; the others hold outputs."""
SHOWN = {"A>>B": 1.0, "A>B": 1.0, "A=B": 1.5, "B=A": 1.5, "B>A": 2.0, "B>>A": 2.0, "A<B": 2.0, "A<<B": 2.0}
"""Arena-Hard's verdicts as preferences of the first shown (A) over the second."""
GAMES: tuple[Order, Order] = ("12", "21")
"""Arena-Hard shows the baseline first in the first game and second in the second."""


class Imported(NamedTuple):
    """What a file held."""

    format: Format
    table: pd.DataFrame
    """Outputs (instruction, input, output, generator, …) or labels."""


def read_foreign(
    path: str | Path,
    *,
    generator: str | None = None,
    questions: str | Path | None = None,
    answers: Iterable[str | Path] = (),
    baseline: str | None = None,
) -> Imported:
    """Read a file of another tool, whichever it is.

    Args:
        path: alpaca_eval's annotations.json or model_outputs.json, a file of Arena-Hard's model_judgment or
            model_answer, lm-eval's samples_*.jsonl, or a log of inspect_ai (.json, or .eval with inspect_ai installed).
        generator: The name of the model, where the file does not say it.
        questions: Arena-Hard's question.jsonl, which its judgments and answers of version 0.1 need.
        answers: Arena-Hard's model_answer files of the model and of the baseline, which its judgments need.
        baseline: The model that Arena-Hard's judgments compare with.

    Raises:
        DataError: The file is none of these, or broken.
        ConfigError: Something else is needed to read it; the message says what.
        MissingExtraError: It is an .eval log, and inspect_ai is not installed.
    """
    path = Path(path)
    if path.suffix == ".eval":
        return Imported("inspect", _inspect_log(path, generator))
    if path.suffix == ".json" and (log := _inspect_json(path)) is not None:
        return Imported("inspect", _outputs(_inspect_rows(log, generator), path))
    table = tables.read_table(path)
    columns = set(table.columns)
    if {"games", "judge"} <= columns:
        return Imported("arena_hard_judgments", _judgments(table, path, questions, answers, baseline))
    if {"doc_id", "resps"} <= columns:
        return Imported("lm_eval", _outputs(_lm_eval(table, path, generator), path))
    if columns & {"uid", "question_id"} and columns & {"messages", "choices"}:
        rows = _arena_answers(table, path, _asked(questions))
        return Imported("arena_hard_answers", _outputs(rows, path))
    if {"output_1", "output_2", "preference"} <= columns:
        return Imported("alpaca_eval", _annotations(table))
    if {"instruction", "output"} <= columns:
        return Imported("outputs", tables.read_outputs(path, generator))
    raise DataError(
        f"{path} has the columns {', '.join(map(str, table.columns))}, which no known format has. simfarm reads "
        "alpaca_eval's annotations.json and model_outputs.json, Arena-Hard's model_judgment and model_answer, "
        "lm-eval's samples_*.jsonl (with --log_samples) and inspect_ai's logs."
    )


def _outputs(rows: Iterable[Mapping[str, str]], path: Path) -> pd.DataFrame:
    table = pd.DataFrame(list(rows), columns=["instruction", "input", "output", "generator"])
    if table.empty:
        raise DataError(f"{path} holds no outputs of text: perhaps its task scores likelihoods instead of generating.")
    return table


def _annotations(table: pd.DataFrame) -> pd.DataFrame:
    names = {"raw_completion": "raw", "price_per_example": "cost", "time_per_example": "latency"}
    renamed = table.rename(columns={old: new for old, new in names.items() if new not in table.columns})
    # alpaca_eval once wrote a draw as 0
    given = renamed["preference"].astype(object)
    values = given.where(pd.to_numeric(given, errors="coerce") != 0, 1.5)
    return tables.check_labels(renamed.assign(preference=values))


def _asked(questions: str | Path | None) -> dict[str, str]:
    """Return the texts of Arena-Hard's questions by id, of version 0.1 (turns) or 2 (prompt)."""
    if questions is None:
        return {}
    rows = tables.read_table(questions).to_dict("records")
    return {
        _identity(row): str(row["prompt"]) if "prompt" in row else "\n\n".join(str(t["content"]) for t in row["turns"])
        for row in rows
    }


def _identity(row: Mapping[Any, Any]) -> str:
    return str(row.get("uid") or row["question_id"])


def _arena_answers(table: pd.DataFrame, path: Path, asked: Mapping[str, str]) -> Iterator[dict[str, str]]:
    for number, row in enumerate(table.to_dict("records")):
        if isinstance(messages := row.get("messages"), list):
            content = messages[-1]["content"]
            answer = content["answer"] if isinstance(content, dict) else content
            question = next((str(m["content"]) for m in messages if m["role"] == "user"), "")
        else:
            answer = "\n\n".join(str(turn["content"]) for turn in row["choices"][0]["turns"])
            question = ""
        question = asked.get(_identity(row), question)
        if not question:
            raise ConfigError(
                f"{path}, row {number}: there is no question. Give Arena-Hard's question.jsonl: --questions FILE."
            )
        model = row.get("model") or row.get("model_id") or path.stem
        yield {"instruction": question, "input": "", "output": str(answer), "generator": str(model)}


def _judgments(
    table: pd.DataFrame,
    path: Path,
    questions: str | Path | None,
    answers: Iterable[str | Path],
    baseline: str | None,
) -> pd.DataFrame:
    asked = _asked(questions)
    said: dict[tuple[str, str], str] = {}
    for file in map(Path, answers):
        held = tables.read_table(file)
        for row, output in zip(held.to_dict("records"), _arena_answers(held, file, asked), strict=True):
            said[output["generator"], _identity(row)] = output["output"]
            asked.setdefault(_identity(row), output["instruction"])
    if baseline is None or not said:
        raise ConfigError(
            f"{path} holds judgments of Arena-Hard, which name neither the baseline nor the answers. Give --baseline "
            "NAME and --answers FILE for the model's and the baseline's file of model_answer (and --questions FILE for "
            "version 0.1)."
        )
    rows = []
    for row in table.to_dict("records"):
        identity, model = _identity(row), str(row["model"])
        texts = [said.get((name, identity)) for name in (baseline, model)]
        if None in texts:
            lacking = baseline if texts[0] is None else model
            raise DataError(f"{path}: there is no answer of {lacking!r} to {identity}; give its file with --answers.")
        for game, order in zip(row["games"], GAMES, strict=False):
            score = (game or {}).get("score")
            shown = SHOWN.get(str(score))
            rows.append(
                {
                    "instruction": asked[identity], "input": "", "output_1": texts[0], "output_2": texts[1],
                    "generator_1": baseline, "generator_2": model,
                    "preference": None if shown is None else to_item(shown, order),
                    "reason": "" if shown is not None else f"no verdict of Arena-Hard: {score}",
                    "annotator": str(row["judge"]), "order": order, "raw": str(score), "id": identity,
                }
            )  # fmt: skip
    return tables.check_labels(pd.DataFrame(rows))


def _lm_eval(table: pd.DataFrame, path: Path, generator: str | None) -> Iterator[dict[str, str]]:
    # one row per sample and filter; the first filter's row stands for the sample
    for row in table.drop_duplicates("doc_id").to_dict("records"):
        response, prompt = _first_text(row["resps"]), _prompt(row["arguments"])
        if response is not None and prompt is not None:
            yield {"instruction": prompt, "input": "", "output": response, "generator": generator or _model_of(path)}


def _model_of(path: Path) -> str:
    """Return the model's name as lm-eval's folder has it: results/OWNER__NAME/samples_TASK_TIME.jsonl."""
    return path.resolve().parent.name.replace("__", "/")


def _first_text(value: Any) -> str | None:
    while isinstance(value, list | tuple) and len(value):
        value = value[0]
    return value if isinstance(value, str) else None


def _prompt(arguments: Any) -> str | None:
    if isinstance(arguments, dict):
        inner = arguments.get("gen_args_0")
        arguments = inner.get("arg_0") if isinstance(inner, dict) else None
    prompt = _first_text(arguments)
    if prompt is not None and re.match(r'\s*\[\s*\{\s*"role"', prompt):
        # with --apply_chat_template and an API model, the messages as JSON
        prompt = _last_user(json.loads(prompt))
    return prompt


def _last_user(messages: Iterable[Mapping[str, Any]]) -> str | None:
    texts = [_text(m.get("content")) for m in messages if m.get("role") == "user"]
    return texts[-1] if texts else None


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
    return str(content or "")


def _inspect_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        # whatever is wrong with the file, read_table says it
        return None
    return value if isinstance(value, dict) and {"eval", "samples"} <= value.keys() else None


def _inspect_log(path: Path, generator: str | None) -> pd.DataFrame:
    require("inspect_ai", "inspect", "Reading an .eval log")
    from inspect_ai.log import read_eval_log

    log = json.loads(read_eval_log(str(path)).model_dump_json())
    return _outputs(_inspect_rows(log, generator), path)


def _inspect_rows(log: Mapping[str, Any], generator: str | None) -> Iterator[dict[str, str]]:
    for sample in log["samples"] or []:
        given = sample["input"]
        question = given if isinstance(given, str) else _last_user(given)
        output = sample.get("output") or {}
        choices = output.get("choices") or []
        if question and choices:
            name = generator or output.get("model") or log["eval"]["model"]
            text = _text(choices[0]["message"]["content"])
            yield {"instruction": question, "input": "", "output": text, "generator": str(name)}
