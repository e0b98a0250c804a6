"""Several runs side by side: their methods, what their configs differ in, and which differences are beyond chance."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy import stats

from simfarm.errors import DataError
from simfarm.evaluation.clustering import holm
from simfarm.evaluation.winrate import paired_differences
from simfarm.experiments.config import flatten
from simfarm.report import findings
from simfarm.report.data import BASELINE, RunData, open_run
from simfarm.report.figures import INK, Plot, look, new_figure, style
from simfarm.report.goodhart import JUDGE
from simfarm.report.html import figure_html, prose, render, write_text
from simfarm.report.measures import held_out_accuracy, kl_of, money, optimum
from simfarm.report.tabulate import Column, Table, to_html

LABELS = "evaluation/labels.parquet"
ABSENT = "–"


@dataclass(frozen=True)
class Compared:
    """Runs side by side. Rates and differences are in percent."""

    runs: dict[str, RunData]
    """By name, in the order given; the first is the reference."""
    methods: pd.DataFrame
    """run, method, win_rate, ci_low, ci_high, lc_win_rate, length, kl, n_instructions."""
    settings: pd.DataFrame
    """Keys of the configs, and hashes of what they name, that are not the same in all runs: key, one column a run."""
    differences: pd.DataFrame
    """A method in a run minus the same in the first run: method, run, difference, standard_error, ci_low, ci_high, p,
    p_adjusted (Holm, over the table), n_instructions, note. Scores are paired by instruction."""
    summary: pd.DataFrame
    """run, minutes, label_cost (US dollars, NaN if unknown), reward_accuracy, ci_low, ci_high (on held-out clean
    labels), best_of_n_gain (points of gold from n = 1 to the largest)."""
    seeds: pd.DataFrame
    """Where the runs differ in their seed alone: method, mean, sd (between seeds), ci_low, ci_high, n_seeds."""
    notes: list[str]
    """What keeps the runs from being compared, and what the table shows."""


def compare_runs(folders: Sequence[Path]) -> Compared:
    """Put finished runs side by side.

    Args:
        folders: Run directories; the first is the reference of the differences.

    Raises:
        DataError: There are fewer than two, or one stands twice.
        RunError: One holds no finished run.
    """
    if len(folders) < 2:
        raise DataError(f"A comparison needs two runs or more; {len(folders)} given.")
    names = run_names(folders)
    runs = {name: open_run(folder) for name, folder in zip(names, folders, strict=True)}
    settings = differing(runs)
    differences = against_first(runs)
    by_seed = set(settings["key"]) == {"seed"}
    seeds = over_seeds(runs) if by_seed else pd.DataFrame()
    found = Compared(
        runs=runs,
        methods=pd.concat([_methods(name, run) for name, run in runs.items()], ignore_index=True),
        settings=settings,
        differences=differences,
        summary=pd.DataFrame([_summary(name, run) for name, run in runs.items()]),
        seeds=seeds,
        notes=[],
    )
    found.notes.extend(_notes(found))
    return found


def run_names(folders: Sequence[Path]) -> list[str]:
    """Name runs by the last parts of their paths, as many as tell them apart.

    Raises:
        DataError: One stands twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    twice = next(str(folder) for folder, path in zip(folders, parts, strict=True) if parts.count(path) > 1)
    raise DataError(f"The run {twice} is given twice.")


def differing(runs: dict[str, RunData]) -> pd.DataFrame:
    """Return the keys of config.json that are not the same in all runs: key, one column a run (text)."""
    flat = {name: {**dict(flatten(run.config)), **_hashes(run)} for name, run in runs.items()}
    keys = dict.fromkeys(itertools.chain.from_iterable(flat.values()))
    rows = [
        {"key": key, **{name: str(values.get(key, ABSENT)) for name, values in flat.items()}}
        for key in keys
        if len({str(values.get(key, ABSENT)) for values in flat.values()}) > 1
    ]
    return pd.DataFrame(rows, columns=["key", *runs])


def _hashes(run: RunData) -> dict[str, str]:
    known = {f"hash of {name}": str(value)[:12] for name, value in run.record.get("inputs", {}).items()}
    return {**known, "simfarm": str(run.record.get("simfarm"))}


