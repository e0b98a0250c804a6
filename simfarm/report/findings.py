"""What a run shows, in words, each claim with its uncertainty. Plain text: whoever shows it escapes it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from simfarm.evaluation.clustering import Estimate
from simfarm.overoptimization.best_of_n import kl_best_of_n
from simfarm.report.data import BASELINE, RunData
from simfarm.report.goodhart import crossed, goodhart, parted_trainings
from simfarm.report.measures import Optimum, held_out_accuracy, optimum

SAME_POLICY = "sft"
"""The method that is a second draw of the baseline's own policy: its true win rate is 50 %."""


def names(items: Sequence[str]) -> str:
    """Join names: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def interval(row: pd.Series, digits: int = 1) -> str:
    """Return "95 % interval 51.0 to 62.3" of a row with ci_low and ci_high, or why there is none."""
    if not np.isfinite(row["ci_low"]):
        return str(row.get("note", "")) or "no interval"
    return f"95 % interval {row['ci_low']:.{digits}f} to {row['ci_high']:.{digits}f}"


def compared(rates: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Split methods into those whose interval lies above 50 %, below, and around it (or that have none)."""
    better, worse = rates["ci_low"] > 50, rates["ci_high"] < 50
    return rates[better], rates[worse], rates[~(better | worse)]


def headline(run: RunData) -> str:
    """Say which methods beat the baseline."""
    better, worse, undecided = compared(run.win_rates)
    n = int(run.win_rates["n_instructions"].max())
    parts = []
    for rows, one, many in ((better, "beats", "beat"), (worse, "loses to", "lose to")):
        if len(rows):
            each = [f"{r['generator']} ({r['win_rate']:.1f} % preferred, {interval(r)})" for _, r in rows.iterrows()]
            parts.append(f"{names(each)} {one if len(rows) == 1 else many} the baseline")
    if parts:
        text = f"On {n} instructions, {'; '.join(parts)}."
        if len(undecided):
            whose = "its interval includes" if len(undecided) == 1 else "their intervals include"
            why = f"; {whose} 50 %" if np.isfinite(undecided["ci_low"]).all() else ""
            text += f" Not told apart from the baseline: {names(list(undecided['generator']))}{why}."
        return text
    if len(undecided) == 1:
        row = undecided.iloc[0]
        return (
            f"On {n} instructions, {row['generator']} is not told apart from the baseline: "
            f"{row['win_rate']:.1f} % preferred, {interval(row)}."
        )
    best = run.win_rates.iloc[0]
    why = ": every interval includes 50 %" if np.isfinite(undecided["ci_low"]).all() else ""
    return (
        f"On {n} instructions, no method is told apart from the baseline{why}. The highest is "
        f"{best['generator']} with {best['win_rate']:.1f} % preferred ({interval(best)})."
    )


def check_of_procedure(run: RunData) -> str:
    """Say whether a second draw of the baseline's policy came out at 50 %, as it must up to chance."""
    rows = run.win_rates[run.win_rates["generator"] == SAME_POLICY]
    if rows.empty or not np.isfinite(rows["ci_low"].iloc[0]):
        return ""
    row = rows.iloc[0]
    if row["ci_low"] <= 50 <= row["ci_high"]:
        return (
            f"Check: {SAME_POLICY} is a second draw of the baseline's own policy, so its true rate is 50 %; it came "
            f"out at {row['win_rate']:.1f} % ({interval(row)}), as it should."
        )
    return (
        f"Check: {SAME_POLICY} is a second draw of the baseline's own policy, so its true rate is 50 %, yet its "
        f"{interval(row)} excludes it. One run in twenty does so by chance; read the other rates with care."
    )


def at_equal_length(run: RunData) -> str:
    """Say what is left of the methods' leads if their responses are taken at the baseline's length."""
    table = run.table("evaluation/length_controlled.csv")
    better = compared(run.win_rates)[0]
    if table is None or better.empty:
        return ""
    leads = table[table["generator"].isin(better["generator"])]
    each = [f"{r['generator']} {r['lc_win_rate']:.1f} % ({interval(r)})" for _, r in leads.iterrows()]
    lost = leads[~(leads["ci_low"] > 50)]
    text = f"At the baseline's length the win rate would be: {'; '.join(each)}."
    return f"{text} The lead of {names(list(lost['generator']))} may be one of length." if len(lost) else text


