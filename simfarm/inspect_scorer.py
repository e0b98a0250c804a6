"""A pool as a scorer of inspect_ai: how probably each answer is preferred to a baseline's answer.

Needs inspect_ai (`pip install 'simfarm[inspect]'`). In a task: `scorer=pool_scorer("embedded", baseline="base.json")`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

import pandas as pd

from simfarm import tables
from simfarm.annotators.pool import Pool, load_pool
from simfarm.errors import DataError, require
from simfarm.records import probability_from_preference

try:
    from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
    from inspect_ai.solver import TaskState
except ImportError:
    # says which extra brings it; anything else that failed to import is raised as it is
    require("inspect_ai", "inspect", "The scorer for inspect_ai")
    raise


@scorer(metrics=[mean(), stderr()])
def pool_scorer(
    pool: str = "embedded",
    *,
    baseline: str | None = None,
    seed: int = 0,
    orders: Literal["random", "both"] = "both",
    assign: Literal["random", "all"] = "random",
) -> Scorer:
    """Score an answer by the pool's preference of it over a baseline's: 1 preferred, 0 not, .5 a tie.

    Args:
        pool: Name or folder of the pool.
        baseline: A file of outputs (instruction, output) with an output for every sample's input; None takes the
            sample's target as the answer to beat.
        seed: Of the draws of annotators and orders.
        orders: "both" shows each pair in both orders and takes the mean.
        assign: "random" asks one member per sample, "all" asks each and takes the mean.
    """
    judge = load_pool(pool)
    known = {} if baseline is None else _by_instruction(Path(baseline))

    async def score(state: TaskState, target: Target) -> Score:
        other = known.get(state.input_text) if baseline is not None else target.text
        if other is None:
            raise DataError(
                f"{baseline} has no output for the input {state.input_text[:60]!r}; give outputs on the same inputs."
            )
        pairs = pd.DataFrame(
            {"instruction": [state.input_text], "output_1": [other], "output_2": [state.output.completion]}
        )
        # a pool works in an event loop of its own, which cannot stand inside this one
        labels = await asyncio.to_thread(_labels, judge, pairs, seed, orders, assign)
        return _score(labels, state.output.completion)

    return score


def _by_instruction(path: Path) -> dict[str, str]:
    table = tables.read_outputs(path)
    return dict(zip(table["instruction"], table["output"], strict=True))


def _labels(
    pool: Pool,
    pairs: pd.DataFrame,
    seed: int,
    orders: Literal["random", "both"],
    assign: Literal["random", "all"],
) -> pd.DataFrame:
    return pool.annotate(pairs, seed=seed, orders=orders, assign=assign)


def _score(labels: pd.DataFrame, answer: str) -> Score:
    kept = labels[labels["preference"].notna()]
    said = "; ".join(
        f"{row['annotator']}: {'no verdict' if pd.isna(row['preference']) else row['preference']}"
        for row in labels.to_dict("records")
    )
    if kept.empty:
        # not a number, so that a missing verdict is no verdict against the answer
        return Score(value=float("nan"), answer=answer, explanation=said)
    value = 1 - probability_from_preference(float(kept["preference"].astype(float).mean()))
    return Score(value=value, answer=answer, explanation=said, metadata={"pool": str(labels["pool"].iloc[0])})
