"""Published tables in the shape of labels; where only lengths are known, texts are stand-ins of that length."""

import json

import numpy as np
import pandas as pd
from scipy.optimize import root
from scipy.special import expit

from simfarm.evaluation.alpacaeval import GamedRows, scaled_length
from simfarm.evaluation.calibration import Members, Votes
from simfarm.evaluation.clustering import instruction_codes

ALPACAEVAL_BASELINE = "gpt4_1106_preview"


def alpacaeval_labels(folder):
    judged = pd.read_parquet(folder / "judgments.parquet")
    instructions = pd.read_parquet(folder / "instructions.parquet").set_index("instruction_id")["instruction"]
    judged = judged[judged["model"] != ALPACAEVAL_BASELINE]
    return pd.DataFrame(
        {
            "instruction": instructions.loc[judged["instruction_id"]].to_numpy(),
            "output_1": ["x" * n for n in judged["len_baseline_chars"]],
            "output_2": ["y" * n for n in judged["len_model_chars"]],
            "generator_1": ALPACAEVAL_BASELINE,
            "generator_2": judged["model"].to_numpy(),
            "preference": judged["preference"].to_numpy(),
            "annotator": "weighted_alpaca_eval_gpt4_turbo",
            "order": np.where(judged["model_shown_first"].astype(bool), "21", "12"),
        }
    )


def alpacaeval_gamed(folder):
    lengths = pd.read_parquet(folder / "gamed_lengths.parquet")
    difficulty = pd.read_parquet(folder / "instructions.parquet").set_index("instruction_id")["difficulty"]
    sums = json.loads((folder / "gamed_sums.json").read_text())
    scaled = [
        scaled_length(rows["len_model_chars"].to_numpy(), rows["len_baseline_chars"].to_numpy())
        for _, rows in lengths.groupby("model", sort=False)
    ]
    length, delta = np.concatenate(scaled), difficulty.loc[lengths["instruction_id"]].to_numpy()
    # the verdicts are not public, but the two sums by which they enter a fit are known from published fits
    x, sums = np.column_stack([length, delta]), np.array([sums["S1"], sums["S2"]])
    beta = root(lambda b: x.T @ expit(x @ b) - sums, [-1.0, 1.0]).x
    return GamedRows(length, delta, expit(x @ beta))


def votes(shared, dataset):
    """Return items, judges' labels and humans' labels of one data set, in simfarm's columns."""
    items = pd.read_parquet(shared / "judge_items.parquet").query("dataset == @dataset")
    items = items.rename(columns={"model_1": "generator_1", "model_2": "generator_2"})
    columns = ["item_id", "subset", "instruction", "output_1", "output_2", "generator_1", "generator_2"]
    judge = pd.read_parquet(shared / "judge_votes.parquet").query("dataset == @dataset").drop(columns="dataset")
    human = pd.read_parquet(shared / "human_votes.parquet").query("dataset == @dataset").drop(columns="dataset")
    judge = judge.rename(columns={"judge": "annotator"}).merge(items[columns], on="item_id", how="left")
    human = human.rename(columns={"worker": "annotator"}).merge(items[columns], on="item_id", how="left")
    return items, judge, human


def judges_as_pool(shared):
    """Return PRD's human votes with the verdicts of its five judges in the order that the person saw, equal weights."""
    _, judge, human = votes(shared, "prd")
    judge = judge[judge["replicate"] == 0]
    wide = judge.pivot(index=["item_id", "order"], columns="annotator", values="preference").dropna()
    keys = pd.MultiIndex.from_frame(human[["item_id", "order"]])
    known = keys.isin(wide.index)
    human, said = human[known].reset_index(drop=True), wide.loc[keys[known]].to_numpy(float)
    gap = (human["output_1"].str.len() - human["output_2"].str.len()).to_numpy(float)
    n, k = said.shape
    table = Votes(
        2 - human["preference"].to_numpy(float),
        np.asarray(human.groupby("item_id", sort=False).ngroup(), np.int64),
        instruction_codes(human),
        np.where(human["order"] == "12", 1.0, -1.0),
        2 - said,
        np.zeros((n, k)),
        np.sign(gap),
    )
    nothing = np.zeros(k, bool)
    return table, Members(list(wide.columns), np.full(k, 1 / k), nothing, nothing, nothing)
