"""Read and write tables in the field's formats, and check them at the door.

A table is a pandas DataFrame. Files: JSON (a list of objects), JSONL, CSV, Parquet, by suffix.

    outputs       instruction, output, generator [, input, dataset]                      (alpaca_eval)
    comparisons   instruction, output_1, output_2 [, input, generator_1, generator_2]     (AlpacaFarm)
    labels        comparisons + preference [, annotator, order, replicate, …]
    rankings      generator, score [, standard_error]
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simfarm.errors import DataError, suggest
from simfarm.records import Comparison

OUTPUT_COLUMNS = ("instruction", "output", "generator")
COMPARISON_COLUMNS = ("instruction", "output_1", "output_2")
LABEL_COLUMNS = (*COMPARISON_COLUMNS, "preference")
RANKING_COLUMNS = ("generator", "score")
TEXT_COLUMNS = (
    "instruction", "input", "output", "output_1", "output_2", "prompt", "chosen", "rejected",
    "generator", "generator_1", "generator_2", "annotator", "order",
)  # fmt: skip
"""Columns that hold texts even where every one of them looks like a number, which CSV alone cannot tell."""
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


def read_table(path: str | Path, required: Sequence[str] = ()) -> pd.DataFrame:
    """Read a JSON, JSONL, CSV or Parquet file.

    Args:
        path: The file; its suffix names the format.
        required: Columns that must be there.

    Raises:
        DataError: The file is missing, of an unknown format, broken, or lacks a column.
    """
    path = Path(path)
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise DataError(f"There is no file {path}.{suggest(path.name, siblings)} Give a {', '.join(SUFFIXES)} file.")
    try:
        match path.suffix.lower():
            case ".json":
                table = _from_rows(json.loads(path.read_text("utf-8-sig")), path)
            case ".jsonl":
                table = _from_rows(_json_lines(path), path)
            case ".csv":
                texts = dict.fromkeys(TEXT_COLUMNS, "str")
                table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=texts)
            case ".parquet":
                table = pd.read_parquet(path)
            case other:
                raise DataError(f"{path} ends in {other!r}; simfarm reads {', '.join(SUFFIXES)}.")
    except DataError:
        raise
    except Exception as error:  # parsers raise errors of many kinds; all mean the same to the user
        raise DataError(f"{path} cannot be read as {path.suffix[1:].upper()}: {error}") from error
    require_columns(table, required, str(path))
    return table


def _json_lines(path: Path) -> list[Any]:
    rows = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise DataError(f"{path}, line {number}, is not JSON: {error}") from error
    return rows


def _from_rows(rows: Any, path: Path) -> pd.DataFrame:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f'{path} must hold a list of objects, one a row, as [{{"instruction": …}}, …] or one a line.')
    return pd.DataFrame([well_formed(row) for row in rows])


def well_formed(value: Any) -> Any:
    """Replace halves of surrogate pairs, which a text may hold but no table, by U+FFFD, in lists and objects as well.

    Two halves that make a pair become its letter. Other values stay as they are.
    """
    match value:
        case str():
            try:
                value.encode()
            except UnicodeEncodeError:
                return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            return value
        case dict():
            return {well_formed(key): well_formed(inner) for key, inner in value.items()}
        case list() | tuple():
            return [well_formed(inner) for inner in value]
        case _:
            return value


def write_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Write a table as its suffix says; the file appears whole or not at all.

    Texts are written well-formed, as they are read: half of a surrogate pair, which a model's broken output may hold
    and no table format can, becomes U+FFFD (�), whatever the format.

    Raises:
        DataError: The suffix is unknown.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path} ends in {path.suffix!r}; simfarm writes {', '.join(SUFFIXES)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    # only columns of Python objects can hold what is not well-formed: Arrow's strings are UTF-8
    objects = [name for name, kind in table.dtypes.items() if pd.api.types.is_object_dtype(kind)]
    table = table.copy(deep=False)
    for name in objects:
        table[name] = pd.Series(list(map(well_formed, table[name])), index=table.index, dtype=object)
    try:
        match path.suffix.lower():
            case ".json":
                partial.write_text(json.dumps(_rows(table), indent=1), "utf-8")
            case ".jsonl":
                partial.write_text("".join(json.dumps(row) + "\n" for row in _rows(table)), "utf-8")
            case ".csv":
                table.to_csv(partial, index=False)
            case _:
                table.to_parquet(partial, index=False)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    # NaN is not JSON, so missing becomes null
    missing = table.isna()
    return [
        {
            str(name): None if gone else _plain(value)
            for name, value, gone in zip(table.columns, row, nulls, strict=True)
        }
        for row, nulls in zip(table.itertuples(index=False), missing.itertuples(index=False), strict=True)
    ]


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it: Parquet gives arrays, timestamps and NumPy's numbers, also inside lists."""
    match value:
        case np.ndarray() | list() | tuple():
            return [_plain(inner) for inner in value]
        case dict():
            return {str(key): _plain(inner) for key, inner in value.items()}
        case np.generic():
            return _plain(value.item())
        case date():
            return value.isoformat()
        case float() if value != value:
            return None
        case _:
            return value


