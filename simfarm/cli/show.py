"""Tables of numbers on a terminal, as JSON or as CSV."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click
import pandas as pd

from simfarm.errors import UnknownNameError

WIDTH = 100


def output_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --json, --csv and --table to a command."""
    for option in (
        click.option("--table", "which", metavar="NAME", help="With --csv: which table, if there are several."),
        click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of a table."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table."),
    ):
        command = option(command)
    return command


def machine_readable(tables: Mapping[str, pd.DataFrame], *, as_json: bool, as_csv: bool, which: str | None) -> bool:
    """Print the tables as JSON (all) or CSV (one; the first if none is named), if asked for; say whether that was so.

    Raises:
        UnknownNameError: There is no such table.
    """
    if as_json:
        click.echo(json.dumps({name: records(table) for name, table in tables.items()}, indent=1))
    elif as_csv:
        name = which or next(iter(tables))
        if name not in tables:
            raise UnknownNameError("table", name, tables)
        click.echo(tables[name].to_csv(index=False), nl=False)
    return as_json or as_csv


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as JSON objects; missing and infinite numbers are null."""
    return [
        {str(key): _plain(value) for key, value in zip(table.columns, row, strict=True)}
        for row in table.itertuples(index=False)
    ]


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if value is None or (isinstance(value, float) and not math.isfinite(value)) else value


def number(value: float | None, digits: int = 1) -> str:
    """Write a number with some digits; a missing one is a dash."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def interval(table: pd.DataFrame, name: str, digits: int = 1, ends: tuple[str, str] | None = None) -> list[str]:
    """Write a column with its interval: "70.5 [67.9, 73.1]".

    Args:
        table: With the column and its ends.
        name: The column.
        digits: After the point.
        ends: The columns of the ends; `<name>_low` and `<name>_high` if left out.
    """
    low, high = ends or (f"{name}_low", f"{name}_high")
    return [
        number(v, digits) if math.isnan(a) or math.isnan(v) else f"{v:.{digits}f} [{a:.{digits}f}, {b:.{digits}f}]"
        for v, a, b in zip(table[name], table[low], table[high], strict=True)
    ]


def p_value(value: float) -> str:
    """Write a p-value."""
    return "-" if math.isnan(value) else "<.0001" if value < 1e-4 else f"{value:.4f}"


def print_table(title: str, columns: Mapping[str, Iterable[object]]) -> None:
    """Print aligned columns, at most 100 characters wide; a name that does not fit is cut in the middle."""
    cells = {head: [str(value) for value in values] for head, values in columns.items()}
    widths = {head: max([len(head), *map(len, values)]) for head, values in cells.items()}
    excess = sum(widths.values()) + 2 * (len(widths) - 1) - WIDTH
    if excess > 0:
        widest = max(widths, key=lambda head: widths[head])
        widths[widest] = max(12, widths[widest] - excess)
        cells[widest] = [_cut(value, widths[widest]) for value in cells[widest]]
    left = next(iter(cells), "")
    click.echo("\n" + textwrap.fill(title, WIDTH))
    for row in [list(cells), *zip(*cells.values(), strict=True)]:
        parts = [
            text.ljust(widths[head]) if head == left else text.rjust(widths[head])
            for head, text in zip(cells, row, strict=True)
        ]
        click.echo("  ".join(parts).rstrip())


def _cut(text: str, width: int) -> str:
    half = (width - 1) // 2
    return text if len(text) <= width else f"{text[: width - 1 - half]}…{text[len(text) - half :]}"


def print_notes(notes: Sequence[str]) -> None:
    """Print remarks, each once."""
    for note in dict.fromkeys(note for note in notes if note):
        click.echo(textwrap.fill(f"Note: {note}.", WIDTH, break_on_hyphens=False))
