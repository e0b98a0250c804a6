"""Over-optimization of a table of samples or of a finished run: curves, fits and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simfarm import tables
from simfarm.errors import DataError, RunError, UnknownNameError
from simfarm.evaluation.clustering import critical_value
from simfarm.overoptimization.best_of_n import best_of_n_curve, best_of_n_values
from simfarm.overoptimization.fits import Fit, Peak, fit_form, seen_peak, verdict

Floats = NDArray[np.float64]
SHOWN = 64
"""Most points of a curve that a fit, a figure and a bootstrap take; more change nothing that can be seen."""


@dataclass(frozen=True)
class Curve:
    """One way away from the initial policy: best-of-n, or the steps of a training."""

    name: str
    """"best_of_n", or the method trained."""
    table: pd.DataFrame
    """Points: n or step, kl (nats), proxy and gold with `_ci_low` and `_ci_high`."""
    position: Literal["n", "step"]
    fit: Fit | None
    """Of gold, where there is gold enough to fit."""
    peak: Peak | None
    notes: tuple[str, ...] = ()

    def said(self, unit: str = "points") -> str:
        """Return the verdict in words."""
        if self.peak is None:
            return f"No verdict: {'; '.join(self.notes)}."
        return verdict(self.peak, name=self.position, unit=unit)


def spaced(n: int, points: int = SHOWN) -> list[int]:
    """Return whole numbers from 1 to n, all or about `points` of them evenly spaced in log n."""
    return sorted({*np.round(np.geomspace(1, n, points)).astype(int).tolist()} if n > points else range(1, n + 1))


def samples_matrix(table: pd.DataFrame, proxy: str, gold: str, instruction: Sequence[str]) -> tuple[Floats, Floats]:
    """Turn rows of samples into (instructions, N) proxies and golds.

    Args:
        table: One row per sample.
        proxy: Column of the reward that best-of-n picks by.
        gold: Column of what is really wanted.
        instruction: Columns that name the instruction.

    Raises:
        DataError: A column is missing or not numbers, or instructions have different numbers of samples.
    """
    tables.require_columns(table, [proxy, gold, *instruction], "samples")
    numbers = {}
    for column in (proxy, gold):
        values = pd.to_numeric(table[column], errors="coerce")
        if (values.isna() & table[column].notna()).any():
            bad = table[column][values.isna() & table[column].notna()].iloc[0]
            raise DataError(f"The column {column!r} holds {bad!r}; rewards are numbers.")
        numbers[column] = values.astype(float)
    group = table.groupby(list(instruction), sort=True, dropna=False).ngroup()
    sizes = group.value_counts()
    if sizes.nunique() != 1:
        raise DataError(
            f"Instructions have from {sizes.min()} to {sizes.max()} samples; best-of-n needs the same number of each. "
            "Keep the first so many of every instruction."
        )
    order = np.argsort(group.to_numpy(), kind="stable")
    shape = (len(sizes), int(sizes.iloc[0]))
    first, second = (np.asarray(numbers[c], float)[order].reshape(shape) for c in (proxy, gold))
    return np.asarray(first, float), np.asarray(second, float)


def best_of_n_of(proxy: Floats, gold: Floats, *, confidence: float = 0.95, seed: int = 0) -> Curve:
    """Estimate, fit and judge the best-of-n curve of (instructions, N) proxies and golds.

    Raises:
        DataError: See `best_of_n_curve`.
    """
    ns = spaced(proxy.shape[1])
    table = best_of_n_curve(proxy, gold, ns=range(1, proxy.shape[1] + 1), confidence=confidence)
    complete = np.isfinite(proxy).all(1) & np.isfinite(gold).all(1)
    proxies, golds = best_of_n_values(proxy[complete], gold[complete], ns)
    notes = []
    if dropped := int((~complete).sum()):
        notes.append(f"{dropped} instructions with a missing score are left out")
    kl = table["kl"].to_numpy(float)[np.array(ns) - 1]
    if len(ns) < 4:
        return Curve("best_of_n", table, "n", None, None, (*notes, f"{len(ns)} samples are too few for a curve"))
    return Curve(
        "best_of_n",
        table,
        "n",
        fit_form(kl, golds, form="bon", confidence=confidence, seed=seed),
        seen_peak(ns, golds, proxies, confidence=confidence, seed=seed),
        tuple(notes),
    )


def training_of(
    name: str, steps: Floats, kl: Floats, proxy: Floats, gold: Floats, *, confidence: float = 0.95, seed: int = 0
) -> Curve:
    """Fit and judge a training curve.

    Args:
        name: The method.
        steps: (points,), ascending; the first is the initial policy.
        kl: (clusters, points) KL of each instruction's or seed's responses, nats; their mean is the curve's KL.
        proxy: (clusters, points).
        gold: (clusters, points).
        confidence: Of the intervals.
        seed: Of the bootstrap.

    Raises:
        DataError: The shapes differ or a number is not finite.
    """
    table = pd.DataFrame({"step": steps.astype(int), "kl": kl.mean(0)})
    t = critical_value(len(gold), confidence)
    for column, values in (("proxy", proxy), ("gold", gold)):
        mean, se = values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))
        table[column], table[f"{column}_ci_low"], table[f"{column}_ci_high"] = mean, mean - t * se, mean + t * se
    # the estimate of a small KL may come out negative; the initial policy's is 0 by definition
    away = np.where(np.arange(len(steps)) == 0, 0.0, np.maximum(table["kl"], 1e-9))
    notes: tuple[str, ...] = ()
    fit = None
    try:
        fit = fit_form(away, gold, form="rl", confidence=confidence, seed=seed)
    except DataError as error:
        notes = (f"no fit: {error}",)
    return Curve(name, table, "step", fit, seen_peak(steps, gold, proxy, confidence=confidence, seed=seed), notes)


def curves_of_run(folder: Path, *, confidence: float = 0.95) -> list[Curve]:
    """Read a finished run: the best-of-n curve, and what its trainings logged.

    Gold is the pool's preference to the baseline, in percent.

    Raises:
        RunError: The folder holds no run, or one without best-of-n samples and without a training log.
    """
    if not (folder / "config.json").is_file():
        raise RunError(f"{folder} is not a run directory: it has no config.json. Give what `simfarm run` wrote.")
    found = []
    rewards, golds = folder / "samples/eval_rewards.parquet", folder / "evaluation/sample_gold.parquet"
    if rewards.is_file() and golds.is_file():
        both = tables.read_table(rewards).merge(tables.read_table(golds), on=["id", "sample"])
        proxy, gold = samples_matrix(both.sort_values(["id", "sample"]), "reward", "gold", ["id"])
        if proxy.shape[1] > 1:
            found.append(best_of_n_of(proxy, 100 * gold, confidence=confidence))
    for log in sorted(folder.glob("methods/*/metrics.jsonl")):
        table = tables.read_table(log)
        if {"step", "kl", "reward"} <= set(table.columns):
            found.append(_training_log(folder, log.parent.name, table, confidence))
    if not found:
        raise RunError(
            f"{folder} has neither best-of-n samples nor a log of a training with a reward. Run an experiment whose "
            "methods include best_of_n or ppo to its end."
        )
    return found


def _training_log(folder: Path, name: str, log: pd.DataFrame, confidence: float) -> Curve:
    """Make a curve of a training's log; of the responses judged along it, where the run judged any."""
    judged = folder / f"overoptimization/{name}.parquet"
    if not judged.is_file():
        table = pd.DataFrame({"step": log["step"].astype(int), "kl": log["kl"], "proxy": log["reward"]})
        why = f"gold was not judged along the training of {name}; set overoptimization.every in the experiment"
        return Curve(name, table, "step", None, None, (why,))
    looks = tables.read_table(judged)
    wide = [looks.pivot(index="id", columns="step", values=c).dropna() for c in ("kl", "proxy", "gold")]
    steps = wide[2].columns.to_numpy(float)
    kl, proxy, gold = (table.to_numpy(float) for table in wide)
    return training_of(name, steps, kl, proxy, 100 * gold, confidence=confidence)


