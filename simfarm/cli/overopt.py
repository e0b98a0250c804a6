"""`simfarm overopt`: where a proxy stops being true."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import click
import pandas as pd

from simfarm.cli.show import interval, number, print_notes, print_table, records
from simfarm.errors import ConfigError
from simfarm.overoptimization.curves import (
    Curve,
    best_of_n_of,
    curves_of_run,
    fits_table,
    read_samples,
    summary,
)
from simfarm.overoptimization.fits import FORMULAS, n_of_kl

EXAMPLES = """\b
simfarm overopt runs/quickstart-seed0
simfarm overopt runs/quickstart-seed0 --figure curve.svg --json
simfarm overopt --samples samples.parquet --proxy reward --gold human_score
"""


@click.command(epilog=EXAMPLES)
@click.argument("run_dir", required=False, type=click.Path(path_type=Path))
@click.option("--samples", type=click.Path(path_type=Path), help="Table with one row per sample, instead of a run.")
@click.option("--proxy", help="Its column of the reward that best-of-n picks by.")
@click.option("--gold", help="Its column of what is really wanted: a pool, a reward model, people.")
@click.option("--instruction", help="Its column that names the instruction. [default: instruction and input]")
@click.option("--confidence", default=0.95, show_default=True, type=click.FloatRange(0.5, 0.999))
@click.option("--figure", type=click.Path(path_type=Path), help="Write the curves as .svg, .png or .pdf.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def overopt(
    run_dir: Path | None,
    samples: Path | None,
    proxy: str | None,
    gold: str | None,
    instruction: str | None,
    confidence: float,
    figure: Path | None,
    as_json: bool,
) -> None:
    """Over-optimization curves of RUN_DIR or of a table of samples: fits, where gold peaks, what going on costs.

    Best-of-n is estimated for every n up to the number of samples; a run's trainings are shown along their steps.
    Gold of a run is in percent, gold of a table in its own units. Intervals are clustered by instruction.
    """
    if (run_dir is None) == (samples is None):
        raise ConfigError("Give a run directory, or --samples FILE with --proxy COLUMN and --gold COLUMN.")
    if figure is not None and figure.suffix.lower() not in (".svg", ".png", ".pdf"):
        raise ConfigError(f"--figure is {str(figure)!r}; give a file that ends in .svg, .png or .pdf.")
    if samples is not None:
        if proxy is None or gold is None:
            raise ConfigError("--samples needs --proxy COLUMN and --gold COLUMN.")
        found = [best_of_n_of(*read_samples(samples, proxy, gold, instruction), confidence=confidence)]
        unit = "units of gold"
    else:
        assert run_dir is not None
        if given := [f"--{k}" for k, v in (("proxy", proxy), ("gold", gold), ("instruction", instruction)) if v]:
            raise ConfigError(f"{', '.join(given)} belong to --samples; a run directory names its own.")
        found, unit = curves_of_run(run_dir, confidence=confidence), "points"
    if figure is not None:
        from simfarm.report.figures import style
        from simfarm.report.overoptimization import draw_curves, save_figure

        with style():
            save_figure(draw_curves(found, unit=unit).figure, figure)
    if as_json:
        click.echo(json.dumps(_json(found, unit), indent=1))
        return
    for curve in found:
        _print(curve)
    _print_fits(fits_table(found))
    for curve in found:
        click.echo(f"\n{curve.name}: {curve.said(unit)}")
    print_notes([note for curve in found for note in curve.notes])
    if figure is not None:
        click.echo(f"Figure: {figure}")


def _json(curves: list[Curve], unit: str) -> dict[str, object]:
    return {
        "unit": unit,
        "curves": {c.name: records(c.table) for c in curves},
        "fits": records(fits_table(curves)),
        "verdicts": records(pd.DataFrame([summary(c, unit) for c in curves])),
        "notes": [note for c in curves for note in c.notes],
    }


def _print(curve: Curve) -> None:
    table = curve.table
    shown = table.iloc[sorted({*_spread(len(table)), len(table) - 1})]
    if curve.position == "n":
        # powers of two, and the last
        shown = table[table["n"].map(lambda n: n & (n - 1) == 0) | (table["n"] == table["n"].max())]
    columns: dict[str, Iterable[object]] = {
        curve.position: shown[curve.position],
        "KL, nats": [number(v, 3) for v in shown["kl"]],
    }
    for name in ("proxy", "gold"):
        if f"{name}_ci_low" in shown:
            columns[name] = interval(shown, name, 3, (f"{name}_ci_low", f"{name}_ci_high"))
        elif name in shown:
            columns[name] = [number(v, 3) for v in shown[name]]
    print_table(f"{curve.name}: proxy and gold", columns)


def _spread(rows: int) -> set[int]:
    return set(range(0, rows, max(1, rows // 12)))


def _print_fits(fits: pd.DataFrame) -> None:
    if fits.empty:
        return
    ends = {name: (f"{name}_ci_low", f"{name}_ci_high") for name in ("alpha", "beta", "peak_kl")}
    columns: dict[str, Iterable[object]] = {
        "curve": fits["curve"],
        "form": [FORMULAS[form] for form in fits["form"]],
        "α": interval(fits, "alpha", 3, ends["alpha"]),
        "β": interval(fits, "beta", 3, ends["beta"]),
        "R²": [number(v, 3) for v in fits["r2"]],
        "predicted peak": [
            f"n = {n_of_kl(kl):.0f}" if form == "bon" and kl < 30 else f"KL = {kl:.3g}"
            for form, kl in zip(fits["form"], fits["peak_kl"], strict=True)
        ],
    }
    print_table("Fits of gold's gain, d = √KL", columns)
