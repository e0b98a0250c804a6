"""Figures of training (one per method that leaves a log) and of the annotators; and all figures of a run in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from simfarm.report.data import RunData
from simfarm.report.figures import (
    COLOURS,
    INK,
    Plot,
    best_of_n,
    humans,
    look,
    new_figure,
    reward_model,
    style,
    win_rates,
)
from simfarm.report.goodhart import FIRST_WORDS, MEASURES
from simfarm.report.goodhart import goodhart as side_by_side
from simfarm.report.measures import FEWEST, annotator_shares, disagreements

ROLLOUT_PANELS = (
    ("reward", "Reward", "reward model's, mean"), ("kl", "KL from the start", "nats per response"),
    ("entropy", "Entropy", "nats per token"), ("length", "Length", "tokens"),
    ("clip_fraction", "Clipped", "% of tokens"), ("value_loss", "Value loss", "squared error"),
    ("explained_variance", "Explained variance", "of returns, by the values"),
    ("finished", "Finished", "% of responses"),
)  # fmt: skip
SUPERVISED = ("sft", "expert_iteration")
"""Methods whose loss is the cross-entropy of the texts they learn."""
ROLLOUT_COLUMNS = {"reward", "kl"}
"""What the log of a method that learns from rollouts has; the log of one that learns from texts has a loss alone."""


def all_plots(run: RunData) -> list[Plot]:
    """Draw every figure that the run's files allow, in the order of the report."""
    first: tuple[Callable[[RunData], Plot | None], ...] = (win_rates, humans, best_of_n, goodhart, reward_model)
    with style():
        drawn = [*(draw(run) for draw in first), *rollouts(run), losses(run), annotators(run), disagreement(run)]
    return [plot for plot in drawn if plot is not None]


def goodhart(run: RunData) -> Plot | None:
    """Draw proxy, judge, gold, length and diversity side by side, a row per method."""
    table = side_by_side(run)
    if table is None:
        return None
    units = {
        "proxy": ("sd of baseline", "+.2f"), "judge": ("% preferred", ".1f"), "gold": ("% preferred", ".1f"),
        "length": ("characters", ".0f"), "diversity": ("% distinct pairs", ".1f"),
    }  # fmt: skip
    figure, axes = new_figure(1.1 + 0.27 * len(table), 1, len(MEASURES), sharey=True)
    baseline, hover = table.iloc[-1], {}
    for j, (measure, ax) in enumerate(zip(MEASURES, axes.flat, strict=True)):
        (colour, marker), (unit, form) = look(j), units[measure]
        ax.axvline(baseline[measure], color=INK, linewidth=1, linestyle="--")
        for i, (_, row) in enumerate(table.iterrows()):
            low, high = row[f"{measure}_ci_low"], row[f"{measure}_ci_high"]
            apart = low > baseline[measure] or high < baseline[measure]
            ax.plot([low, high], [i, i], color=colour, linewidth=2, solid_capstyle="butt")
            (point,) = ax.plot(
                row[measure], i, marker=marker, color=colour, markersize=5.5, linestyle="none",
                markerfacecolor=colour if apart else "white",
            )  # fmt: skip
            gid = f"{measure}-{i}"
            point.set_gid(gid)
            bounds = f" ({low:{form}} to {high:{form}})" if np.isfinite(low) else ""
            hover[gid] = f"{row['generator']}, {measure}: {row[measure]:{form}} {unit}{bounds}"
        ax.set(title=measure.capitalize(), xlabel=unit)
        ax.grid(visible=False, axis="y")
    rates = [ax.get_xlim() for ax in axes[0, 1:3]]
    for ax in axes[0, 1:3]:
        ax.set_xlim(min(low for low, _ in rates), max(high for _, high in rates))
    axes[0, 0].set_yticks(range(len(table)), list(table["generator"]))
    axes[0, 0].set_ylim(len(table) - 0.4, -0.6)
    caption = (
        "Right of the dashed line, the baseline, in proxy but not in gold: the reward model sees a gain that gold does "
        "not show. Judge: the annotators of the training labels, with their noise; gold: the pool without noise. "
        f"Diversity: in the first {FIRST_WORDS} words of the responses. Lines: 95 % intervals, clustered by "
        "instruction; open marks: the interval includes the baseline's value."
    )
    each = "; ".join(
        f"{r['generator']}: " + ", ".join(f"{m} {r[m]:{units[m][1]}} {units[m][0]}" for m in MEASURES)
        for _, r in table.iterrows()
    )
    return Plot(
        "goodhart", caption, f"Proxy, judge, gold, length and diversity of every method. {each}.", figure, hover
    )


def rollouts(run: RunData) -> list[Plot]:
    """Draw the training curves of each method that learns from rollouts."""
    logs = {method: run.training_log(method) for method in run.trained}
    return [
        _rollouts(method, log)
        for method, log in logs.items()
        if log is not None and set(log.columns) >= ROLLOUT_COLUMNS
    ]