def differences(run: RunData) -> str:
    """Say which methods differ from one another."""
    table = run.table("evaluation/paired_differences.csv")
    if table is None:
        return ""
    told = table[table["p_adjusted"] < 0.05]
    each = [
        f"{r['generator_a']} over {r['generator_b']} by {r['difference']:.1f} points ({interval(r)}, "
        f"p = {p_text(r['p_adjusted'])})"
        for _, r in told.iterrows()
    ]
    if not each:
        return f"Method against method, none of {len(table)} pairs is told apart at 5 % (Holm-adjusted)."
    return (
        f"Method against method, {len(told)} of {len(table)} pairs {'is' if len(told) == 1 else 'are'} told apart at "
        f"5 % (Holm-adjusted): {'; '.join(each)}."
    )


def p_text(p: float) -> str:
    """Write a p-value."""
    return "under 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def lost_verdicts(run: RunData) -> str:
    """Say how many verdicts are missing, and why."""
    lost = run.win_rates[run.win_rates["n_lost"] > 0]
    each = [
        f"{r['generator']} {r['n_lost']} of {r['n_kept'] + r['n_lost']} ({r['lost_reasons']})"
        for _, r in lost.iterrows()
    ]
    return f"Missing verdicts, left out of the rates: {'; '.join(each)}." if each else ""


def over_optimization(found: Optimum | None) -> str:
    """Say whether best-of-n's gold preference peaks, and where."""
    if found is None:
        return ""
    gain = (
        f"From n = 1 to {found.n_max} (KL {kl_best_of_n(found.n_max):.2f} nats) best-of-n gains "
        f"{found.gain.value:+.1f} points of gold preference (95 % interval {found.gain.ci_low:.1f} to "
        f"{found.gain.ci_high:.1f})."
    )
    if found.n_peak == found.n_max:
        return f"{gain} Gold is highest at the largest n: no over-optimization is seen as far as this run went."
    if found.over_optimizes:
        return (
            f"{gain} Gold peaks at n = {found.n_peak} and falls by {-found.fall.value:.1f} points to n = {found.n_max} "
            f"(95 % interval {-found.fall.ci_high:.1f} to {-found.fall.ci_low:.1f}) while the proxy rises: "
            "over-optimization. The peak was chosen on the same samples, which overstates the fall."
        )
    return (
        f"{gain} Gold is highest at n = {found.n_peak}, but the change from there to n = {found.n_max}, "
        f"{found.fall.value:.1f} points (95 % interval {found.fall.ci_low:.1f} to {found.fall.ci_high:.1f}), is within "
        "chance: no peak is established."
    )


def parting(run: RunData) -> list[str]:
    """Say where the proxy and gold part: by method, by pair of methods, and along a training."""
    table, trainings = goodhart(run), _parted_trainings(run)
    if table is None:
        return trainings
    up = table[(table["generator"] != BASELINE) & (table["proxy_ci_low"] > 0)]
    lost = up[up["gold_ci_high"] < 50]
    pairs = crossed(run)
    # what is over-optimized against the baseline is so against most others too
    pairs = pairs[~pairs["by_proxy"].isin(lost["generator"])]
    found = [_lost(lost), _unseen(up[~((up["gold_ci_high"] < 50) | (up["gold_ci_low"] > 50))]), _crossed(pairs)]
    return [text for text in [*found, *trainings] if text] or [_together(list(up["generator"]))]


def _measured(row: pd.Series, measure: str, unit: str, form: str) -> str:
    low, high = row[f"{measure}_ci_low"], row[f"{measure}_ci_high"]
    return f"{row[measure]:{form}} {unit}, 95 % interval {low:{form}} to {high:{form}}"


def _lost(rows: pd.DataFrame) -> str:
    each = [
        f"{r['generator']} (proxy {_measured(r, 'proxy', 'standard deviations', '+.2f')}; gold "
        f"{_measured(r, 'gold', '% preferred', '.1f')})"
        for _, r in rows.iterrows()
    ]
    if not each:
        return ""
    return (
        f"Proxy and gold part: the reward model scores {names(each)} above the baseline, but the pool without noise "
        f"prefers the baseline. {'This method is' if len(each) == 1 else 'These methods are'} over-optimized."
    )


