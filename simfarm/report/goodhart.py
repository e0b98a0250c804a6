"""Whether gold follows the proxy: what reward model, judge and gold say of every method, beside length and diversity.

Goodhart's law: a measure that becomes a target stops being a good measure.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from simfarm.evaluation import winrate
from simfarm.evaluation.clustering import Estimate, clustered_mean, critical_value, wilson
from simfarm.overoptimization.fits import Peak, seen_peak
from simfarm.report.data import BASELINE, RunData
from simfarm.tables import with_input

MEASURES = ("proxy", "judge", "gold", "length", "diversity")
JUDGE = "evaluation/judge.parquet"
FIRST_WORDS = 20
"""Of each response, that diversity is measured on: in a longer text more pairs of words come again."""
KEYS = ["instruction", "input"]


def goodhart(run: RunData) -> pd.DataFrame | None:
    """Put what is known of the methods' outputs side by side.

    Returns:
        One row per method, highest gold first, then one for the baseline: generator, and of each of `MEASURES` its
        value, `_ci_low` and `_ci_high` (95 %, clustered by instruction; NaN where there is none):
        proxy: mean reward minus the baseline's on the same instruction, in standard deviations of the baseline's;
        judge: percent preferred to the baseline by the annotators of the training labels, with their noise;
        gold: percent preferred by the pool without noise; length: mean characters; diversity: see `distinct_2`.
        None if the run kept no rewards of outputs, or the baseline's do not vary.
    """
    gaps, judged = proxy_gaps(run), run.table("evaluation/labels.parquet")
    if gaps is None or judged is None:
        return None
    answers = with_input(judged).drop_duplicates(["generator_2", *KEYS])
    texts = {str(name): list(group["output_2"]) for name, group in answers.groupby("generator_2")}
    texts[BASELINE] = list(answers.drop_duplicates(KEYS)["output_1"])
    judge, gold = _rates(run.table(JUDGE)), run.win_rates.set_index("generator")
    rows = []
    for name in [*run.methods, BASELINE]:
        chars = np.array([len(text) for text in texts[name]], float)
        found = {"length": clustered_mean(chars, np.arange(len(chars))), "diversity": distinct_2(texts[name])}
        if name == BASELINE:
            found |= {"proxy": _exactly(0.0), "judge": _exactly(50.0), "gold": _exactly(50.0)}
        else:
            gap = gaps[name].dropna().to_numpy(float)
            found |= {"proxy": clustered_mean(gap, np.arange(len(gap))), "gold": _rate(gold, name)}
            found["judge"] = _rate(judge, name)
        row: dict[str, object] = {"generator": name}
        for measure in MEASURES:
            estimate = found[measure]
            row |= {
                measure: estimate.value,
                f"{measure}_ci_low": estimate.ci_low,
                f"{measure}_ci_high": estimate.ci_high,
            }
        rows.append(row)
    return pd.DataFrame(rows)


def _exactly(value: float) -> Estimate:
    return Estimate(value, np.nan, np.nan, np.nan, "by definition")


def _rates(labels: pd.DataFrame | None) -> pd.DataFrame | None:
    """Return the win rates of the generators that have a verdict, by generator."""
    if labels is None:
        return None
    known = labels[labels["preference"].notna().groupby(labels["generator_2"]).transform("any")]
    return winrate.win_rates(known, baseline=BASELINE).set_index("generator") if len(known) else None


def _rate(rates: pd.DataFrame | None, name: str) -> Estimate:
    if rates is None or name not in rates.index:
        return Estimate(np.nan, np.nan, np.nan, np.nan, "no verdict")
    columns = ["win_rate", "standard_error", "ci_low", "ci_high"]
    value, error, low, high = map(float, rates.loc[name, columns].to_numpy(float))
    return Estimate(value, error, low, high)


def proxy_gaps(run: RunData) -> pd.DataFrame | None:
    """Return each method's reward minus the baseline's, (instructions, methods), in the baseline's standard deviations.

    None if the run kept no rewards of its outputs, or the baseline's do not vary.
    """
    table = run.table("evaluation/output_rewards.parquet")
    if table is None:
        return None
    rewards = with_input(table).pivot(index=KEYS, columns="generator", values="reward").astype(float)
    spread = float(rewards[BASELINE].std(ddof=1))
    if not spread > 0:
        return None
    return rewards.drop(columns=BASELINE).sub(rewards[BASELINE], axis=0) / spread


def distinct_2(texts: Sequence[str], *, first: int = FIRST_WORDS) -> Estimate:
    """Return how many of the pairs of neighbouring words in all responses together are different, in percent.

    Li et al. 2016 (distinct-2) divide by the number of words; by the number of pairs, 100 % means that none comes
    again. Lower than the baseline's: the responses repeat themselves, or one another. The standard error is the
    jackknife's over responses, which on average is not too small (Efron and Stein 1981).

    Args:
        texts: One method's responses.
        first: Words of each that count; case does not.
    """
    said = [list(itertools.pairwise(text.lower().split()[:first])) for text in texts]
    different = [set(pairs) for pairs in said]
    holders = Counter(itertools.chain.from_iterable(different))
    pairs = np.array([len(own) for own in said], float)
    if not pairs.sum():
        return Estimate(np.nan, np.nan, np.nan, np.nan, "no response has two words")
    share, n = len(holders) / pairs.sum(), len(texts)
    rest = pairs.sum() - pairs
    if n < 2 or not rest.all() or share == 1:
        return Estimate(100 * share, np.nan, np.nan, np.nan, "no interval: too few responses, or no pair comes again")
    lost = np.array([sum(holders[pair] == 1 for pair in own) for own in different], float)
    without = (len(holders) - lost) / rest
    error = float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))
    return Estimate(share, error, *wilson(share, error, critical_value(n))).scaled(100)


def crossed(run: RunData) -> pd.DataFrame:
    """Find the pairs of methods that proxy and gold order in opposite ways, both beyond chance (Holm-adjusted p < .05).

    Returns:
        One row per pair: by_proxy and by_gold (whom each puts first), then proxy and gold (how far, in the units of
        `goodhart`) with `_ci_low` and `_ci_high`; differences are paired by instruction.
    """
    columns = [f"{m}{end}" for m in ("proxy", "gold") for end in ("", "_ci_low", "_ci_high")]
    gaps, golds = proxy_gaps(run), run.table("evaluation/paired_differences.csv")
    rows = []
    if gaps is not None and golds is not None:
        gold_of = {(r["generator_a"], r["generator_b"]): r for _, r in golds.iterrows()}
        for _, proxy in winrate.score_differences(gaps).iterrows():
            a, b = proxy["generator_a"], proxy["generator_b"]
            # in both tables a has the higher mean
            gold = gold_of.get((b, a))
            if gold is not None and proxy["p_adjusted"] < 0.05 and gold["p_adjusted"] < 0.05:
                ends = [r[c] for r in (proxy, gold) for c in ("difference", "ci_low", "ci_high")]
                rows.append([a, b, *ends])
    return pd.DataFrame(rows, columns=["by_proxy", "by_gold", *columns])


@dataclass(frozen=True, slots=True)
class Parted:
    """A training in which the proxy rose on from gold's peak while gold fell, both beyond their intervals."""

    method: str
    peak: Peak
    """Of gold, in percentage points."""
    rise: Estimate
    """Of the proxy's mean reward, from gold's peak to the end."""


def parted_trainings(run: RunData) -> list[Parted]:
    """Find the trainings, judged along the way (overoptimization/METHOD.parquet), in which proxy and gold parted."""
    found = []
    for path in sorted((run.folder / "overoptimization").glob("*.parquet")):
        looks = run.table(f"overoptimization/{path.name}")
        if looks is None:
            continue
        wide = looks.pivot(index="id", columns="step", values=["proxy", "gold"]).astype(float).dropna()
        if len(wide) < 2:
            continue
        proxy, gold = wide["proxy"].to_numpy(float), 100 * wide["gold"].to_numpy(float)
        peak = seen_peak(wide["gold"].columns.to_numpy(float), gold, proxy)
        rise = clustered_mean(proxy[:, -1] - proxy[:, int(gold.mean(0).argmax())], np.arange(len(wide)))
        if peak.falls and rise.ci_low > 0:
            found.append(Parted(path.stem, peak, rise))
    return found
