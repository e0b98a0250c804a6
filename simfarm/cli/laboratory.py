"""What `simfarm run` does with a laboratory: run it, print its verdicts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import click

from simfarm.cli.show import interval, print_table, records
from simfarm.experiments.laboratory.config import LaboratoryConfig
from simfarm.experiments.laboratory.runner import plan_laboratory, run_laboratory
from simfarm.report.overoptimization import title_of
from simfarm.tables import read_table


def run_and_print(config: LaboratoryConfig, out: Path, dry_run: bool, as_json: bool) -> None:
    """Run a laboratory and print its verdicts; or, with `dry_run`, what it would do."""
    if dry_run:
        work = plan_laboratory(config)
        if as_json:
            click.echo(json.dumps(records(work.assign(tokens=None)), indent=1))
        else:
            counts = [f"{n:,}" for n in work["count"]]
            print_table(
                f"{config.name}: what a run does", {"stage": work["stage"], "what": work["what"], "count": counts}
            )
        return
    show_verdicts(run_laboratory(config, out).path, as_json)


def show_verdicts(folder: Path, as_json: bool) -> None:
    """Print the verdicts of a finished laboratory, as tables or as JSON."""
    if as_json:
        verdicts = read_table(folder / "overoptimization/verdicts.csv")
        found = {"run": str(folder), "report": str(folder / "report.html"), "verdicts": records(verdicts)}
        click.echo(json.dumps(found, indent=1))
    else:
        _print(folder)


def _print(folder: Path) -> None:
    """Print the verdicts of a finished laboratory, and where its report is."""
    table = read_table(folder / "overoptimization/verdicts.csv")
    for family, rows in table.groupby("family", sort=False):
        columns: dict[str, Iterable[object]] = {
            "arm": rows["arm"],
            "curve": [title_of(name) for name in rows["curve"]],
            "peak": [
                f"{p:g} ({a:g} to {b:g})"
                for p, a, b in zip(rows["peak"], rows["peak_ci_low"], rows["peak_ci_high"], strict=True)
            ],
            "fall to the end": interval(rows, "fall", 2, ("fall_ci_low", "fall_ci_high")),
            "": ["falls" if falls else "" for falls in rows["falls"]],
            "end, minus first arm": interval(
                rows, "against_first", 2, ("against_first_ci_low", "against_first_ci_high")
            ),
        }
        print_table(str(family).replace("_", " "), columns)
    click.echo(f"\nReport: {folder / 'report.html'}")
