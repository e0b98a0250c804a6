"""Reading what is to be labelled, in the field's formats, and writing labels in theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from simfarm.annotators.lists import lists_from_outputs
from simfarm.errors import DataError
from simfarm.tables import COMPARISON_COLUMNS, OUTPUT_COLUMNS, check_labels, read_table


class Given(NamedTuple):
    """What is to be labelled."""

    kind: Literal["pairs", "lists"]
    table: pd.DataFrame


def read_given(path: str | Path) -> Given:
    """Read comparisons or lists of candidates.

    Read are: comparisons (instruction, output_1, output_2), preference data of trainers (prompt, chosen, rejected, as
    texts or message lists; chosen becomes output_1), lists (instruction, outputs), Nectar's (prompt, answers), and
    outputs of two or more generators (instruction, output, generator), which make one list per instruction. Of labels,
    one row per rater and pair, each pair is taken once, without the columns in which the raters differ.

    Raises:
        DataError: The file is none of these; the message names its columns.
    """
    table = read_table(path)
    columns = set(table.columns)
    if set(COMPARISON_COLUMNS) <= columns:
        return Given("pairs", _each_once(table) if "preference" in columns else table)
    if {"prompt", "chosen", "rejected"} <= columns:
        return Given("pairs", _from_trainer(table, str(path)))
    if (
        columns >= {"instruction", "outputs"}
        or columns >= {"prompt", "answers"}
        or columns >= {"instruction", "answers"}
    ):
        return Given("lists", table)
    if set(OUTPUT_COLUMNS) <= columns:
        lists = lists_from_outputs(table)
        if (lists["outputs"].map(len) < 2).any():
            raise DataError(f"{path} has instructions with one output only; a comparison needs two generators.")
        return Given("lists", lists)
    raise DataError(
        f"{path} has the columns {', '.join(map(str, table.columns)) or 'none'}. It needs instruction, "
        "output_1, output_2; or prompt, chosen, rejected; or instruction, outputs; or prompt, answers; or instruction, "
        "output, generator with two or more generators."
    )


def _each_once(labels: pd.DataFrame) -> pd.DataFrame:
    names = (*COMPARISON_COLUMNS, "input", "generator_1", "generator_2")
    content = [column for column in names if column in labels.columns]
    pairs = labels.drop_duplicates(content)
    if len(pairs) == len(labels):
        return labels
    # what one rater alone said or is does not belong to the pair
    values = labels.drop(columns=content).map(str).groupby([labels[column] for column in content], dropna=False)
    varying = (values.nunique() > 1).any()
    return pairs.drop(columns=list(varying.index[varying])).reset_index(drop=True)


def _from_trainer(table: pd.DataFrame, name: str) -> pd.DataFrame:
    texts = {
        column: [_text(value, f"{name}, row {row}, {column}") for row, value in enumerate(table[column])]
        for column in ("prompt", "chosen", "rejected")
    }
    rest = table.drop(columns=["prompt", "chosen", "rejected"])
    return pd.DataFrame(
        {"instruction": texts["prompt"], "output_1": texts["chosen"], "output_2": texts["rejected"]}
    ).join(rest.reset_index(drop=True))


def _text(value: Any, where: str) -> str:
    """Return a text, or what a list of one message says; earlier turns are written out before the last."""
    if isinstance(value, str):
        return value
    try:
        turns = [(str(turn["role"]), turn["content"]) for turn in value]
        contents = [content for _, content in turns]
        if not contents or not all(isinstance(content, str) for content in contents):
            raise TypeError
    except (TypeError, KeyError) as error:
        raise DataError(f"{where}: it must be a text or a list of {{role, content}} messages.") from error
    return contents[0] if len(turns) == 1 else "\n\n".join(f"{role}: {content}" for role, content in turns)


def to_trl(labels: pd.DataFrame) -> pd.DataFrame:
    """Turn labels into preference data for TRL: prompt, chosen, rejected as message lists.

    Ties and missing preferences say nothing about which was chosen and are left out. The other columns stay, with
    `p_chosen`, the probability that the chosen one is better; TRL ignores them.

    Raises:
        DataError: The table is not one of labels.
    """
    table = check_labels(labels)
    decided = table[table["preference"].notna() & (table["preference"] != 1.5)]
    first = decided["preference"] < 1.5
    content = decided["instruction"].where(decided["input"] == "", decided["instruction"] + "\n\n" + decided["input"])
    frame = pd.DataFrame(
        {
            "prompt": [[{"role": "user", "content": text}] for text in content],
            "chosen": _messages(decided["output_1"].where(first, decided["output_2"])),
            "rejected": _messages(decided["output_2"].where(first, decided["output_1"])),
            "p_chosen": (1.5 - decided["preference"]).abs().to_numpy() + 0.5,
        }
    )
    kept = [c for c in decided.columns if c not in (*COMPARISON_COLUMNS, "input", *frame.columns)]
    return frame.join(decided[kept].reset_index(drop=True))


def _messages(texts: pd.Series) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]
