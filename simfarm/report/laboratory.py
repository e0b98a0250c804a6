"""The report of a laboratory: report.md, a self-contained report.html, a figure and a table per family."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from simfarm.evaluation.clustering import Estimate
from simfarm.experiments.laboratory.analysis import Family
from simfarm.experiments.laboratory.config import LaboratoryConfig
from simfarm.report.figures import Plot, save, style
from simfarm.report.html import figure_html, prose, render, write_text
from simfarm.report.overoptimization import draw_family, title_of
from simfarm.report.tabulate import Cell, Column, Table, markdown_text, to_html, to_markdown

UNIT = "units of gold"
COLUMNS = [
    Column(name)
    for name in (
        "curve and arm", "gold peaks at", "gain there", "fall to the end", "verdict", "end, minus first arm", "α", "β",
        "R²",
    )
]  # fmt: skip


def write_laboratory_report(folder: Path, config: LaboratoryConfig, families: Sequence[Family]) -> None:
    """Write report.md, report.html and figures/FAMILY.svg and .png of a laboratory.

    Args:
        folder: The run directory.
        config: What was run.
        families: What came out.
    """
    note = (
        f"{config.seeds} seeds, N = {config.samples} samples of {config.prompts} prompts, PPO of {config.ppo.steps} "
        f"steps; gold is computed from the text."
    )
    with style():
        plots = [draw_family(family.name, family.arms, unit=UNIT, note=note) for family in families]
    tables = [family_table(family) for family in families]
    for plot in plots:
        save(plot, folder / "figures")
    title = f"simfarm: {config.name}, seeds {config.seed} to {config.seed + config.seeds - 1}"
    about = f"{config.description} {note} Every interval is 95 %, with the seed as its unit."
    parts = [f"# {title}", about]
    for plot, table in zip(plots, tables, strict=True):
        parts += [
            f"## {plot.name.replace('_', ' ').capitalize()}",
            f"![{markdown_text(plot.alt)}](figures/{plot.name}.png)",
        ]
        parts += [markdown_text(plot.caption), to_markdown(table)]
    write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    sections = "".join(_section(plot, table) for plot, table in zip(plots, tables, strict=True))
    slots = {"about": prose(about), "sections": sections}
    write_text(folder / "report.html", render("laboratory.html", title, slots))


def _section(plot: Plot, table: Table) -> str:
    heading = html.escape(plot.name.replace("_", " ").capitalize())
    return f"<section><h2>{heading}</h2>{figure_html({plot.name: plot}, plot.name)}{to_html(table)}</section>"


def family_table(family: Family) -> Table:
    """Return what a family's curves say, one row per curve."""
    rows: list[list[Cell]] = []
    for kind in ("best_of_n", "ppo"):
        for label, curves in family.arms.items():
            if kind not in curves or (peak := curves[kind].peak) is None:
                continue
            fit, name = curves[kind].fit, curves[kind].position
            gap = family.against_first.get((label, kind))
            rows.append(
                [
                    f"{title_of(kind)}, {label}",
                    f"{name} = {peak.position:g} ({peak.low:g} to {peak.high:g})",
                    _with_interval(peak.gain),
                    _with_interval(peak.fall),
                    "falls" if peak.falls else "no fall shown",
                    None if gap is None else _with_interval(gap),
                    None if fit is None else _with_interval(fit.alpha),
                    None if fit is None else _with_interval(fit.beta),
                    None if fit is None else f"{fit.r2:.2f}",
                ]
            )
    caption = (
        f"{family.name.replace('_', ' ')}: in {UNIT}, with 95 % intervals over seeds. End, minus first arm: gold at "
        "the end of a curve minus that of the first arm's, paired by seed."
    )
    return Table(caption, COLUMNS, rows)


def _with_interval(estimate: Estimate) -> str:
    return f"{estimate.value:+.2f} ({estimate.ci_low:+.2f} to {estimate.ci_high:+.2f})"
