"""The numbers that the report takes from a run's files beyond what the evaluation wrote, each with its interval."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit

from simfarm.evaluation.agreement import agreement
from simfarm.evaluation.clustering import Estimate, clustered_mean, codes, instruction_codes
from simfarm.overoptimization.best_of_n import best_of_n_values, kl_best_of_n
from simfarm.report.data import RunData
from simfarm.tables import with_input

FEWEST = 10
"""Verdicts in common below which two annotators are not compared."""
ACCURACIES = ("clean", "noisy", "of_length")
"""Of the reward model on clean and on noisy labels; of choosing the longer response, on clean labels."""


def kl_of(run: RunData, method: str) -> float | None:
    """Return a method's KL from the initial policy in nats per response, where it is known."""
    if method == "sft":
        return 0.0
    if method == "best_of_n":
        n = run.setting("best_of_n.n")
        return float(kl_best_of_n(n)) if n else None
    log = run.training_log(method)
    return float(log["kl"].iloc[-1]) if log is not None and "kl" in log.columns else None


def money(run: RunData, name: str) -> float | None:
    """Return what the labels of a table of the run cost in US dollars; None where a price is unknown."""
    table = run.table(name)
    return None if table is None else _sum_of_costs(table)


def _sum_of_costs(table: pd.DataFrame) -> float | None:
    if "cost" not in table.columns:
        return None
    cost = pd.to_numeric(table["cost"]).astype(float)
    # one unknown price makes the sum unknown; it is never counted as nothing
    return None if cost.isna().any() else float(cost.sum())


STAGES = {"best_of_n": ("eval_samples", "eval_rewards"), "expert_iteration": ("unlabeled_samples", "expert_iteration")}
"""What makes a method, where that is more than the stage of its own name."""


def minutes(run: RunData, method: str) -> float | None:
    """Return the minutes of the stages that make a method; None where the run did none."""
    seconds = [run.seconds[stage] for stage in STAGES.get(method, (method,)) if stage in run.seconds]
    return sum(seconds) / 60 if seconds else None


def judged_for(run: RunData, method: str) -> float | None:
    """Return what the verdicts on a method cost in US dollars; None where a price is unknown."""
    table = run.table("evaluation/labels.parquet")
    return None if table is None else _sum_of_costs(table[table["generator_2"] == method])


@dataclass(frozen=True, slots=True)
class Optimum:
    """Best-of-n's gold preference: where it is highest, what it gains from n = 1, and what it loses after the peak."""

    n_max: int
    n_peak: int
    gain: Estimate
    fall: Estimate
    proxy_rises: bool

    @property
    def over_optimizes(self) -> bool:
        """Whether gold falls after its peak beyond chance while the proxy still rises."""
        return self.proxy_rises and self.n_peak < self.n_max and self.fall.ci_high < 0


def optimum(run: RunData) -> Optimum | None:
    """Find the peak of best-of-n's gold preference; differences are paired by instruction. In percentage points."""
    if run.samples is None:
        return None
    proxy, gold = (
        run.samples.pivot(index="id", columns="sample", values=v).to_numpy(float) for v in ("reward", "gold")
    )
    instructions, samples = gold.shape
    if instructions < 2 or samples < 2 or not (np.isfinite(proxy).all() and np.isfinite(gold).all()):
        return None
    proxies, golds = best_of_n_values(proxy, gold, range(1, samples + 1))
    peak, clusters = int(golds.mean(0).argmax()), np.arange(instructions)
    return Optimum(
        n_max=samples,
        n_peak=peak + 1,
        gain=clustered_mean(golds[:, -1] - golds[:, 0], clusters).scaled(100),
        fall=clustered_mean(golds[:, -1] - golds[:, peak], clusters).scaled(100),
        proxy_rises=bool(proxies[:, -1].mean() > proxies[:, peak].mean()),
    )


def held_out_accuracy(run: RunData) -> dict[str, Estimate]:
    """Return the reward model's accuracies on held-out pairs, ties of preference left out; keys are `ACCURACIES`.

    Intervals are clustered by instruction, where the run kept its rewards pair by pair (reward/held_out.parquet).
    """
    pairs = run.table("reward/held_out.parquet")
    if pairs is None:
        found = run.json("reward/accuracy.json") or {}
        shares = {kind: found.get(f"test_accuracy_{kind}") for kind in ACCURACIES}
        return {
            kind: Estimate(float(share), np.nan, np.nan, np.nan, "no interval: rewards were not kept pair by pair")
            for kind, share in shares.items()
            if share is not None
        }
    gap = (pairs["reward_1"] - pairs["reward_2"]).to_numpy(float)
    length = (pairs["output_1"].str.len() - pairs["output_2"].str.len()).to_numpy(float)
    sides = {
        "clean": (gap, "preference_clean"),
        "noisy": (gap, "preference"),
        "of_length": (length, "preference_clean"),
    }
    found = {}
    for kind, (better, column) in sides.items():
        preference = pairs[column].to_numpy(float)
        known = np.isfinite(preference) & (preference != 1.5)
        if known.any():
            # one that cannot tell two responses apart is right half of the time
            right = np.where(better == 0, 0.5, (better > 0) == (preference < 1.5))
            found[kind] = clustered_mean(right[known].astype(float), instruction_codes(pairs[known]), share=True)
    return found


