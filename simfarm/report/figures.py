"""The figures of the report: one function each, drawn with matplotlib without its global state.

Colours are Okabe and Ito's (safe for the colour-blind), of like contrast on white and on dark; every series also has
a marker or line style of its own, so that figures can be read in grey.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simfarm.errors import DataError
from simfarm.report import findings
from simfarm.report.data import RunData
from simfarm.report.measures import calibration_of, held_out_accuracy, optimum
from simfarm.tables import require_columns

INK, GRID = "#24292f", "#d0d7de"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b5609a", "#a07b00", "#3f94c9", "#7a7f85")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
Share = Literal["row", "col"]
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
"""A date would make every file another; the rest says nothing."""
WIDTH = 6.75
"""Inches: the text width of a two-column paper."""
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    # a name with dollar signs is a name, not a formula
    "text.parse_math": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "simfarm",
}


@dataclass(frozen=True)
class Plot:
    """A figure with its caption (what to conclude), its text for those who cannot see it, and its hover texts."""

    name: str
    caption: str
    alt: str
    figure: Figure
    hover: dict[str, str] = field(default_factory=dict)
    """Text shown over the part of the figure with this id."""


@contextmanager
def style() -> Iterator[None]:
    """Draw and save with the report's style, leaving matplotlib's settings as they were."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # a method's name may use letters that the font lacks; the box drawn for them says enough
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def save(plot: Plot, folder: Path) -> None:
    """Write figures/NAME.svg and figures/NAME.png (200 dots per inch), on white."""
    folder.mkdir(parents=True, exist_ok=True)
    with style():
        plot.figure.savefig(folder / f"{plot.name}.svg", facecolor="white", metadata=NO_METADATA)
        plot.figure.savefig(folder / f"{plot.name}.png", facecolor="white", dpi=200)


def inline_svg(plot: Plot) -> str:
    """Return the figure as SVG for a page: ids of its own, ink and grid in the page's colours, hover texts."""
    buffer = io.StringIO()
    with style():
        plot.figure.savefig(buffer, format="svg", transparent=True, metadata=NO_METADATA)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "var(--ink)").replace(GRID, "var(--grid)")
    svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{plot.name}-", svg)
    for part, text in plot.hover.items():
        svg = svg.replace(
            f'<g id="{plot.name}-{part}">', f'<g id="{plot.name}-{part}"><title>{html.escape(text)}</title>'
        )
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1).rstrip()


def new_figure(
    height: float, rows: int = 1, columns: int = 1, *, sharex: bool | Share = False, sharey: bool | Share = False
) -> tuple[Figure, np.ndarray[Any, np.dtype[Any]]]:
    """Make a figure of the report's width and a height in inches, with (rows, columns) axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, sharex=sharex, sharey=sharey, squeeze=False)


def look(index: int) -> tuple[str, str]:
    """Return the colour and the marker of a series."""
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]


def win_rates(run: RunData) -> Plot:
    """Draw each method's win rate and interval."""
    rates = run.win_rates
    figure, axes = new_figure(1.1 + 0.36 * len(rates))
    ax: Axes = axes[0, 0]
    ax.axvline(50, color=INK, linewidth=1, linestyle="--")
    hover = {}
    for i, (_, row) in enumerate(rates.iterrows()):
        colour, marker = look(i)
        low, high = row["ci_low"], row["ci_high"]
        ax.plot([low, high], [i, i], color=colour, linewidth=2.2, solid_capstyle="butt")
        (point,) = ax.plot(row["win_rate"], i, marker=marker, color=colour, markersize=8, linestyle="none")
        point.set_gid(f"method-{i}")
        hover[f"method-{i}"] = f"{row['generator']}: {row['win_rate']:.1f} %, {findings.interval(row)}"
        edge = high if np.isfinite(high) else row["win_rate"]
        ax.annotate(f"{row['win_rate']:.1f}", (edge, i), (6, 0), textcoords="offset points", va="center")
    ax.set_yticks(range(len(rates)), list(rates["generator"]))
    ax.set_ylim(len(rates) - 0.4, -0.6)
    known = rates[["win_rate", "ci_low", "ci_high"]].to_numpy(float)
    ax.set_xlim(max(0, min(np.nanmin(known), 50) - 5), min(106, max(np.nanmax(known), 50) + 9))
    ax.set_xlabel("preferred to the baseline, % (line: 95 % interval, clustered by instruction)")
    ax.set_title("Win rate against the baseline")
    ax.grid(visible=False, axis="y")
    each = "; ".join(hover.values())
    caption = (
        "A method beats the baseline where its whole line lies right of the dashed one. Each interval is on its own: "
        "of twenty such intervals, one misses the true rate by chance."
    )
    return Plot("win_rates", caption, f"Win rates with intervals. {each}.", figure, hover)


