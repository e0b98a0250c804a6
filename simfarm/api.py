"""What takes several steps of the library, as one function for those who work in Python: see `simfarm.__all__`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from simfarm import tables
from simfarm.errors import ConfigError, DataError
from simfarm.evaluation import bradley_terry, power
from simfarm.evaluation.ranking import rank_table
from simfarm.overoptimization.best_of_n import best_of_n_curve

if TYPE_CHECKING:
    from simfarm.report.data import RunData


def run(
    experiment: str | Path, out: str | Path | None = None, *, settings: Sequence[str] = (), seed: int | None = None
) -> RunData:
    """Run an experiment end to end, or go on with it, or open a finished one.

    Args:
        experiment: A built-in experiment (`quickstart`), a TOML file, or the config.json of a run.
        out: The run directory; runs/NAME-seedSEED if None.
        settings: `key=value` with dotted keys, such as `ppo.steps=20`.
        seed: Of all draws; wins over the config.

    Returns:
        The finished run: `win_rates`, `humans`, `samples` are DataFrames, `table("labels.parquet")` reads any table of
        the run directory, `folder` is where report.html lies.

    Raises:
        UnknownNameError: There is no such experiment.
        ConfigError: The config or a setting is not valid.
        RunError: The directory holds something else or a run of another config.
        SimfarmError: A stage cannot be done; what was done stays, and the same call goes on from there.
    """
    from simfarm.experiments.config import load_experiment
    from simfarm.experiments.runner import run_experiment
    from simfarm.report.data import open_run

    config = load_experiment(str(experiment), settings, seed=seed)
    folder = Path("runs") / f"{config.name}-seed{config.seed}" if out is None else Path(out)
    return open_run(run_experiment(config, folder).path)


def rank(
    labels: pd.DataFrame,
    *,
    ties: bradley_terry.Ties = "davidson",
    confidence: float = 0.95,
    bootstrap: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """Rank generators by Bradley–Terry, with the ranks that cannot be excluded.

    Args:
        labels: Labels with generator_1 and generator_2, of any pairs of generators.
        ties: "davidson" models ties, "half" counts each as half a win.
        confidence: Of all intervals.
        bootstrap: Resamples of instructions for percentile intervals beside the sandwich ones; 0 for none.
        seed: Of all draws.

    Returns:
        One row per generator, best first; see `evaluation.ranking.rank_table`.

    Raises:
        DataError: The table is not one of labels, or its comparisons do not connect all generators.
    """
    data = bradley_terry.battles(labels, ties)
    return rank_table(bradley_terry.fit(data), data, confidence=confidence, bootstrap_draws=bootstrap, seed=seed)


def plan_study(
    difference: float | None = None,
    *,
    pilot: pd.DataFrame | None = None,
    baseline: str | None = None,
    win_rate: float = 50.0,
    raters: tuple[int, ...] = (1, 2, 3, 5),
    confidence: float = 0.95,
    power_wanted: float = 0.8,
    price: float | None = None,
) -> pd.DataFrame:
    """Say how many human labels show a difference.

    Args:
        difference: Percentage points to find; with a pilot, what the pilot found if None (which is optimistic).
        pilot: Labels with generator_1 and generator_2, from which spreads are estimated; without it, the spread is
            assumed (`evaluation.power.assumed_spread` at `win_rate`).
        baseline: Of the pilot; may be left out if one generator takes part in every row.
        win_rate: Assumed win rate in percent, without a pilot.
        raters: Numbers of verdicts per instruction to consider.
        confidence: 1 - alpha, two-sided.
        power_wanted: Probability of finding the difference.
        price: Per label.

    Returns:
        One row per comparison and number of raters: comparison, difference, raters, instructions, labels and, with a
        price, cost.

    Raises:
        ConfigError: Neither a difference nor a pilot is given, or a number is out of range.
        DataError: The pilot is no table of labels, or found no difference and none is given.
    """
    if pilot is not None:
        chosen = power.pilots(pilot, baseline=baseline)
    elif difference is not None:
        spread = power.assumed_spread(win_rate)
        chosen = [power.Pilot("assumed", difference, spread, 0, 1)]
    else:
        raise ConfigError("plan_study needs a difference in percentage points, or a pilot table of labels.")
    plans = []
    for one in chosen:
        gap = abs(one.difference if difference is None else difference)
        if gap == 0:
            raise DataError(f"The pilot found no difference for {one.name}; give the difference you want to find.")
        plan = power.plan(gap, one.spread, raters=raters, confidence=confidence, power=power_wanted, price=price)
        plan.insert(0, "comparison", one.name)
        plan.insert(1, "difference", gap)
        plans.append(plan)
    return pd.concat(plans, ignore_index=True)


def best_of_n(
    samples: pd.DataFrame, *, proxy: str = "proxy", gold: str = "gold", ns: Sequence[int] | None = None
) -> pd.DataFrame:
    """Estimate the over-optimization curve of best-of-n from scored samples, for every n at once.

    Args:
        samples: One row per sample: instruction, input (if there is one), and the two scores; every instruction has
            the same number of samples.
        proxy: The column by which best-of-n chooses, such as a reward model's.
        gold: The column by which the choice is judged, such as a pool's probability that it beats the baseline.
        ns: The n to estimate; all from 1 to the number of samples if None.

    Returns:
        One row per n: n, kl (nats), proxy and gold with standard errors and intervals; see
        `overoptimization.best_of_n.best_of_n_curve`.

    Raises:
        DataError: A column or a score is missing, or instructions have unequal numbers of samples.
        ConfigError: An n is not between 1 and the number of samples.
    """
    tables.require_columns(samples, ["instruction", proxy, gold], "samples")
    if samples.empty:
        raise DataError("There are no samples.")
    table = tables.with_input(samples)
    groups = [group for _, group in table.groupby(["instruction", "input"], sort=False)]
    sizes = {len(group) for group in groups}
    if len(sizes) > 1:
        few = min(groups, key=len)
        raise DataError(
            f"The instructions have from {min(sizes)} to {max(sizes)} samples; the fewest has "
            f"{few['instruction'].iloc[0][:60]!r}. Give the same number for each."
        )
    values = [[group[column].to_numpy(float) for group in groups] for column in (proxy, gold)]
    return best_of_n_curve(*values, ns=ns)