def _methods(name: str, run: RunData) -> pd.DataFrame:
    rates = run.win_rates
    controlled = run.table("evaluation/length_controlled.csv")
    equal = {} if controlled is None else dict(zip(controlled["generator"], controlled["lc_win_rate"], strict=True))
    return pd.DataFrame(
        {
            "run": name,
            "method": rates["generator"],
            "win_rate": rates["win_rate"],
            "ci_low": rates["ci_low"],
            "ci_high": rates["ci_high"],
            "lc_win_rate": [equal.get(method, np.nan) for method in rates["generator"]],
            "length": rates["mean_length"],
            "kl": [np.nan if (kl := kl_of(run, method)) is None else kl for method in rates["generator"]],
            "n_instructions": rates["n_instructions"],
        }
    )


def _summary(name: str, run: RunData) -> dict[str, Any]:
    accuracy = held_out_accuracy(run).get("clean")
    best = optimum(run)
    judged = [JUDGE] if run.table(JUDGE) is not None else []
    costs = [money(run, file) for file in ("labels.parquet", LABELS, *judged)]
    unknown = any(cost is None for cost in costs)
    return {
        "run": name,
        "minutes": sum(run.seconds.values()) / 60,
        "label_cost": np.nan if unknown else sum(cost for cost in costs if cost is not None),
        "reward_accuracy": np.nan if accuracy is None else 100 * accuracy.value,
        "ci_low": np.nan if accuracy is None else 100 * accuracy.ci_low,
        "ci_high": np.nan if accuracy is None else 100 * accuracy.ci_high,
        "best_of_n_gain": np.nan if best is None else best.gain.value,
    }


def against_first(runs: dict[str, RunData]) -> pd.DataFrame:
    """Subtract a method's scores in the first run from its scores in each other run, paired by instruction."""
    columns = ["difference", "standard_error", "ci_low", "ci_high", "p", "n_instructions", "note"]
    first, *others = runs
    labels = {name: run.table(LABELS) for name, run in runs.items()}
    rows = []
    for name in others:
        for method in (m for m in runs[first].methods if m in runs[name].methods):
            parts = [
                table[table["generator_2"] == method].assign(generator_2=side, generator_1=BASELINE)
                for side, table in (("a", labels[name]), ("b", labels[first]))
                if table is not None
            ]
            if len(parts) < 2:
                continue
            row = paired_differences(pd.concat(parts, ignore_index=True), baseline=BASELINE).iloc[0]
            sign = 1 if row["generator_a"] == "a" else -1
            low, high = sorted((sign * row["ci_low"], sign * row["ci_high"]))
            mean = row.to_dict() | {"difference": sign * row["difference"], "ci_low": low, "ci_high": high}
            rows.append({"method": method, "run": name, **{column: mean[column] for column in columns}})
    table = pd.DataFrame(rows, columns=["method", "run", *columns])
    return table.assign(p_adjusted=holm(table["p"].to_numpy(float)) if len(table) else [])


def over_seeds(runs: dict[str, RunData]) -> pd.DataFrame:
    """Average each method's win rate over runs that differ in their seed alone, with Student's t interval."""
    rates = pd.concat([run.win_rates[["generator", "win_rate"]] for run in runs.values()])
    rows = []
    for method, group in rates.groupby("generator", sort=False):
        values = group["win_rate"].to_numpy(float)
        n = len(values)
        spread = float(values.std(ddof=1)) if n > 1 else np.nan
        half = float(stats.t.ppf(0.975, n - 1)) * spread / np.sqrt(n) if n > 1 else np.nan
        mean = float(values.mean())
        row = {"mean": mean, "sd": spread, "ci_low": mean - half, "ci_high": mean + half, "n_seeds": n}
        rows.append({"method": method, **row})
    return pd.DataFrame(rows).sort_values("mean", ascending=False, kind="stable").reset_index(drop=True)