def humans(run: RunData) -> Plot | None:
    """Draw simulated against human win rates."""
    both = run.humans
    if both is None or both.empty:
        return None
    figure, axes = new_figure(3.9)
    ax: Axes = axes[0, 0]
    hover = {}
    for i, (_, row) in enumerate(both.iterrows()):
        colour, marker = look(run.methods.index(row["generator"]))
        human_error = 0.0 if np.isnan(row["score_error"]) else 1.96 * row["score_error"]
        sides = np.nan_to_num([[row["win_rate"] - row["ci_low"]], [row["ci_high"] - row["win_rate"]]])
        ax.errorbar(
            row["win_rate"], row["score"], xerr=sides, yerr=human_error, color=colour, elinewidth=1.2, linestyle="none"
        )
        (point,) = ax.plot(row["win_rate"], row["score"], marker=marker, color=colour, markersize=8, linestyle="none")
        point.set_gid(f"method-{i}")
        hover[f"method-{i}"] = (
            f"{row['generator']}: simulated {row['win_rate']:.1f} %, {findings.interval(row)}; "
            f"human {row['score']:.1f} %"
        )
        ax.annotate(row["generator"], (row["win_rate"], row["score"]), (8, 6), textcoords="offset points")
    ax.margins(0.12)
    ax.set_xlabel("simulated win rate of this run against its baseline, %")
    ax.set_ylabel(f"human score ({run.setting('evaluation.human_ranking')}), %")
    ax.set_title("Simulated against human win rates")
    each = "; ".join(hover.values())
    return Plot("humans", findings.against_humans(run), f"Simulated against human win rates. {each}.", figure, hover)


def best_of_n(run: RunData) -> Plot | None:
    """Draw proxy and gold along best-of-n, against n and against KL."""
    curve = run.table("overoptimization/best_of_n.csv")
    if curve is None:
        return None
    last = curve.iloc[-1]
    alt = (
        f"Best-of-n for n from 1 to {last['n']:.0f}: proxy from {curve['proxy'].iloc[0]:.3f} to {last['proxy']:.3f}; "
        f"gold from {100 * curve['gold'].iloc[0]:.1f} % to {100 * last['gold']:.1f} %."
    )
    found = optimum(run)
    caption = f"{findings.over_optimization(found)} Bands: 95 % over instructions. Star: gold's highest point.".strip()
    return Plot("best_of_n", caption, alt, draw_curve(curve, None if found is None else found.n_peak))


def plot_best_of_n(curve: pd.DataFrame) -> Figure:
    """Draw an over-optimization curve; `figure.savefig("curve.svg")` writes it.

    Args:
        curve: From `simfarm.best_of_n`, gold being a probability from 0 to 1. The star marks gold's highest point.

    Raises:
        DataError: A column is missing, or gold is no probability.
    """
    bounds = [f"{name}_ci_{end}" for name in ("proxy", "gold") for end in ("low", "high")]
    require_columns(curve, ["n", "kl", "proxy", "gold", *bounds], "curve")
    low, high = curve["gold"].min(), curve["gold"].max()
    if low < 0 or high > 1:
        raise DataError(
            f"The curve's gold runs from {low:g} to {high:g}; plot_best_of_n draws a probability, from 0 to 1. "
            "Gold in another unit is drawn by: simfarm overopt --samples FILE --figure curve.svg"
        )
    with style():
        return draw_curve(curve, int(curve["n"].iloc[int(curve["gold"].argmax())]))


