"""Win rates against a baseline, in percent, with intervals clustered by instruction."""

from __future__ import annotations

from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from simfarm.errors import DataError
from simfarm.evaluation.clustering import clustered_mean, codes, holm, instruction_codes
from simfarm.evaluation.labels import against, check_battles, choose_baseline
from simfarm.tables import require_columns


def win_rates(
    labels: pd.DataFrame,
    *,
    baseline: str | None = None,
    confidence: float = 0.95,
    annotators: Literal["fixed", "sampled"] = "fixed",
) -> pd.DataFrame:
    """Compute how often each generator is preferred to the baseline.

    win_rate = 100 mean(score), score = the preference seen from the generator's side: 1 win, 0 loss, .5 tie, soft
    labels between. discrete_win_rate = 100 (wins + ties/2) / n_kept, a win being a score above .5. Equal to
    AlpacaEval's `win_rate`, `standard_error` and `discrete_win_rate` where each instruction has one row.

    Args:
        labels: Labels with generator_1 and generator_2; the baseline may stand on either side.
        baseline: Its name; may be left out if one generator takes part in every row. Other rows are not used.
        confidence: Of the intervals.
        annotators: "fixed": the result speaks of these annotators. "sampled": they stand for others like them, and
            the intervals cluster by annotator as well (column `annotator`; needs a few dozen of them).

    Returns:
        One row per generator, best first: generator, baseline, win_rate, standard_error, ci_low, ci_high,
        discrete_win_rate, discrete_standard_error, wins, losses, ties (counts of verdicts), n_kept, n_lost,
        lost_reasons, n_instructions, mean_length, baseline_length (characters), note. Rates are in percent.

    Raises:
        DataError: The table is not one of labels, or a generator has no verdict at all.
        UnknownNameError: There is no such baseline.
    """
    labels = check_battles(labels)
    baseline = choose_baseline(labels, baseline)
    if annotators == "sampled":
        require_columns(labels, ["annotator"], "labels")
    table = against(labels, baseline)
    rows = [
        _win_rate(str(name), baseline, group, confidence, annotators == "sampled")
        for name, group in table.groupby("generator", sort=True)
    ]
    return pd.DataFrame(rows).sort_values("win_rate", ascending=False, kind="stable").reset_index(drop=True)


def _win_rate(name: str, baseline: str, group: pd.DataFrame, confidence: float, sampled: bool) -> dict[str, object]:
    kept = group[group["score"].notna()]
    reasons = lost_reasons(group[group["score"].isna()])
    if kept.empty:
        raise DataError(f"{name!r} has no verdict: all {len(group)} are missing ({reasons}). Label its rows again.")
    score = kept["score"].to_numpy(float)
    discrete = np.sign(score - 0.5) / 2 + 0.5
    clusters = instruction_codes(kept)
    others = [codes(kept["annotator"])] if sampled else []
    soft, hard = (
        clustered_mean(x, clusters, *others, confidence=confidence, share=True).scaled(100) for x in (score, discrete)
    )
    return {
        "generator": name,
        "baseline": baseline,
        "win_rate": soft.value,
        "standard_error": soft.standard_error,
        "ci_low": soft.ci_low,
        "ci_high": soft.ci_high,
        "discrete_win_rate": hard.value,
        "discrete_standard_error": hard.standard_error,
        "wins": int((discrete == 1).sum()),
        "losses": int((discrete == 0).sum()),
        "ties": int((discrete == 0.5).sum()),
        "n_kept": len(kept),
        "n_lost": len(group) - len(kept),
        "lost_reasons": reasons,
        "n_instructions": int(clusters.max()) + 1,
        "mean_length": float(kept["length"].mean()),
        "baseline_length": float(kept["baseline_length"].mean()),
        "note": soft.note,
    }


def lost_reasons(lost: pd.DataFrame) -> str:
    """Count why verdicts are missing: "2 x refused; 1 x no reason given"."""
    if lost.empty:
        return ""
    reasons = lost["reason"].fillna("").astype(str) if "reason" in lost.columns else pd.Series("", index=lost.index)
    counts = reasons.replace("", "no reason given").value_counts()
    return "; ".join(f"{count} x {reason}" for reason, count in counts.items())


def paired_differences(labels: pd.DataFrame, *, baseline: str | None = None, confidence: float = 0.95) -> pd.DataFrame:
    """Compare the generators with one another by their scores against the baseline on the same instructions.

    Per instruction, the difference of two generators' mean scores; over the instructions that both have, its mean,
    Student's t interval and p-value, adjusted by Holm for all pairs.

    Args:
        labels: As for `win_rates`.
        baseline: As for `win_rates`.
        confidence: Of the intervals (each on its own; only `p_adjusted` is simultaneous).

    Returns:
        One row per pair: generator_a, generator_b, difference (percentage points, a minus b), standard_error, ci_low,
        ci_high, p, p_adjusted, n_instructions, note.

    Raises:
        DataError: The table is not one of labels, or fewer than two generators are compared with the baseline.
        UnknownNameError: There is no such baseline.
    """
    labels = check_battles(labels)
    table = against(labels, choose_baseline(labels, baseline))
    table = table[table["score"].notna()]
    scores = table.pivot_table(index=["instruction", "input"], columns="generator", values="score", aggfunc="mean")
    if scores.shape[1] < 2:
        raise DataError(f"Differences need two generators besides the baseline; {scores.shape[1]} has verdicts.")
    found = score_differences(scores, confidence=confidence)
    return found.assign(**{c: 100 * found[c] for c in ("difference", "standard_error", "ci_low", "ci_high")})


def score_differences(scores: pd.DataFrame, *, confidence: float = 0.95) -> pd.DataFrame:
    """Compare generators with one another by their scores on the same instructions; see `paired_differences`.

    Args:
        scores: One row per instruction, one column per generator; NaN where it has none.
        confidence: Of the intervals.

    Returns:
        As `paired_differences`, in the unit of the scores; of two generators, a has the higher mean.
    """
    names = scores.mean().sort_values(ascending=False, kind="stable").index
    rows = []
    for a, b in combinations(names, 2):
        gaps = (scores[a] - scores[b]).dropna().to_numpy(float)
        row: dict[str, object] = {"generator_a": a, "generator_b": b, "n_instructions": len(gaps)}
        if len(gaps) < 2:
            row |= dict.fromkeys(("difference", "standard_error", "ci_low", "ci_high"), np.nan)
            row |= {"p": 1.0, "note": "fewer than two instructions in common: not compared"}
        else:
            mean = clustered_mean(gaps, np.arange(len(gaps)), confidence=confidence)
            row |= {"difference": mean.value, "standard_error": mean.standard_error}
            row |= {"ci_low": mean.ci_low, "ci_high": mean.ci_high, "note": mean.note}
            if mean.standard_error > 0:
                row["p"] = float(2 * stats.t.sf(abs(mean.value) / mean.standard_error, len(gaps) - 1))
            else:
                # gaps without spread: the sign test is what is left
                row["p"] = 1.0 if mean.value == 0 else float(2.0 ** (1 - len(gaps)))
        rows.append(row)
    result = pd.DataFrame(rows)
    result["p_adjusted"] = holm(result["p"].to_numpy(float))
    columns = ["generator_a", "generator_b", "difference", "standard_error", "ci_low", "ci_high", "p", "p_adjusted"]
    return result[[*columns, "n_instructions", "note"]]