def _rollouts(method: str, log: pd.DataFrame) -> Plot:
    panels = [panel for panel in ROLLOUT_PANELS if panel[0] in log.columns]
    figure, axes = new_figure(1.75 * -(-len(panels) // 4) + 0.4, -(-len(panels) // 4), min(4, len(panels)), sharex=True)
    figure.suptitle(method, fontsize="medium")
    for i, ax in enumerate(axes.flat):
        if i >= len(panels):
            ax.set_visible(False)
            continue
        name, title, unit = panels[i]
        scale = 100 if unit.startswith("%") else 1
        ax.plot(log["step"], scale * log[name], color=COLOURS[0], marker="o", markersize=3 if len(log) <= 50 else 0)
        ax.set_title(title)
        ax.set_ylabel(unit)
        ax.xaxis.get_major_locator().set_params(integer=True)
    for ax in axes[-1]:
        ax.set_xlabel("step")
    first, last = log.iloc[0], log.iloc[-1]
    each = "; ".join(f"{title} {first[name]:.3g} to {last[name]:.3g}" for name, title, _ in panels)
    alt = f"{method} from the first to the last of {len(log)} steps: {each}."
    return Plot(f"training_{method}", f"{method}: {training(log)}", alt, figure)


def training(log: pd.DataFrame) -> str:
    """Say what a method's reward and KL did, and how that compares with the scatter between steps."""
    if len(log) < 2:
        return "One step only: no course to see."
    third = max(1, len(log) // 3)
    start, end = log["reward"].head(third), log["reward"].tail(third)
    change = end.mean() - start.mean()
    text = (
        f"Over {len(log)} steps the mean reward of rollouts went from {start.mean():.3f} (first {third}) to "
        f"{end.mean():.3f} (last {third}), at a KL of {log['kl'].iloc[-1]:.2f} nats. "
    )
    if third < 3:
        return f"{text}Too few steps to set that against the scatter between steps."
    error = float(np.hypot(start.std(ddof=1), end.std(ddof=1)) / np.sqrt(third))
    verb = "more" if abs(change) > 2 * error else "no more"
    return f"{text}That is {verb} than twice the standard error from the scatter between steps ({error:.3f})."


def losses(run: RunData) -> Plot | None:
    """Draw the loss of each method that learns from texts, such as expert iteration."""
    logs = {method: run.training_log(method) for method in run.trained}
    shown = {
        method: log
        for method, log in logs.items()
        if log is not None and "loss" in log.columns and not set(log.columns) >= ROLLOUT_COLUMNS
    }
    if not shown:
        return None
    columns = min(3, len(shown))
    figure, axes = new_figure(2.3 * -(-len(shown) // columns), -(-len(shown) // columns), columns)
    said = []
    for i, ax in enumerate(axes.flat):
        if i >= len(shown):
            ax.set_visible(False)
            continue
        method, log = list(shown.items())[i]
        colour, _ = look(run.methods.index(method))
        window = max(2, len(log) // 8)
        smooth = log["loss"].rolling(window, min_periods=1).mean()
        ax.plot(log["step"], log["loss"], color=COLOURS[6], linewidth=0.7, label="batch")
        ax.plot(log["step"], smooth, color=colour, label=f"mean of last {window}")
        ax.set(title=method, xlabel="step", ylabel="loss, nats per token" if method in SUPERVISED else "loss")
        ax.legend(loc="upper right")
        third = max(1, len(log) // 3)
        start, end = log["loss"].head(third).mean(), log["loss"].tail(third).mean()
        said.append(f"{method} {start:.3f} (first {third} steps) to {end:.3f} (last {third})")
    caption = (
        f"Mean training loss: {'; '.join(said)}. A loss on texts the policy chose itself says how well it fits them, "
    )
    caption += "not how good they are."
    return Plot("training_losses", caption, f"Training losses by step. {'; '.join(said)}.", figure)


def annotators(run: RunData) -> Plot | None:
    """Draw how many labels each annotator gave, and its tastes for length and position."""
    labels = run.table("labels.parquet")
    if labels is None:
        return None
    shares = annotator_shares(labels)
    everyone = shares.iloc[-1]
    shares = shares[:-1]
    figure, axes = new_figure(1.2 + 0.26 * len(shares), 1, 3, sharey=True)
    rows = np.arange(len(shares))
    axes[0, 0].barh(rows, shares["judged"], color=COLOURS[0], height=0.62)
    axes[0, 0].barh(
        rows, shares["judged"] * shares["flipped"], color=COLOURS[1], height=0.62, hatch="////", edgecolor="white",
        linewidth=0,
    )  # fmt: skip
    axes[0, 0].set(title="Labels", xlabel="for training (hatched: flipped)")
    for ax, taste, title, colour, marker in (
        (axes[0, 1], "longer", "Chose the longer", COLOURS[2], "^"),
        (axes[0, 2], "first", "Chose the first shown", COLOURS[3], "D"),
    ):
        ax.axvline(50, color=INK, linewidth=1, linestyle="--")
        ax.hlines(rows, 100 * shares[f"{taste}_low"], 100 * shares[f"{taste}_high"], color=colour, linewidth=2.2)
        ax.plot(100 * shares[taste], rows, marker=marker, color=colour, markersize=6, linestyle="none")
        ax.set(title=title, xlabel="% of clean verdicts", xlim=(-2, 102))
    axes[0, 0].set_yticks(rows, list(shares["annotator"]))
    axes[0, 0].set_ylim(len(shares) - 0.4, -0.6)
    for ax in axes.flat:
        ax.grid(visible=False, axis="y")
    caption = (
        f"{everyone['judged']} labels, {everyone['missing']} missing, {100 * everyone['flipped']:.0f} % flipped as "
        f"noise. Clean verdicts choose the longer response in {_with_interval(everyone, 'longer')} and the one "
        f"shown first in {_with_interval(everyone, 'first')}. Lines: 95 % intervals, clustered by instruction."
    )
    each = "; ".join(
        f"{r['annotator']}: {r['judged']} labels, longer {100 * r['longer']:.0f} %, first {100 * r['first']:.0f} %"
        for _, r in shares.iterrows()
    )
    return Plot("annotators", caption, f"Labels and tastes by annotator. {each}.", figure)


def _with_interval(row: pd.Series, taste: str) -> str:
    if np.isnan(row[taste]):
        return "no known share"
    if np.isnan(row[f"{taste}_low"]):
        return f"{100 * row[taste]:.0f} %"
    return f"{100 * row[taste]:.0f} % ({100 * row[f'{taste}_low']:.0f} to {100 * row[f'{taste}_high']:.0f})"


def disagreement(run: RunData) -> Plot | None:
    """Draw how often each two annotators disagree on the comparisons that both judged."""
    table = disagreements(run)
    if table is None:
        return None
    names = list(dict.fromkeys(table["annotator_a"]))
    share = table.pivot(index="annotator_a", columns="annotator_b", values="disagree").loc[names, names].to_numpy(float)
    figure, axes = new_figure(1.9 + 0.3 * len(names))
    ax: Axes = axes[0, 0]
    # no colour bar: the numbers stand in the cells, and a bar would be an image, which the page may not load
    mesh = ax.pcolormesh(100 * share, cmap="cividis", vmin=0, vmax=100, edgecolors="white", linewidth=0.5)
    hover = {}
    for i, j in zip(*np.nonzero(np.isfinite(share)), strict=True):
        ink = _readable_on([float(c) for c in mesh.to_rgba(100 * share[i, j])])
        ax.text(j + 0.5, i + 0.5, f"{100 * share[i, j]:.0f}", ha="center", va="center", color=ink, fontsize=7,
                gid=f"cell-{i}-{j}")  # fmt: skip
    for _, row in table[table["disagree"].notna()].iterrows():
        i, j = names.index(row["annotator_a"]), names.index(row["annotator_b"])
        hover[f"cell-{i}-{j}"] = (
            f"{row['annotator_a']} and {row['annotator_b']}: {100 * row['disagree']:.0f} % of {row['n']:.0f} "
            f"(95 % interval {100 * row['low']:.0f} to {100 * row['high']:.0f})"
        )
    ticks = np.arange(len(names)) + 0.5
    ax.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(ticks, names)
    ax.set_ylim(len(names), 0)
    ax.set_aspect("equal")
    ax.grid(visible=False)
    ax.set_title("How often two annotators disagree, %")
    known = table.dropna(subset=["disagree"])
    other = known[known["annotator_a"] != known["annotator_b"]]
    same = known[known["annotator_a"] == known["annotator_b"]]
    caption = "Clean verdicts, no ties, of two annotators on the same comparison; 50 % is what two coins would have. "
    if len(other):
        ordered = other.sort_values("disagree", kind="stable")
        low, top = ordered.iloc[0], ordered.iloc[-1]
        caption += (
            f"Furthest apart: {top['annotator_a']} and {top['annotator_b']} ({100 * top['disagree']:.0f} % of "
            f"{top['n']:.0f}); closest: {low['annotator_a']} and {low['annotator_b']} ({100 * low['disagree']:.0f} %). "
        )
    if len(same):
        caption += (
            f"The diagonal is an annotator against itself, asked again (mean {100 * same['disagree'].mean():.0f} %). "
        )
    caption += f"Empty: fewer than {FEWEST} verdicts in common."
    each = "; ".join(text for key, text in hover.items() if int(key.split("-")[1]) <= int(key.split("-")[2]))
    return Plot("disagreement", caption, f"Disagreement of annotators. {each}.", figure, hover)


def _readable_on(colour: Sequence[float]) -> str:
    """Return black or white, whichever has the greater contrast on a colour (WCAG 2: at least 4.5 to 1, always)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.179 else "#ffffff"