def require_columns(table: pd.DataFrame, required: Iterable[str], name: str) -> None:
    """Check that columns are there.

    Raises:
        DataError: One is not; the message names the nearest column.
    """
    for column in required:
        if column not in table.columns:
            near = suggest(column, map(str, table.columns))
            raise DataError(
                f"{name} has no column {column!r}.{near} It has: {', '.join(map(str, table.columns)) or 'none'}; "
                f"it needs: {', '.join(required)}."
            )


def check_labels(table: pd.DataFrame, name: str = "labels") -> pd.DataFrame:
    """Check a table of labels and return it with preferences as floats and missing `input` as "".

    A missing output is an empty one: whoever judged it had a text, and CSV writes an empty text as an empty cell.

    Raises:
        DataError: A column is missing, the table is empty, or a preference is not in [1, 2] (missing is allowed).
    """
    require_columns(table, LABEL_COLUMNS, name)
    if table.empty:
        raise DataError(f"{name} has no rows.")
    values = pd.to_numeric(table["preference"], errors="coerce").astype(float)
    wrong = (values.isna() & table["preference"].notna()) | (values < 1) | (values > 2)
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        given = _plain(table["preference"].iloc[row])
        raise DataError(
            f"{name}, row {row}: preference is {given!r}. A preference is a number from 1 (output_1 is better) to 2 "
            "(output_2 is better), 1.5 for a tie, null if missing."
        )
    filled = {column: table[column].fillna("") for column in ("output_1", "output_2") if table[column].hasnans}
    return with_input(table.assign(preference=values, **filled))


