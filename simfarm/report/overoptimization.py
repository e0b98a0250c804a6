"""Figures of over-optimization: proxy and gold against √KL, with the fitted form and the highest point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simfarm.overoptimization.curves import Curve
from simfarm.overoptimization.fits import FORMULAS
from simfarm.report.figures import INK, Plot, look, new_figure, style

TITLES = {"best_of_n": "Best-of-n", "ppo": "PPO", "expert_iteration": "Expert iteration"}
ROWS = ("proxy", "gold")


def title_of(name: str) -> str:
    """Return what a figure calls a curve."""
    return TITLES.get(name, name)


def draw_curves(curves: Sequence[Curve], *, unit: str = "points", note: str = "") -> Plot:
    """Draw proxy above gold against √KL, a column per curve; gold with its fit (dashed) and highest point (star).

    Args:
        curves: One or more.
        unit: Of gold.
        note: Ends the caption: N, seeds, judge.
    """
    figure, axes = new_figure(4.8, 2, len(curves), sharex="col")
    for column, curve in enumerate(curves):
        for row, name in enumerate(ROWS):
            _draw(axes[row, column], curve, name, row, with_fit=True)
        axes[0, column].set_title(title_of(curve.name))
        axes[1, column].set_xlabel("√KL from the initial policy, √nats")
    axes[0, 0].set_ylabel("proxy reward")
    axes[1, 0].set_ylabel(f"gold, {unit}")
    said = " ".join(f"{title_of(c.name)}: {c.said(unit)}" for c in curves)
    caption = f"{said} Bands: 95 % intervals. Dashed: the fitted form. Star: gold's highest point. {note}".strip()
    return Plot("overoptimization", caption, f"Over-optimization curves. {said}", figure)


def draw_family(name: str, arms: Mapping[str, Mapping[str, Curve]], *, unit: str, note: str) -> Plot:
    """Draw the arms of a family: columns best-of-n and PPO, rows proxy and gold, a line per arm.

    Args:
        name: Of the family, and of the figure's file.
        arms: Curves by arm.
        unit: Of gold.
        note: N, seeds, judge.
    """
    kinds = [kind for kind in ("best_of_n", "ppo") if any(kind in curves for curves in arms.values())]
    figure, axes = new_figure(5.2, 2, len(kinds), sharex="col", sharey="row")
    for column, kind in enumerate(kinds):
        for number, (label, curves) in enumerate(arms.items()):
            if kind not in curves:
                continue
            for row, value in enumerate(ROWS):
                _draw(axes[row, column], curves[kind], value, number, with_fit=False, label=label)
        axes[0, column].set_title(f"{title_of(kind)}: {name.replace('_', ' ')}")
        axes[1, column].set_xlabel("√KL from the initial policy, √nats")
    axes[0, 0].set_ylabel("proxy reward")
    axes[1, 0].set_ylabel(f"gold, {unit}")
    figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(arms), 4))
    falling = {
        kind: [label for label, curves in arms.items() if kind in curves and (p := curves[kind].peak) and p.falls]
        for kind in kinds
    }
    said = "; ".join(
        f"{title_of(kind)}: gold falls beyond its interval with {', '.join(names) or 'none of them'}"
        for kind, names in falling.items()
    )
    caption = f"{said}. Bands: 95 % intervals over seeds. Star: gold's highest point. {note}"
    return Plot(name, caption, f"{name.replace('_', ' ')}. {said}.", figure)


def _draw(ax: Axes, curve: Curve, value: str, number: int, *, with_fit: bool, label: str | None = None) -> None:
    table, (colour, marker) = curve.table, look(number)
    x = np.sqrt(np.maximum(table["kl"].to_numpy(float), 0.0))
    if value not in table:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center")
        return
    y = table[value].to_numpy(float)
    if f"{value}_ci_low" in table:
        # a policy may turn back: its band is drawn in the order of x
        order = np.argsort(x, kind="stable")
        low, high = (table[f"{value}_ci_{end}"].to_numpy(float)[order] for end in ("low", "high"))
        ax.fill_between(x[order], low, high, color=colour, alpha=0.15, linewidth=0)
    ax.plot(x, y, color=colour, marker=marker, markersize=3.5, markevery=max(1, len(x) // 12), label=label)
    if value != "gold":
        return
    if curve.peak is not None:
        at = int(np.argmax(y))
        ax.plot(x[at], y[at], marker="*", markersize=11, color=colour, markeredgecolor=INK, linestyle="none")
    if with_fit and curve.fit is not None:
        grid = np.linspace(0, x.max(), 200)
        shown = f"{FORMULAS[curve.fit.form]}, R² = {curve.fit.r2:.2f}"
        ax.plot(grid, y[0] + curve.fit.at(grid**2), color=INK, linestyle="--", linewidth=1.1, label=shown)
        ax.legend(loc="best")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; the suffix of the path says how."""
    with style():
        figure.savefig(path, facecolor="white", dpi=200)
