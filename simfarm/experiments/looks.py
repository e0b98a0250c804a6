"""Gold along PPO: what the policy answered at every look, scored by the reward model and judged by the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from simfarm import tables
from simfarm.annotators.pool import load_pool
from simfarm.experiments.judging import BASELINE, gold_scores
from simfarm.progress import track

if TYPE_CHECKING:
    from simfarm.experiments.stages import Run


def training_gold(run: Run) -> None:
    """Write overoptimization/ppo.parquet: id, step (0 is the initial policy), kl (nats), proxy, gold (a probability).

    Gold is the pool's preference, without noise, to the baseline's output.
    """
    config = run.config.evaluation
    asked = run.instructions("eval")
    by_prompt = pd.DataFrame({"prompt": run.prompts(asked), **{c: asked[c] for c in ("id", "instruction", "input")}})
    looks = tables.read_table(run.dir / "methods/ppo/samples.jsonl", ["step", "prompt", "output", "kl"])
    drawn = run.dir.read("samples/eval.parquet")
    first = drawn[drawn["sample"] == min(drawn["sample"][drawn["sample"] != BASELINE])]
    columns = ["id", "instruction", "input", "output", "step", "kl"]
    # a look is taken after its step
    later = looks.merge(by_prompt, on="prompt", validate="many_to_one").assign(step=lambda t: t["step"] + 1)
    table = pd.concat([first.assign(step=0, kl=0.0)[columns], later[columns]], ignore_index=True)
    baseline = drawn[drawn["sample"] == BASELINE].set_index("id")["output"]
    pairs = table.assign(output_1=table["id"].map(baseline), output_2=table["output"])

    def work(part: pd.DataFrame) -> pd.DataFrame:
        judged = gold_scores(load_pool(config.pool), part, seed=run.config.seed, orders=config.orders)
        scored = part[["id", "step", "kl"]].assign(proxy=run.score(part, "looks"), gold=judged.to_numpy(float))
        advance(len(part))
        return scored

    with track("judging looks", len(pairs), "responses") as advance:
        done = run.dir.in_units("overoptimization/looks", pairs, 256, work)
    run.dir.write(done, "overoptimization/ppo.parquet")
    run.dir.drop_units("overoptimization/looks")