def with_input(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with a column `input` without nulls."""
    inputs = table["input"].fillna("").astype(str) if "input" in table.columns else ""
    return table.assign(input=inputs)


def _require_texts(table: pd.DataFrame, columns: Iterable[str], name: str) -> None:
    for column in columns:
        wrong = ~table[column].map(lambda value: isinstance(value, str)).astype(bool)
        if not wrong.any():
            continue
        row = int(wrong.to_numpy().argmax())
        missing = int(table[column].isna().sum())
        if not table[column].isna().iloc[row]:
            given = _plain(table[column].iloc[row])
            raise DataError(f"{name}, row {row}: {column} is {given!r}; it must be a text.")
        mend = ""
        if column.startswith("output"):
            mend = (
                ' If the answer was empty, write "" in JSON or JSONL (an empty cell of CSV is a missing one); if there '
                "is none, take the instruction out of every file."
            )
        raise DataError(f"{name}, row {row}: {column} is missing, in {missing} of {len(table)} rows.{mend}")


def comparisons(table: pd.DataFrame, name: str = "comparisons") -> list[Comparison]:
    """Turn the rows of a table into comparisons, in order.

    Raises:
        DataError: A column is missing or a text is null or not a string.
    """
    require_columns(table, COMPARISON_COLUMNS, name)
    _require_texts(table, COMPARISON_COLUMNS, name)
    table = with_input(table)
    columns = (table[c] for c in ("instruction", "output_1", "output_2", "input"))
    return [Comparison(*texts) for texts in zip(*columns, strict=True)]


def read_outputs(path: str | Path, generator: str | None = None) -> pd.DataFrame:
    """Read one or more generators' outputs.

    Args:
        path: A file of outputs.
        generator: The name to give where the file has no column `generator`.

    Raises:
        DataError: A column is missing, a text is not a string, or a generator has two outputs for one instruction.
    """
    table = read_table(path, OUTPUT_COLUMNS[:2])
    if "generator" not in table.columns:
        table = table.assign(generator=generator or Path(path).stem)
    table = with_input(table)
    _require_texts(table, OUTPUT_COLUMNS, str(path))
    twice = table.duplicated(["instruction", "input", "generator"])
    if twice.any():
        repeated = table[twice].iloc[0]
        raise DataError(
            f"{path}: generator {repeated['generator']!r} has more than one output for the instruction "
            f"{repeated['instruction'][:60]!r}."
        )
    return table


def to_alpaca_eval(table: pd.DataFrame) -> pd.DataFrame:
    """Turn labels or outputs into what the package alpaca_eval writes: annotations.json, or model_outputs.json.

    alpaca_eval has no column `input`: it is joined to the instruction behind a blank line. Its preference has the same
    scale, its output_1 is the baseline's; a missing preference stays missing, and it leaves those rows out.

    Args:
        table: Labels (with generator_1 and generator_2), or outputs (instruction, output, generator).

    Returns:
        For labels: instruction, output_1, generator_1, output_2, generator_2, dataset, annotator, preference and, where
        known, raw_completion, price_per_example (US dollars), time_per_example (seconds). For outputs: dataset,
        instruction, output, generator.

    Raises:
        DataError: The table is neither.
    """
    if "output" in table.columns:
        require_columns(table, OUTPUT_COLUMNS, "outputs")
        columns = ["dataset", *OUTPUT_COLUMNS]
    else:
        table = check_labels(table)
        require_columns(table, ("generator_1", "generator_2"), "labels")
        names = {"raw": "raw_completion", "cost": "price_per_example", "latency": "time_per_example"}
        table = table.rename(columns=names)
        columns = ["instruction", "output_1", "generator_1", "output_2", "generator_2", "dataset", "annotator"]
        columns += ["preference", *(name for name in names.values() if name in table.columns)]
    table = with_input(table)
    joined = table["instruction"].where(table["input"] == "", table["instruction"] + "\n\n" + table["input"])
    defaults = {name: "simfarm" for name in ("dataset", "annotator") if name not in table.columns}
    return table.assign(instruction=joined, **defaults)[columns].reset_index(drop=True)


def head_to_head(outputs: pd.DataFrame, baseline: pd.DataFrame) -> pd.DataFrame:
    """Pair a generator's outputs with the baseline's on the same instructions: output_1 = the baseline's.

    Returns:
        One row per instruction: instruction, input, output_1, output_2, generator_1, generator_2.

    Raises:
        DataError: An instruction of one table is not in the other, or stands twice in one.
    """
    keys = ["instruction", "input"]
    left, right = with_input(baseline), with_input(outputs)
    for table, side in ((left, "baseline"), (right, "outputs")):
        twice = table.duplicated(keys).to_numpy()
        if twice.any():
            raise DataError(
                f"The table of the {side} has more than one row for the instruction "
                f"{table['instruction'].iloc[int(twice.argmax())][:60]!r}. Give one output of one generator for each."
            )
    merged = left.merge(
        right, on=keys, how="outer", suffixes=("_1", "_2"), indicator=True, validate="one_to_one", sort=False
    )
    lonely = merged[merged["_merge"] != "both"]
    if len(lonely):
        side = "the baseline" if lonely["_merge"].iloc[0] == "right_only" else "the outputs"
        raise DataError(
            f"{len(lonely)} of {len(merged)} instructions are not in both tables; the first, "
            f"{lonely['instruction'].iloc[0][:60]!r}, is missing from {side}. Give outputs on the same instructions."
        )
    order = {key: i for i, key in enumerate(zip(right["instruction"], right["input"], strict=True))}
    rank = [order[key] for key in zip(merged["instruction"], merged["input"], strict=True)]
    columns = [*keys, "output_1", "output_2", "generator_1", "generator_2"]
    return merged.assign(_rank=rank).sort_values("_rank")[columns].reset_index(drop=True)