def draw_curve(curve: pd.DataFrame, peak: int | None) -> Figure:
    """Draw proxy above gold, against n and KL, with bands; a star on gold at n = `peak`."""
    figure, axes = new_figure(4.6, 2, 2, sharex="col", sharey="row")
    rows = (
        ("proxy", "reward model (proxy)", 1.0, "reward"),
        ("gold", "pool without noise (gold)", 100.0, "preferred to the baseline, %"),
    )
    for i, (name, title, scale, unit) in enumerate(rows):
        colour, marker = look(i)
        for j, x in enumerate(("n", "kl")):
            ax: Axes = axes[i, j]
            ax.fill_between(
                curve[x], scale * curve[f"{name}_ci_low"], scale * curve[f"{name}_ci_high"], color=colour, alpha=0.22,
                linewidth=0,
            )  # fmt: skip
            ax.plot(
                curve[x],
                scale * curve[name],
                color=colour,
                marker=marker,
                markersize=4,
                markevery=max(1, len(curve) // 16),
            )
            if name == "gold":
                ax.axhline(50, color=INK, linewidth=1, linestyle="--")
                if peak is not None:
                    best = curve[curve["n"] == peak]
                    ax.plot(best[x], scale * best[name], marker="*", markersize=12, color=INK, linestyle="none")
            if i == 0:
                ax.set_title(f"Best-of-n against {'n' if j == 0 else 'KL'}")
            if j == 0:
                ax.set_ylabel(f"{title}\n{unit}")
    axes[1, 0].set_xscale("log", base=2)
    axes[1, 0].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes[1, 0].set_xlabel("n, samples to choose from (log scale)")
    axes[1, 1].set_xlabel("KL from the initial policy, nats: log n − (n − 1)/n")
    return figure


def reward_model(run: RunData) -> Plot | None:
    """Draw the reward model's loss, its accuracy beside that of length, and its calibration."""
    log, accuracy = run.table("reward/metrics.jsonl"), run.json("reward/accuracy.json")
    if log is None or accuracy is None:
        return None
    calibration = calibration_of(run)
    figure, axes = new_figure(2.8, 1, 3 if calibration is not None else 2)
    ax: Axes = axes[0, 0]
    window = max(2, len(log) // 10)
    smooth = log["loss"].rolling(window, min_periods=1).mean()
    ax.plot(log["step"], log["loss"], color=COLOURS[6], linewidth=0.7, label="batch")
    ax.plot(log["step"], smooth, color=COLOURS[0], label=f"mean of last {window}")
    ax.axhline(np.log(2), color=INK, linewidth=1, linestyle="--")
    ax.set(title="Training loss", xlabel="step", ylabel="pairwise loss, nats (dashed: log 2)")
    ax.legend(loc="lower left")
    ax = axes[0, 1]
    titles = {"clean": "reward,\nclean", "noisy": "reward,\nnoisy", "of_length": "longer,\nclean"}
    shares = {titles[kind]: share.scaled(100) for kind, share in held_out_accuracy(run).items()}
    for i, share in enumerate(shares.values()):
        colour, marker = look(i)
        ax.plot([i, i], [share.ci_low, share.ci_high], color=colour, linewidth=2.2)
        ax.plot(i, share.value, marker=marker, color=colour, markersize=8, linestyle="none")
    ax.axhline(50, color=INK, linewidth=1, linestyle="--")
    ax.set_xticks(range(len(shares)), list(shares))
    ax.set_xlim(-0.5, len(shares) - 0.5)
    ax.set_ylim(0, 103)
    ax.set(title="Held-out accuracy", ylabel="pairs ordered as labelled, %")
    alt = "Training loss by step; held-out accuracy: " + ", ".join(
        f"{title.replace(chr(10), ' ')} {share.value:.0f} %" for title, share in shares.items()
    )
    clustered = any(np.isfinite(share.ci_low) for share in shares.values())
    caption = findings.reward_model(run) + (" Lines: 95 % intervals, clustered by instruction." if clustered else "")
    if calibration is not None:
        flip = float(run.setting("annotation.flip") or 0)
        _draw_calibration(axes[0, 2], calibration, flip)
        alt += "; calibration: " + ", ".join(
            f"{100 * row['predicted']:.0f} % predicted, {100 * row['gold']:.0f} % gold"
            for _, row in calibration.iterrows()
        )
        caption += (
            " Calibration: the reward model's probability that a sample beats the baseline's output, against the "
            "pool's. Labels with this share of flips teach the dotted line; a curve flatter than it is overconfident."
        )
    return Plot("reward_model", caption, f"{alt}.", figure)


def _draw_calibration(ax: Axes, table: pd.DataFrame, flip: float) -> None:
    x = 100 * table["predicted"].to_numpy(float)
    ends = np.array([min(x.min(), 50.0), max(x.max(), 50.0)])
    ax.plot(ends, ends, color=INK, linewidth=1, linestyle="--", label="calibrated")
    if 0 < flip < 0.5:
        # P(noisy label) = flip + (1 - 2 flip) P(clean label)
        taught = np.clip((ends / 100 - flip) / (1 - 2 * flip), 0, 1)
        ax.plot(ends, 100 * taught, color=INK, linewidth=1.2, linestyle=":", label=f"with {100 * flip:.0f} % flips")
    ax.fill_between(x, 100 * table["ci_low"], 100 * table["ci_high"], color=COLOURS[2], alpha=0.22, linewidth=0)
    ax.plot(x, 100 * table["gold"], color=COLOURS[2], marker="^", markersize=5)
    ax.set(title="Calibration", xlabel="reward model's probability, %", ylabel="pool's probability, %")
    ax.legend(loc="upper left")
