"""Compare ways to train a reward model on the labels of a finished run: which state is read, where the head starts.

    python benchmarks/reward_recipes.py RUN_DIR

Cross-validated over thirds of the instructions: accuracy against the sign of the pool's expectation (every member's
probability, both orders, no noise), and correlation of the reward difference with it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from simfarm import draws
from simfarm.annotators.pool import load_pool
from simfarm.experiments.config import load_experiment
from simfarm.experiments.rundir import RunDirectory
from simfarm.experiments.stages import Run, gold_scores
from simfarm.rewards.config import RewardConfig
from simfarm.rewards.train import Pairs, train_reward_model

FOLDS = 3
RECIPES: tuple[dict[str, object], ...] = (
    {"pooling": "last", "head": "zero", "epochs": 1},
    {"pooling": "mean", "head": "zero", "epochs": 1},
    {"pooling": "last", "head": "probe", "epochs": 0},
    {"pooling": "mean", "head": "probe", "epochs": 0},
    {"pooling": "mean", "head": "probe", "epochs": 1},
)


def evaluate(run: Run, labels: pd.DataFrame, config: RewardConfig) -> tuple[float, float]:
    """Return cross-validated accuracy and correlation against the column `gold` of the labels."""
    names = sorted(set(labels["id"]))
    fold_of = {names[i]: k % FOLDS for k, i in enumerate(draws.permutation(len(names), 0, "folds"))}
    folds = labels["id"].map(fold_of)
    gaps = np.zeros(len(labels))
    for fold in range(FOLDS):
        train, test = labels[folds != fold], labels[folds == fold]
        p_first = (2 - train["preference"]).to_numpy(float)
        pairs = Pairs(run.prompts(train), list(train["output_1"]), list(train["output_2"]), p_first)
        model = train_reward_model(run.split, pairs, config, seed=run.config.seed)
        asked = [*run.prompts(test), *run.prompts(test)]
        texts = list(dict.fromkeys(zip(asked, [*test["output_1"], *test["output_2"]], strict=True)))
        score = dict(zip(texts, model.rewards([p for p, _ in texts], [o for _, o in texts]), strict=True))
        prompts = asked[: len(test)]
        r1, r2 = (
            np.array([score[key] for key in zip(prompts, test[side], strict=True)]) for side in ("output_1", "output_2")
        )
        gaps[(folds == fold).to_numpy()] = r2 - r1
    gold = labels["gold"].to_numpy(float)
    return float(((gaps > 0) == (gold > 0.5)).mean()), float(np.corrcoef(gaps, gold)[0, 1])


def main() -> None:
    """Print one row per pooling."""
    folder = Path(sys.argv[1])
    config = load_experiment(str(folder / "config.json"))
    run = Run(config, RunDirectory(folder, config))
    labels = run.dir.read("labels.parquet")
    labels = labels[labels["preference"].notna() & (labels["output_1"] != labels["output_2"])]
    pairs = labels.drop_duplicates(["id", "output_1", "output_2"]).reset_index(drop=True)
    gold = gold_scores(load_pool(config.annotation.pool), pairs, seed=config.seed, orders="both")
    keys = ["id", "output_1", "output_2"]
    labels = labels.merge(pairs[keys].assign(gold=gold.to_numpy(float)), on=keys)
    lengths = (labels["output_2"].str.len() - labels["output_1"].str.len()).to_numpy(float)
    values = labels["gold"].to_numpy(float)
    print(f"{len(labels)} labels of {len(pairs)} pairs")
    print(f"longer text                   accuracy {((lengths > 0) == (values > 0.5)).mean():.3f}", end="  ")
    print(f"correlation {np.corrcoef(lengths, values)[0, 1]:.3f}", flush=True)
    for recipe in RECIPES:
        accuracy, correlation = evaluate(run, labels, config.reward.model_copy(update=recipe))
        name = f"{recipe['pooling']} state, head {recipe['head']}, {recipe['epochs']} epochs"
        print(f"{name:29} accuracy {accuracy:.3f}  correlation {correlation:.3f}", flush=True)


if __name__ == "__main__":
    main()
