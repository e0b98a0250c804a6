"""What the seeds of a laboratory say together: a curve, a fit and a verdict for every arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from simfarm.errors import DataError
from simfarm.evaluation.clustering import Estimate, clustered_mean, critical_value
from simfarm.experiments.laboratory.config import Arm, LaboratoryConfig
from simfarm.overoptimization.curves import Curve, fits_table, summary
from simfarm.overoptimization.fits import Fit, Form, fit_form, seen_peak

POSITION = {"best_of_n": "n", "ppo": "step"}


@dataclass(frozen=True)
class Family:
    """Arms that differ in one thing, each with its curves over all seeds."""

    name: str
    arms: dict[str, dict[str, Curve]]
    """By label: "best_of_n", and "ppo" where it was run."""
    against_first: dict[tuple[str, str], Estimate]
    """By label and curve: gold at the end minus that of the first arm that has such a curve, paired by seed."""

    def curves(self, what: str) -> pd.DataFrame:
        """Return the points of every arm's curve: family, arm, n or step, kl, proxy and gold with intervals."""
        parts = [c[what].table.assign(family=self.name, arm=label) for label, c in self.arms.items() if what in c]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"family": [], "arm": []})

    def verdicts(self) -> pd.DataFrame:
        """Return one row per curve: family, arm, curve, where gold peaks, the fall to the end, α, β, the sentence."""
        rows = []
        for label, curves in self.arms.items():
            for curve in curves.values():
                row: dict[str, Any] = {"family": self.name, "arm": label, **summary(curve)}
                if (gap := self.against_first.get((label, curve.name))) is not None:
                    row |= {"against_first": gap.value, "against_first_ci_low": gap.ci_low,
                            "against_first_ci_high": gap.ci_high}  # fmt: skip
                fits = fits_table([curve])
                rows.append(row | (fits.drop(columns="curve").iloc[0].to_dict() if len(fits) else {}))
        return pd.DataFrame(rows)


def analyse(
    name: str,
    changes: Sequence[Mapping[str, Any]],
    config: LaboratoryConfig,
    found: Mapping[tuple[Arm, str], pd.DataFrame],
) -> Family:
    """Put the seeds of every arm of a family together."""
    arms: dict[str, dict[str, Curve]] = {}
    ends: dict[str, pd.Series] = {}
    against_first = {}
    for change in changes:
        arm, label = config.arm(dict(change)), label_of(change, changes, config)
        tables = {what: table for (a, what), table in found.items() if a == arm}
        arms[label] = {what: curve_over_seeds(what, table) for what, table in tables.items()}
        for what, table in tables.items():
            end = table[table[POSITION[what]] == table[POSITION[what]].max()].groupby("seed")["gold"].mean()
            if what in ends:
                gaps = (end - ends[what]).to_numpy(float)
                against_first[label, what] = clustered_mean(gaps, np.arange(len(gaps)))
            else:
                ends[what] = end
    return Family(name, arms, against_first)


def label_of(change: Mapping[str, Any], changes: Sequence[Mapping[str, Any]], config: LaboratoryConfig) -> str:
    """Name an arm by the values of what varies in its family."""
    arm = config.arm(dict(change))
    varied = [key for key in Arm.model_fields if key != "ppo" and any(key in other for other in changes)]
    written = []
    for key in varied:
        value = getattr(arm, key)
        match key:
            case "flip":
                written.append(f"{100 * value:g} % flips")
            case "judge":
                written.append("one judge" if value == "single" else "pool")
            case "labels":
                written.append(f"{value:,} labels")
            case "layers":
                written.append(f"{value} layer{'s' if value > 1 else ''}")
            case "rule":
                written.append("one model" if value == "single" else f"{value} of {config.members}")
            case "kl_coef":
                written.append(f"β = {value:g}")
    return ", ".join(written)


def curve_over_seeds(what: str, table: pd.DataFrame) -> Curve:
    """Make one curve of all seeds; a seed is the unit of every interval, since a reward model is drawn once in it.

    Args:
        what: "best_of_n" or "ppo".
        table: n or step, kl, proxy, gold, seed; several rows of a seed at one position (prompts) are averaged.
    """
    position = POSITION[what]
    by_seed = {
        column: table.groupby(["seed", position])[column].mean().unstack(position).to_numpy(float)
        for column in ("kl", "proxy", "gold")
    }
    positions = np.array(sorted(table[position].unique()))
    kl = by_seed["kl"].mean(0)
    points = pd.DataFrame({position: positions, "kl": kl})
    seeds = len(by_seed["gold"])
    t = critical_value(seeds)
    for column in ("proxy", "gold"):
        mean, se = by_seed[column].mean(0), by_seed[column].std(0, ddof=1) / np.sqrt(seeds)
        points[column], points[f"{column}_ci_low"], points[f"{column}_ci_high"] = mean, mean - t * se, mean + t * se
    form: Form = "bon" if what == "best_of_n" else "rl"
    notes: tuple[str, ...] = ()
    fit: Fit | None = None
    try:
        # an estimate of a small KL may be negative
        fit = fit_form(np.where(positions == positions[0], 0.0, np.maximum(kl, 1e-9)), by_seed["gold"], form=form)
    except DataError as error:
        notes = (f"no fit: {error}",)
    peak = seen_peak(positions, by_seed["gold"], by_seed["proxy"])
    return Curve(what, points.assign(seeds=seeds), "n" if position == "n" else "step", fit, peak, notes)