def _notes(found: Compared) -> list[str]:
    keys = list(found.settings["key"])
    notes = []
    if not keys:
        notes.append("The runs have the same config: they must have the same results")
    elif found.seeds.empty:
        shown = ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
        notes.append(f"The runs differ in: {shown}")
    else:
        notes.append("The runs differ in their seed alone: the spread between them is chance")
    pools = {(run.setting("evaluation.pool"), _hash_of(run, "evaluation.pool")) for run in found.runs.values()}
    if len(pools) > 1:
        notes.append("The runs were judged by different pools: their win rates are not on one scale")
    baselines = {_content(run) for run in found.runs.values()}
    if len(baselines) > 1:
        notes.append("Each run's rates are against its own baseline's outputs, which are not the same in all runs")
    beyond = found.differences[found.differences["p_adjusted"] < 0.05]
    for _, row in beyond.iterrows():
        notes.append(
            f"{row['method']} in {row['run']} is {row['difference']:+.1f} points from {next(iter(found.runs))} "
            f"({findings.interval(row)}; p = {findings.p_text(row['p_adjusted'])}, Holm)"
        )
    if len(found.differences) and beyond.empty:
        notes.append("No method's win rate differs between runs beyond chance (Holm-adjusted p above 0.05)")
    return notes


def _hash_of(run: RunData, key: str) -> object:
    return run.record.get("inputs", {}).get(f"pool {run.setting(key)}")


def _content(run: RunData) -> tuple[str, ...] | None:
    table = run.table(f"outputs/{BASELINE}.json")
    return None if table is None else tuple(table["instruction"] + "\0" + table["output"])


def plots(found: Compared) -> list[Plot]:
    """Draw the runs' win rates side by side, and their best-of-n curves on one another."""
    with style():
        drawn = [_win_rates(found), _best_of_n(found)]
    return [plot for plot in drawn if plot is not None]


def _win_rates(found: Compared) -> Plot:
    order = list(dict.fromkeys(found.methods["method"]))
    height = 0.2 * len(order) * len(found.runs) + 0.25 * len(order) + 1.1
    figure, axes = new_figure(height)
    ax: Axes = axes[0, 0]
    ax.axvline(50, color=INK, linewidth=1, linestyle="--")
    hover: dict[str, str] = {}
    for i, name in enumerate(found.runs):
        rows = found.methods[found.methods["run"] == name]
        colour, marker = look(i)
        offset = 0.7 * ((i + 0.5) / len(found.runs) - 0.5)
        y = np.array([order.index(method) for method in rows["method"]]) + offset
        ax.hlines(y, rows["ci_low"], rows["ci_high"], color=colour, linewidth=2)
        ax.plot(rows["win_rate"], y, marker=marker, color=colour, markersize=6, linestyle="none", label=name)
        for (_, row), height_of in zip(rows.iterrows(), y, strict=True):
            gid = f"point-{len(hover)}"
            ax.plot(row["win_rate"], height_of, marker="o", markersize=10, alpha=0, linestyle="none", gid=gid)
            hover[gid] = f"{row['method']} in {name}: {row['win_rate']:.1f} %, {findings.interval(row)}"
    ax.set_yticks(range(len(order)), order)
    ax.set_ylim(len(order) - 0.4, -0.6)
    ax.set_xlabel("preferred to the run's baseline, % (line: 95 % interval, clustered by instruction)")
    ax.set_title("Win rates")
    ax.grid(visible=False, axis="y")
    figure.legend(loc="outside lower left", ncols=min(3, len(found.runs)))
    caption = (
        "Intervals of one method in two runs may overlap while their difference, paired by instruction, is beyond "
        "chance: see the table of differences."
    )
    return Plot("win_rates", caption, f"Win rates by run. {'; '.join(hover.values())}.", figure, hover)


