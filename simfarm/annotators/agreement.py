"""How often simulated annotators side with people, beside judges that read nothing.

Where several people judged a comparison, their majority counts (the side of 1.5 on which their mean lies); comparisons
on which they tie are left out. Intervals cluster by instruction.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simfarm.errors import DataError
from simfarm.evaluation.clustering import Estimate, Ints, clustered_mean, instruction_codes
from simfarm.tables import check_labels

Floats = NDArray[np.float64]
KEYS = ["instruction", "input", "output_1", "output_2"]


def human_majority(labels: pd.DataFrame) -> pd.DataFrame:
    """Reduce human labels to one row per comparison on which the people have a majority.

    Args:
        labels: Comparisons with `preference`; several rows of one comparison are several people. Missing preferences
            are left out.

    Returns:
        instruction, input, output_1, output_2, preference (1 or 2).

    Raises:
        DataError: The table is not one of labels, or no comparison has a majority.
    """
    known = check_labels(labels, "the human labels").dropna(subset=["preference"])
    means = known.groupby(KEYS, sort=False)["preference"].mean().reset_index()
    decided = means[(means["preference"] - 1.5).abs() > 1e-9]
    if decided.empty:
        raise DataError("The human labels hold no comparison with a majority: every one is a tie or missing.")
    return decided.assign(preference=1.0 + (decided["preference"] > 1.5)).reset_index(drop=True)


def null_judges(comparisons: pd.DataFrame) -> dict[str, Floats]:
    """Return the preferences of judges that read nothing: the longer output in characters, the first, a coin."""
    gap = np.asarray(comparisons["output_2"].str.len() - comparisons["output_1"].str.len(), float)
    n = len(comparisons)
    return {"(longer)": 1.5 + np.sign(gap) / 2, "(first)": np.ones(n), "(coin)": np.full(n, 1.5)}


def agreement_table(human: pd.DataFrame, judges: Mapping[str, Floats]) -> pd.DataFrame:
    """Compare judges with the human majority.

    Args:
        human: What `human_majority` returns, n rows.
        judges: The preferences of each judge, (n,) in [1, 2], soft allowed; NaN where missing.

    Returns:
        One row per judge: `judge`, `n` (comparisons with a preference), `agreement` (share in which the side it leans
        to is the humans'; no leaning counts half), `ci_low`, `ci_high` (95 %, clustered by instruction), `one_verdict`
        (probability that one verdict drawn from it is the humans'), `one_low`, `one_high`.
    """
    clusters = instruction_codes(human)
    side = human["preference"].to_numpy(float)
    rows = []
    for name, preference in judges.items():
        known = ~np.isnan(preference)
        if not known.any():
            raise DataError(f"{name!r} has no verdict on any of the {len(human)} comparisons.")
        groups = np.unique(clusters[known], return_inverse=True)[1]
        lean = 1.5 + np.sign(preference[known] - 1.5) / 2
        whole, one = (_share(1 - np.abs(p - side[known]), groups) for p in (lean, preference[known]))
        rows.append(
            {
                "judge": name,
                "n": int(known.sum()),
                "agreement": whole.value,
                "ci_low": whole.ci_low,
                "ci_high": whole.ci_high,
                "one_verdict": one.value,
                "one_low": one.ci_low,
                "one_high": one.ci_high,
            }
        )
    return pd.DataFrame(rows)


def _share(values: Floats, clusters: Ints) -> Estimate:
    # a judge that never leans sides with people half of the time, whatever they say: nothing there is estimated
    if np.all(values == 0.5):
        return Estimate(0.5, 0.0, 0.5, 0.5)
    return clustered_mean(values, clusters, share=True)


def render(table: pd.DataFrame) -> str:
    """Lay out what `agreement_table` returns, in percent."""
    width = max(len("judge"), *(len(name) for name in table["judge"]))
    lines = [f"{'judge':{width}}     n  agreement  95 % interval  one verdict  95 % interval"]
    for row in table.to_dict("records"):
        lines.append(
            f"{row['judge']:{width}} {row['n']:5d} {100 * row['agreement']:9.1f}%  "
            f"[{100 * row['ci_low']:5.1f}, {100 * row['ci_high']:5.1f}] {100 * row['one_verdict']:11.1f}%  "
            f"[{100 * row['one_low']:5.1f}, {100 * row['one_high']:5.1f}]"
        )
    return "\n".join(lines)
