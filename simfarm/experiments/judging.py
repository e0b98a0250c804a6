"""What the reward model and the annotators say of the methods' outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from simfarm import tables
from simfarm.annotators import costs
from simfarm.annotators.pool import Pool, flip_labels, load_pool
from simfarm.llm.client import Client
from simfarm.llm.store import open_store
from simfarm.progress import track

if TYPE_CHECKING:
    from simfarm.experiments.stages import Run

BASELINE = "baseline"
UNIT = 256
"""Responses per unit of scoring."""


def outputs_named(run: Run) -> list[str]:
    """Return the names of all that is compared with the baseline."""
    return [*run.config.methods, *run.config.checkpoints, *run.config.outputs]


def output_rewards(run: Run) -> None:
    """Write evaluation/output_rewards.parquet: generator, instruction, input, reward of each method's outputs.

    An output that is among the samples has been scored already.
    """
    names = [BASELINE, *outputs_named(run)]
    texts = ["instruction", "input", "output"]
    table = pd.concat(
        [tables.with_input(run.dir.read(f"outputs/{n}.json"))[texts].assign(generator=n) for n in names],
        ignore_index=True,
    )
    drawn = run.dir.read("samples/eval.parquet").merge(
        run.dir.read("samples/eval_rewards.parquet"), on=["id", "sample"]
    )
    known = drawn.drop_duplicates(texts)[[*texts, "reward"]]
    scored = table.merge(known, on=texts, how="left", validate="many_to_one")
    owed = table[scored["reward"].isna()]
    if len(owed):

        def work(part: pd.DataFrame) -> pd.DataFrame:
            fresh = run.reward.rewards(run.prompts(part), list(part["output"]), progress=advance)
            return pd.DataFrame({"reward": fresh})

        with track("scoring outputs", len(owed), "responses") as advance:
            done = run.dir.in_units("evaluation/output_rewards", owed, UNIT, work)
        scored.loc[owed.index, "reward"] = done["reward"].to_numpy(float)
    run.dir.write(scored[["generator", "instruction", "input", "reward"]], "evaluation/output_rewards.parquet")
    if len(owed):
        run.dir.drop_units("evaluation/output_rewards")


def annotate(pool: Pool, pairs: pd.DataFrame, title: str, **draws: Any) -> pd.DataFrame:
    """Label pairs, and show how far that is and, where language models are asked, what it has cost.

    Args:
        pool: Who judges.
        pairs: See `Pool.annotate`.
        title: What is being done.
        **draws: Of `Pool.plan`.
    """
    client = None if pool.offline else Client(open_store())
    note = None if client is None else lambda: costs.spent(client.usage)
    with track(title, costs.judgments(pool.plan(pairs, **draws)), "judgments", note=note) as advance:
        return pool.annotate(pairs, client=client, progress=advance, **draws)


def judgements(run: Run) -> None:
    """Have the pool, without noise, compare all methods' outputs and all of best-of-n's samples with the baseline's.

    evaluation/judge.parquet is what the noisy annotators of the training labels say of the same outputs.
    """
    config = run.config.evaluation
    pool = load_pool(config.pool)
    baseline = run.dir.read(f"outputs/{BASELINE}.json")
    table = run.dir.read("samples/eval.parquet")
    drawn = table[table["sample"] != BASELINE].reset_index(drop=True)
    against = dict(zip(zip(baseline["instruction"], baseline["input"], strict=True), baseline["output"], strict=True))
    keys = zip(drawn["instruction"], drawn["input"], strict=True)
    samples = drawn[["id", "sample", "instruction", "input"]].assign(
        output_1=[against[key] for key in keys], output_2=drawn["output"]
    )
    gold = gold_scores(pool, samples, seed=run.config.seed, orders=config.orders)
    run.dir.write(samples[["id", "sample"]].assign(gold=gold.to_numpy(float)), "evaluation/sample_gold.parquet")
    names = outputs_named(run)
    pairs = pd.concat(
        [tables.head_to_head(run.dir.read(f"outputs/{name}.json"), baseline) for name in names], ignore_index=True
    )

    def ask(annotators: Pool) -> pd.DataFrame:
        title = f"judging with {annotators.name}"
        return annotate(
            annotators, pairs, title, seed=run.config.seed, orders=config.orders, replicates=config.replicates
        )

    judged = ask(pool)
    run.dir.write(judged, "evaluation/labels.parquet")
    noisy = run.config.annotation
    # the same pool has said what it says; only its noise is drawn
    clean = judged.assign(cost=0.0) if noisy.pool == config.pool else ask(load_pool(noisy.pool))
    run.dir.write(flip_labels(clean, flip=noisy.flip, seed=run.config.seed), "evaluation/judge.parquet")


def gold_scores(pool: Pool, samples: pd.DataFrame, *, seed: int, orders: Literal["random", "both"]) -> pd.Series:
    """Return P(the pool prefers output_2 to output_1) of each row.

    Where every member tells its probability for nothing, it is the members' weighted mean; otherwise one member's
    verdict, drawn as for any label, which has the same expectation.
    """
    if not pool.offline:
        labelled = annotate(pool, samples, f"gold by {pool.name}", seed=seed, orders=orders)
        return labelled["preference"].astype(float) - 1
    numbered = samples.assign(_row=range(len(samples)))
    labelled = pool.annotate(numbered, seed=seed, orders=orders, assign="all", soft=True)
    weight = labelled["annotator"].map({m.name: m.weight for m in pool.config.members}).astype(float)
    weighted = (weight * (labelled["preference"].astype(float) - 1)).groupby(labelled["_row"]).sum()
    return weighted / weight.groupby(labelled["_row"]).sum()


def verdicts_per_gold(pool: Pool) -> int:
    """Return how many verdicts in one order `gold_scores` asks of a response."""
    return len(pool.config.members) if pool.offline else 1