def _best_of_n(found: Compared) -> Plot | None:
    curves = {name: run.table("overoptimization/best_of_n.csv") for name, run in found.runs.items()}
    if all(curve is None for curve in curves.values()):
        return None
    figure, axes = new_figure(3.4, 1, 2)
    ends = []
    for i, (name, curve) in enumerate(curves.items()):
        if curve is None:
            continue
        colour, marker = look(i)
        for ax, what, scale in ((axes[0, 0], "proxy", 1), (axes[0, 1], "gold", 100)):
            every = max(1, len(curve) // 8)
            ax.plot(curve["kl"], scale * curve[what], color=colour, marker=marker, markevery=every, markersize=4,
                    label=name)  # fmt: skip
            low, high = scale * curve[f"{what}_ci_low"], scale * curve[f"{what}_ci_high"]
            ax.fill_between(curve["kl"], low, high, color=colour, alpha=0.13, linewidth=0)
        ends.append(f"{name}: gold {100 * curve['gold'].iloc[0]:.1f} % to {100 * curve['gold'].iloc[-1]:.1f} %")
    axes[0, 0].set(title="Proxy", xlabel="KL, nats", ylabel="reward model's reward")
    axes[0, 1].set(title="Gold", xlabel="KL, nats", ylabel="preferred to the baseline, %")
    axes[0, 1].axhline(50, color=INK, linewidth=1, linestyle="--")
    axes[0, 0].legend(loc="upper left")
    caption = (
        "Best-of-n by KL from the initial policy; bands: 95 % over instructions. Rewards of two reward models are "
        "not on one scale: compare the gold curves."
    )
    return Plot("best_of_n", caption, f"Best-of-n curves. {'; '.join(ends)}.", figure)


def tables(found: Compared) -> dict[str, Table]:
    """Return the tables of the comparison for the page; one that has no rows is left out."""
    names = list(found.runs)
    layouts: dict[str, tuple[str, pd.DataFrame, dict[str, Column]]] = {
        "methods": (
            "Win rates against each run's baseline, with what lies behind them.",
            found.methods,
            {
                "method": Column("method"), "run": Column("run"), "win_rate": Column("win rate %", ".1f"),
                "ci_low": Column("95 % from", ".1f"), "ci_high": Column("to", ".1f"),
                "lc_win_rate": Column("at equal length %", ".1f"), "length": Column("length", ".0f"),
                "kl": Column("KL", ".2f"), "n_instructions": Column("instructions", "d"),
            },
        ),
        "differences": (
            f"Each run minus {names[0]}, method by method, paired by instruction.",
            found.differences,
            {
                "method": Column("method"), "run": Column("run"), "difference": Column("difference, points", "+.1f"),
                "ci_low": Column("95 % from", ".1f"), "ci_high": Column("to", ".1f"),
                "p_adjusted": Column("p, Holm", ".3f"), "n_instructions": Column("instructions", "d"),
                "note": Column("note"),
            },
        ),
        "seeds": (
            "Mean over seeds; intervals by Student's t over the runs.",
            found.seeds,
            {
                "method": Column("method"), "mean": Column("mean win rate %", ".1f"),
                "ci_low": Column("95 % from", ".1f"), "ci_high": Column("to", ".1f"),
                "sd": Column("sd between seeds", ".1f"), "n_seeds": Column("seeds", "d"),
            },
        ),
        "summary": (
            "The runs as wholes. Accuracy: of the reward model on held-out clean labels. Gain: best-of-n's gold from "
            "n = 1 to the largest.",
            found.summary,
            {
                "run": Column("run"), "minutes": Column("minutes", ".1f"), "label_cost": Column("labels, US $", ".2f"),
                "reward_accuracy": Column("accuracy %", ".1f"), "ci_low": Column("95 % from", ".1f"),
                "ci_high": Column("to", ".1f"), "best_of_n_gain": Column("gain, points", "+.1f"),
            },
        ),
        "settings": (
            "What the configs differ in.", found.settings, {"key": Column("key"), **{n: Column(n) for n in names}},
        ),
    }  # fmt: skip
    shown = {}
    for key, (caption, table, columns) in layouts.items():
        if len(table):
            cells = table[list(columns)].astype(object)
            shown[key] = Table(caption, list(columns.values()), cells.where(cells.notna(), None).to_numpy().tolist())
    return shown


def write_comparison(found: Compared, path: Path) -> None:
    """Write the comparison as one self-contained HTML page; the same runs give the same bytes."""
    drawn = {plot.name: plot for plot in plots(found)}
    shown = {key: to_html(table) for key, table in tables(found).items()}
    heads = [f"{name}: {findings.headline(run)}" for name, run in found.runs.items()]
    same = "<p>The configs are the same.</p>"
    slots = {
        "about": prose(", ".join(found.runs)),
        "conclusions": "".join(f"<li>{prose(text)}</li>" for text in [*(f"{note}." for note in found.notes), *heads]),
        "methods": figure_html(drawn, "win_rates") + shown["methods"],
        "differences": shown.get("seeds", "") + shown.get("differences", "<p>No method is in two runs.</p>"),
        "overoptimization": figure_html(drawn, "best_of_n", "No run drew samples for a best-of-n curve."),
        "summary": shown["summary"],
        "settings": shown.get("settings", same),
    }
    write_text(path, render("compare.html", f"simfarm: {len(found.runs)} runs compared", slots))