def summary(curve: Curve, unit: str = "points") -> dict[str, Any]:
    """Return a curve's peak, fall and verdict as one row."""
    row: dict[str, Any] = {"curve": curve.name, "verdict": curve.said(unit)}
    if curve.peak is not None:
        p = curve.peak
        row |= {
            "peak": p.position, "peak_ci_low": p.low, "peak_ci_high": p.high, "end": p.end,
            "gain": p.gain.value, "gain_ci_low": p.gain.ci_low, "gain_ci_high": p.gain.ci_high,
            "fall": p.fall.value, "fall_ci_low": p.fall.ci_low, "fall_ci_high": p.fall.ci_high, "falls": p.falls,
        }  # fmt: skip
    return row


def fits_table(curves: Sequence[Curve]) -> pd.DataFrame:
    """Return one row per fit: curve, form, alpha, beta, r2, peak_kl, peak_gain, with intervals."""
    rows = []
    for curve in curves:
        if curve.fit is None:
            continue
        row: dict[str, Any] = {"curve": curve.name, "form": curve.fit.form}
        for name in ("alpha", "beta", "peak_kl", "peak_gain"):
            e = getattr(curve.fit, name)
            row |= {name: e.value, f"{name}_ci_low": e.ci_low, f"{name}_ci_high": e.ci_high}
        rows.append(row | {"r2": curve.fit.r2, "n_points": curve.fit.n_points, "n_clusters": curve.fit.n_clusters})
    return pd.DataFrame(rows)


def read_samples(path: Path, proxy: str, gold: str, instruction: str | None) -> tuple[Floats, Floats]:
    """Read a file of samples; see `samples_matrix`.

    Args:
        path: JSON, JSONL, CSV or Parquet, one row per sample.
        proxy: Column.
        gold: Column.
        instruction: Column that names the instruction; `instruction` (with `input`, if it is there) if left out.

    Raises:
        UnknownNameError: There is no such column.
        DataError: See `samples_matrix`.
    """
    table = tables.read_table(path)
    keys = [instruction] if instruction else ["instruction", *(["input"] if "input" in table.columns else [])]
    for column in (proxy, gold, *keys):
        if column not in table.columns:
            raise UnknownNameError("column", column, map(str, table.columns), f"Of {path}.")
    return samples_matrix(table, proxy, gold, keys)
