"""What `simfarm run` prints: the plan before, the results after. At most 100 columns wide, on a terminal or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from simfarm.experiments.config import ExperimentConfig
from simfarm.report import findings
from simfarm.report.data import open_run
from simfarm.report.measures import kl_of
from simfarm.report.tabulate import Column

WIDTH = 100


def _console() -> Console:
    console = Console(markup=False, highlight=False, emoji=False)
    # rich takes 80 columns where there is no terminal
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    return console


def _table(title: str, columns: list[Column]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        number = bool(column.format)
        table.add_column(column.header, justify="right" if number else "left", no_wrap=number)
    return table


def print_plan(config: ExperimentConfig, work: pd.DataFrame) -> None:
    """Print what a run would do."""
    columns = [Column("stage"), Column("what"), Column("count", ",d"), Column("tokens at most", ",d")]
    table = _table(f"{config.name}: what a run does", columns)
    for row in work.to_dict("records"):
        tokens = "" if pd.isna(row["tokens"]) else f"{row['tokens']:,}"
        table.add_row(row["stage"].replace("_", " "), row["what"], f"{row['count']:,}", tokens)
    _console().print(table)


def results(folder: Path) -> dict[str, Any]:
    """Return the results of a run as JSON holds them: run, report, headline, conclusions, win_rates (missing is null).

    Raises:
        RunError: The folder holds no finished run.
    """
    run = open_run(folder)
    rates = run.win_rates.astype(object)
    rows = rates.where(rates.notna(), None).to_dict("records")
    return {
        "run": str(folder),
        "report": str(folder / "report.html"),
        "headline": findings.headline(run),
        "conclusions": findings.conclusions(run),
        "win_rates": [
            {**{str(k): v.item() if hasattr(v, "item") else v for k, v in row.items()}, "kl": kl_of(run, name)}
            for name, row in zip(run.methods, rows, strict=True)
        ],
    }


def print_results(folder: Path) -> None:
    """Print the win rates of a run, what they say and how surely, and where the report is.

    Raises:
        RunError: The folder holds no finished run.
    """
    run, console = open_run(folder), _console()
    rates = run.win_rates
    humans = {} if run.humans is None else dict(zip(run.humans["generator"], run.humans["score"], strict=True))
    columns = [
        Column("method"), Column("win rate %", ".1f"), Column("95 % interval", "s"), Column("characters", ".0f"),
        Column("KL, nats", ".2f"), Column("lost", "d"), *([Column("humans %", ".1f")] if humans else []),
    ]  # fmt: skip
    table = _table(f"Win rate against the baseline, {rates['n_instructions'].max()} instructions", columns)
    for row in rates.to_dict("records"):
        bounds = "none" if pd.isna(row["ci_low"]) else f"{row['ci_low']:.1f} to {row['ci_high']:.1f}"
        name = row["generator"]
        cells = [name, row["win_rate"], bounds, row["mean_length"], kl_of(run, name), row["n_lost"]]
        cells += [humans.get(name)] if humans else []
        table.add_row(*(column.text(cell) for column, cell in zip(columns, cells, strict=True)))
    console.print(table)
    console.print(findings.headline(run))
    points = Table.grid(padding=(0, 1))
    for text in findings.conclusions(run):
        points.add_row("-", text)
    console.print(points)
    # a path that is broken over lines cannot be opened by a click
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