def calibration_of(run: RunData, bins: int = 8) -> pd.DataFrame | None:
    """Compare the reward model's probabilities with the pool's, on best-of-n's samples against the baseline's outputs.

    Returns:
        One row per bin of equal count: predicted (mean of sigmoid of the difference of rewards), gold (mean of the
        pool's), ci_low, ci_high (clustered by instruction); None without samples, or with too few to bin.
    """
    table = run.samples
    if table is None:
        return None
    table = table.dropna(subset=["reward", "reward_baseline", "gold"])
    if len(table) < 4 * bins:
        return None
    table = table.assign(predicted=expit(table["reward"] - table["reward_baseline"]))
    rows = []
    for _, part in table.groupby(pd.qcut(table["predicted"].rank(method="first"), bins, labels=False)):
        gold = clustered_mean(part["gold"].to_numpy(float), codes(part["id"]), share=True)
        rows.append((part["predicted"].mean(), gold.value, gold.ci_low, gold.ci_high))
    return pd.DataFrame(rows, columns=["predicted", "gold", "ci_low", "ci_high"])


def annotator_shares(labels: pd.DataFrame) -> pd.DataFrame:
    """Measure what each annotator of labels did.

    Returns:
        One row per annotator, busiest first, then one for all: annotator, judged, missing, flipped (share), and as
        shares of clean verdicts that are no tie, with intervals clustered by instruction: longer, longer_low,
        longer_high (chose the longer response), first, first_low, first_high (chose the one shown first).
    """
    clean = pd.to_numeric(labels["preference_clean"]).astype(float)
    chose_1 = pd.Series(np.where(clean.isna() | (clean == 1.5), np.nan, clean < 1.5), index=labels.index)
    longer = (labels["output_1"].str.len() - labels["output_2"].str.len()).map(np.sign).astype(float)
    shown_first = labels["order"].map({"12": 1.0, "21": -1.0})
    side = 2 * chose_1 - 1
    table = labels.assign(
        _longer=(side * longer.replace(0, np.nan) + 1) / 2,
        _first=(side * shown_first + 1) / 2,
        _missing=labels["preference"].isna(),
    )
    rows = []
    for name, group in [*_by_size(table), ("all", table)]:
        row: dict[str, object] = {
            "annotator": str(name),
            "judged": len(group),
            "missing": int(group["_missing"].sum()),
            "flipped": float(group["flipped"].astype(float).mean()),
        }
        for taste in ("longer", "first"):
            known = group[group[f"_{taste}"].notna()]
            found = (
                clustered_mean(known[f"_{taste}"].to_numpy(float), instruction_codes(known), share=True)
                if len(known)
                else None
            )
            row |= {
                taste: found.value if found else np.nan,
                f"{taste}_low": found.ci_low if found else np.nan,
                f"{taste}_high": found.ci_high if found else np.nan,
            }
        rows.append(row)
    return pd.DataFrame(rows)


def _by_size(table: pd.DataFrame) -> list[tuple[object, pd.DataFrame]]:
    groups = [(name, group) for name, group in table.groupby("annotator", sort=True)]
    return sorted(groups, key=lambda item: -len(item[1]))


def disagreements(run: RunData) -> pd.DataFrame | None:
    """Measure how often each two annotators disagree on the comparisons of the run that both judged.

    Clean verdicts that are no tie, of the labels for training and for evaluation; an annotator that judged a
    comparison again is compared with itself.

    Returns:
        One row per ordered pair, busiest annotators first: annotator_a, annotator_b, n (pairs of verdicts), disagree
        (share; NaN below `FEWEST`), low, high (95 %, clustered by instruction). None if no two verdicts are on the
        same comparison, or there is one annotator only.
    """
    columns = ["instruction", "input", "output_1", "output_2", "annotator", "preference_clean"]
    found = [run.table(name) for name in ("labels.parquet", "evaluation/labels.parquet")]
    kept = [with_input(table)[columns] for table in found if table is not None and "preference_clean" in table.columns]
    if not kept:
        return None
    labels = pd.concat(kept, ignore_index=True)
    preference = pd.to_numeric(labels["preference_clean"]).to_numpy(float)
    labels = labels[np.isfinite(preference) & (preference != 1.5)]
    names = [str(name) for name, _ in _by_size(labels)]
    if len(names) < 2:
        return None
    items, first = np.unique(codes(pd.MultiIndex.from_frame(labels[columns[:4]])), return_inverse=True)
    clusters = np.zeros(len(items), np.int64)
    clusters[first] = instruction_codes(labels)
    side = np.where(labels["preference_clean"].to_numpy(float) > 1.5, 2, 0)
    votes = np.zeros((len(names), len(items), 3))
    np.add.at(votes, (pd.Categorical(labels["annotator"].astype(str), names).codes, first, side), 1.0)
    totals = votes.sum(2)
    rows: dict[tuple[int, int], tuple[float, ...]] = {}
    for a, b in itertools.combinations_with_replacement(range(len(names)), 2):
        n = float((totals[a] * (totals[b] - (a == b))).sum() / (2 if a == b else 1))
        # one array given twice means pairs within one annotator; two views of it would not be that
        one = votes[a]
        same = agreement(one, one if a == b else votes[b], clusters, ties=False) if n >= FEWEST else None
        shares = (np.nan,) * 3 if same is None else (1 - same.value, 1 - same.ci_high, 1 - same.ci_low)
        rows[a, b] = rows[b, a] = (n, *shares)
    if not any(np.isfinite(row[1]) for row in rows.values()):
        return None
    table = [(names[a], names[b], *rows[a, b]) for a, b in itertools.product(range(len(names)), repeat=2)]
    return pd.DataFrame(table, columns=["annotator_a", "annotator_b", "n", "disagree", "low", "high"])