def _unseen(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    return (
        f"The reward model scores {names(list(rows['generator']))} above the baseline, but gold does not tell "
        f"{'it' if len(rows) == 1 else 'them'} apart from the baseline: the gain in proxy is not seen in gold."
    )


def _crossed(pairs: pd.DataFrame) -> str:
    if pairs.empty:
        return ""
    widest = pairs.sort_values("proxy", ascending=False, kind="stable").head(3)
    each = [
        f"{r['by_proxy']} above {r['by_gold']} by {_measured(r, 'proxy', 'standard deviations', '.2f')}, gold the "
        f"other way by {_measured(r, 'gold', 'points', '.1f')}"
        for _, r in widest.iterrows()
    ]
    more = f"; and {len(pairs) - len(each)} more" if len(pairs) > len(each) else ""
    return (
        f"Proxy and gold order {len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'} of methods in opposite ways, both "
        f"beyond chance (Holm-adjusted): the proxy puts {'; '.join(each)}{more}."
    )


def _parted_trainings(run: RunData) -> list[str]:
    return [
        f"Along the training of {p.method} proxy and gold part: gold is highest at step {p.peak.position:g} (95 % "
        f"interval {p.peak.low:g} to {p.peak.high:g}); from there to step {p.peak.end:g} the proxy rises by "
        f"{p.rise.value:.2f} (95 % interval {p.rise.ci_low:.2f} to {p.rise.ci_high:.2f}) while gold falls by "
        f"{-p.peak.fall.value:.1f} points (95 % interval {-p.peak.fall.ci_high:.1f} to {-p.peak.fall.ci_low:.1f})."
        for p in parted_trainings(run)
    ]


def _together(up: list[str]) -> str:
    if not up:
        return "The reward model scores no method above the baseline beyond its interval: gold has no gain to miss."
    which, verb = ("its interval", "is") if len(up) == 1 else ("their intervals", "are")
    return f"Proxy and gold are not seen to part: {names(up)} {verb} above the baseline in both, beyond {which}."


def against_humans(run: RunData) -> str:
    """Say what the ranking correlation can and cannot tell."""
    both = run.humans
    if both is None:
        return ""
    n = len(both)
    caution = "Human rates are of another model and baseline: compare the order, not the values."
    table = run.table("evaluation/correlations.csv")
    if table is None:
        have = "method of this run has" if n == 1 else "methods of this run have"
        return f"{n} {have} a human score; a rank correlation needs three. {caution}"
    each = []
    for _, r in table[table["coefficient"].isin(["spearman", "kendall"])].iterrows():
        bounds = f", {interval(r, 2)}" if "ci_low" in table.columns and np.isfinite(r["ci_low"]) else ""
        each.append(f"{str(r['coefficient']).capitalize()} {r['value']:.2f} (p = {p_text(r['p'])}{bounds})")
    first = table.iloc[0]
    count = int(first["n"])
    text = f"With the human ranking, over {count} methods: {names(each)}; permutation p-values ({first['method']}). "
    # two orders of n! have a coefficient of 1 or -1
    smallest = 2 / math.factorial(count)
    if smallest > 0.05:
        text += (
            f"With {count} methods even a perfect match has p = {p_text(smallest)}: this neither confirms nor refutes "
            "that humans would rank them so. "
        )
    elif count < 10:
        text += f"With {count} methods only a near-perfect match can be told from chance. "
    return text + caution


def reward_model(run: RunData) -> str:
    """Say how good the reward model is, and whether it beats length."""
    counts, found = run.json("reward/accuracy.json"), held_out_accuracy(run)
    if counts is None or not {"clean", "noisy"} <= found.keys():
        return ""
    text = (
        f"On {counts['test_pairs']} held-out pairs the reward model is right on {_share(found['clean'])} of the "
        f"clean and {_share(found['noisy'])} of the noisy labels"
    )
    length = found.get("of_length")
    return f"{text}; choosing the longer response, on {_share(length)} of the clean ones." if length else f"{text}."


def _share(share: Estimate) -> str:
    percent = share.scaled(100)
    bounds = f" ({percent.ci_low:.0f} to {percent.ci_high:.0f})" if np.isfinite(percent.ci_low) else ""
    return f"{percent.value:.0f} %{bounds}"


def conclusions(run: RunData) -> list[str]:
    """Return what there is to say besides the headline, most important first."""
    found = [
        at_equal_length(run), *parting(run), over_optimization(optimum(run)), against_humans(run),
        differences(run), reward_model(run), check_of_procedure(run), lost_verdicts(run),
    ]  # fmt: skip
    return [text for text in found if text]
