"""The stages of an experiment, in order. Each reads and writes files of the run directory and nothing else.

What a stage computes depends on the config and on the files of earlier stages only, never on where a run was
interrupted: batches are fixed by the config, draws are hashes, and each stage begins with fresh pools and models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from simfarm import draws, tables
from simfarm.annotators import costs
from simfarm.annotators.pool import load_pool
from simfarm.errors import DataError, require
from simfarm.evalsets import load_human_ranking, load_instructions, set_names
from simfarm.evaluation.correlation import rank_correlations
from simfarm.evaluation.length_control import length_controlled
from simfarm.evaluation.winrate import paired_differences, win_rates
from simfarm.experiments.config import ExperimentConfig
from simfarm.experiments.judging import BASELINE, annotate, judgements, output_rewards
from simfarm.experiments.looks import training_gold
from simfarm.experiments.rundir import RunDirectory
from simfarm.llm.prices import load_prices
from simfarm.overoptimization.best_of_n import best_of_n_curve
from simfarm.progress import track
from simfarm.records import probability_from_preference

if TYPE_CHECKING:
    from simfarm.policies.split import SplitModel, Top
    from simfarm.policies.trackers import Tracker
    from simfarm.policies.transformers import Response, TransformersPolicy
    from simfarm.rewards.model import RewardModel

BY_TASK = ("dpo", "binary_feedme", "binary_reward_conditioning", "quark", "reinforce", "rloo")
"""Methods that a stage runs as `simfarm train` does."""
TRAINED = ("expert_iteration", "ppo", *BY_TASK)
UNIT = 4
"""Decode batches per unit of sampling."""


def instructions_named(name: str) -> pd.DataFrame:
    """Load `SET/SPLIT`, or whatever else `load_instructions` takes."""
    known, slash, split = name.partition("/")
    if slash and known in set_names():
        return load_instructions(known, split=split)
    return load_instructions(name)


@dataclass
class Run:
    """What stages share: the config, the directory, and models loaded when first asked for."""

    config: ExperimentConfig
    dir: RunDirectory
    track: str | None = None
    """Where the metrics of trainings go as well: one of `policies.trackers.TRACKERS`."""

    def instructions(self, split: str) -> pd.DataFrame:
        """Return the instructions of a split of the experiment: id, instruction, input, category."""
        table = instructions_named(str(getattr(self.config.data, split)))
        # a file is often sorted by kind of task: its first rows would be of one kind
        chosen = sorted(draws.permutation(len(table), 0, "limit")[: self.config.data.limit_of(split)])
        return table.iloc[chosen].reset_index(drop=True)

    @cached_property
    def split(self) -> SplitModel:
        """The initial policy, cut below its trainable layers."""
        from simfarm.policies.split import SplitModel
        from simfarm.policies.transformers import TransformersPolicy

        p = self.config.policy
        return SplitModel(
            TransformersPolicy.load(p.model, device=p.device, dtype=p.dtype),
            p.trainable_layers,
            lora_rank=p.lora_rank,
            gradient_checkpointing=p.gradient_checkpointing,
        )

    @cached_property
    def reward(self) -> RewardModel:
        """The trained reward model."""
        from simfarm.rewards.model import RewardModel

        return RewardModel.load(self.split, self.dir / "reward")

    @contextmanager
    def tracker(self, method: str) -> Iterator[Tracker | None]:
        """Open the tracker of a method's training, or of the reward model's, if there is to be one."""
        from simfarm.policies.trackers import open_tracker

        if self.track is None:
            yield None
            return
        settings = getattr(self.config, method).model_dump()
        folder = self.dir / method if method == "reward" else self.dir / "methods" / method
        tracker = open_tracker(self.track, folder, settings)
        try:
            yield tracker
        finally:
            tracker.finish()

    def prompts(self, table: pd.DataFrame) -> list[str]:
        """Render the prompts of a table."""
        pairs = zip(table["instruction"], table["input"], strict=True)
        return [self.split.policy.render(*pair) for pair in pairs]

    def sample(self, name: str, policy: TransformersPolicy, instructions: pd.DataFrame, samples: Sequence[str]) -> None:
        """Draw responses and write `samples/NAME.parquet`: id, sample, instruction, input, output, tokens, finished."""
        rows = instructions.loc[instructions.index.repeat(len(samples))].reset_index(drop=True)
        rows = rows.assign(sample=list(samples) * len(instructions))
        # prompts of like length in one unit; sorting is part of the work's definition, not of its order of execution
        rows = rows.assign(_length=[len(p) for p in self.prompts(rows)])
        rows = rows.sort_values("_length", kind="stable", ascending=False).drop(columns="_length")
        p, seed = self.config.policy, self.config.seed

        def work(part: pd.DataFrame) -> pd.DataFrame:
            responses = policy.sample(
                [policy.render(*pair) for pair in zip(part["instruction"], part["input"], strict=True)],
                [[name, row_id, sample] for row_id, sample in zip(part["id"], part["sample"], strict=True)],
                max_new_tokens=p.max_new_tokens,
                seed=seed,
                temperature=p.temperature,
                batch_size=p.batch_size,
                progress=advance,
            )
            return part.assign(
                output=[r.text for r in responses],
                tokens=pd.Series([list(r.tokens) for r in responses], index=part.index, dtype=object),
                finished=[r.finished for r in responses],
            )

        with track(f"sampling {name}", len(rows), "responses") as advance:
            done = self.dir.in_units(f"samples/{name}", rows, p.batch_size * UNIT, work)
        self.dir.write(done.sort_values(["id", "sample"], kind="stable"), f"samples/{name}.parquet")
        self.dir.drop_units(f"samples/{name}")

    def score(self, table: pd.DataFrame, title: str) -> np.ndarray:
        """Return the reward of each row's output, (rows,)."""
        with track(f"scoring {title}", len(table), "responses") as advance:
            return self.reward.rewards(self.prompts(table), list(table["output"]), progress=advance)


def preference_samples(run: Run) -> None:
    """Draw the responses that are labelled."""
    samples = [f"{k:03}" for k in range(run.config.annotation.responses)]
    run.sample("preference", run.split.policy, run.instructions("preference"), samples)


def labels(run: Run) -> None:
    """Pair the responses and have the pool label them, with noise."""
    config = run.config.annotation
    table = run.dir.read("samples/preference.parquet")
    drawn = {int(str(k)): rows.reset_index(drop=True) for k, rows in table.groupby("sample")}
    pairs = pd.concat(
        [
            drawn[a][["id", "instruction", "input"]].assign(output_1=drawn[a]["output"], output_2=drawn[b]["output"])
            for a, b in config.paired
        ],
        ignore_index=True,
    )
    instructions = sorted(set(pairs["id"]))
    # a whole instruction is held out, so that no prompt is in both parts
    rank = draws.permutation(len(instructions), run.config.seed, "held-out instructions")
    held_out = {instructions[i] for i in rank[: max(1, round(config.held_out * len(instructions)))]}
    pool = load_pool(config.pool)
    title, seed = f"labelling with {pool.name}", run.config.seed
    labelled = annotate(pool, pairs, title, seed=seed, flip=config.flip, replicates=config.replicates)
    run.dir.write(labelled.assign(held_out=labelled["id"].isin(held_out)), "labels.parquet")


def reward(run: Run) -> None:
    """Train the reward model on the noisy labels, centre it, and test it on held-out labels, noisy and clean."""
    from simfarm.policies.training import CHECKPOINT, Setup
    from simfarm.rewards.train import Pairs, accuracy, train_reward_model

    table = run.dir.read("labels.parquet")
    # a pair the pool calls identical, or could not judge, teaches nothing
    usable = table[table["preference"].notna() & (table["output_1"] != table["output_2"])]
    train, test = usable[~usable["held_out"]], usable[usable["held_out"]]
    if train.empty or test.empty:
        raise DataError(
            f"{len(table)} labels leave {len(train)} to train and {len(test)} to test the reward model on. Take more "
            "instructions (data.limit) or responses (annotation.responses)."
        )
    pairs = Pairs(
        run.prompts(train),
        list(train["output_1"]),
        list(train["output_2"]),
        train["preference"].map(probability_from_preference).to_numpy(np.float64),
    )
    epochs = run.config.reward.epochs
    with track("training the reward model", len(train) * epochs, "pairs") as advance, run.tracker("reward") as tracker:
        model = train_reward_model(
            run.split, pairs, run.config.reward, seed=run.config.seed, progress=advance,
            setup=Setup(folder=run.dir / "reward", tracker=tracker),
        )  # fmt: skip
    responses = run.dir.read("samples/preference.parquet")
    with track("scoring the labelled responses", len(responses), "responses") as advance:
        scores = model.rewards(run.prompts(responses), list(responses["output"]), progress=advance)
    model.offset += float(scores.mean())
    score_of = dict(zip(zip(responses["id"], responses["output"], strict=True), scores, strict=True))
    metrics: dict[str, float] = {"train_pairs": len(train), "test_pairs": len(test), "reward_std": float(scores.std())}
    for part, rows in (("train", train), ("test", test)):
        r1, r2 = (
            np.array([score_of[key] for key in zip(rows["id"], rows[side], strict=True)], float)
            for side in ("output_1", "output_2")
        )
        for kind, column in (("noisy", "preference"), ("clean", "preference_clean")):
            metrics[f"{part}_accuracy_{kind}"] = accuracy(r1, r2, rows[column].to_numpy(float))
        chars_1, chars_2 = (np.array([len(text) for text in rows[s]], float) for s in ("output_1", "output_2"))
        metrics[f"{part}_accuracy_of_length"] = accuracy(chars_1, chars_2, rows["preference_clean"].to_numpy(float))
        if part == "test":
            # pair by pair, so that an interval can be clustered by instruction
            run.dir.write(rows.assign(reward_1=r1, reward_2=r2), "reward/held_out.parquet")
    model.save(run.dir / "reward")
    run.dir.write_json("reward/accuracy.json", metrics)
    (run.dir / "reward" / CHECKPOINT).unlink(missing_ok=True)


def eval_samples(run: Run) -> None:
    """Draw the initial policy's responses to the evaluation instructions: the baseline's one, and N for best-of-n."""
    n = run.config.best_of_n.n if "best_of_n" in run.config.methods else 1
    run.sample("eval", run.split.policy, run.instructions("eval"), [BASELINE, *(f"{k:05}" for k in range(n))])


def eval_rewards(run: Run) -> None:
    """Score the responses to the evaluation instructions."""
    table = run.dir.read("samples/eval.parquet")
    run.dir.write(table[["id", "sample"]].assign(reward=run.score(table, "eval")), "samples/eval_rewards.parquet")


def unlabeled_samples(run: Run) -> None:
    """Draw expert iteration's candidates."""
    samples = [f"{k:05}" for k in range(run.config.expert_iteration.n)]
    run.sample("unlabeled", run.split.policy, run.instructions("unlabeled"), samples)


def expert_iteration(run: Run) -> None:
    """Fine-tune on the best of n responses to the unlabelled instructions."""
    from simfarm.methods import expert_iteration as method
    from simfarm.policies.split import save_tensors
    from simfarm.policies.transformers import Response

    config = run.config.expert_iteration
    table = run.dir.read("samples/unlabeled.parquet")
    rewards = run.score(table, "unlabeled").reshape(-1, config.n)
    groups = [group for _, group in table.groupby("id", sort=True)]
    responses: list[list[Response]] = [
        [
            Response(text, tuple(map(int, tokens)), bool(finished))
            for text, tokens, finished in zip(group["output"], group["tokens"], group["finished"], strict=True)
        ]
        for group in groups
    ]
    prompts = run.prompts(pd.concat([group.head(1) for group in groups]))
    log: list[dict[str, float]] = []
    with track("expert iteration", len(prompts) * config.sft.epochs, "responses") as advance:
        top = method.expert_iteration(
            run.split, prompts, responses, rewards, config, seed=run.config.seed, log=log.append, progress=advance
        )
    save_tensors(top, run.dir / "methods/expert_iteration/policy.safetensors")
    run.dir.write(pd.DataFrame(log).assign(step=range(len(log))), "methods/expert_iteration/metrics.jsonl")


def ppo(run: Run) -> None:
    """Train by PPO on the unlabelled instructions; metrics are in methods/ppo/metrics.jsonl."""
    from simfarm.methods import ppo as method
    from simfarm.policies.split import save_tensors
    from simfarm.policies.training import CHECKPOINT, Setup, Watch

    p, folder, every = run.config.policy, run.dir / "methods/ppo", run.config.overoptimization.every
    watch = Watch(run.prompts(run.instructions("eval")), every, p.max_new_tokens) if every else None
    reward_model = run.reward
    with track("PPO", run.config.ppo.steps, "steps") as advance, run.tracker("ppo") as tracker:
        top, _ = method.ppo(
            run.split,
            run.prompts(run.instructions("unlabeled")),
            lambda _, texts: reward_model.rewards_of_texts(texts),
            run.config.ppo,
            max_new_tokens=p.max_new_tokens,
            seed=run.config.seed,
            value_top=reward_model.top,
            setup=Setup(folder=folder, batch_size=p.batch_size, progress=advance, watch=watch, tracker=tracker),
        )
    save_tensors(top, folder / "policy.safetensors")
    (folder / CHECKPOINT).unlink(missing_ok=True)


def by_task(method: str) -> Callable[[Run], None]:
    """Return the stage that trains a method on the noisy labels, or on the unlabelled instructions and the reward."""

    def stage(run: Run) -> None:
        from simfarm.methods.registry import BUILTIN, Task
        from simfarm.policies.split import save_tensors
        from simfarm.policies.training import CHECKPOINT, Setup

        p, folder = run.config.policy, run.dir / "methods" / method
        on_labels = method in ("dpo", "binary_feedme", "binary_reward_conditioning")
        with run.tracker(method) as tracker:
            trained = BUILTIN[method](
                Task(
                    run.split,
                    _training_labels(run) if on_labels else run.instructions("unlabeled"),
                    None if on_labels else run.reward,
                    getattr(run.config, method).model_dump(),
                    run.config.seed,
                    p.max_new_tokens,
                    Setup(folder=folder, batch_size=p.batch_size, show=True, tracker=tracker),
                )
            )
        save_tensors(trained.top, folder / "policy.safetensors")
        run.dir.write_json(f"methods/{method}/marker.json", trained.marker)
        (folder / CHECKPOINT).unlink(missing_ok=True)

    return stage


def _training_labels(run: Run) -> pd.DataFrame:
    """Return the labels that are not held out, and whether each response ended its turn or was cut off."""
    labels, drawn = run.dir.read("labels.parquet"), run.dir.read("samples/preference.parquet")
    finished = dict(zip(zip(drawn["id"], drawn["output"], strict=True), drawn["finished"], strict=True))
    # replicates of a pair become one soft label
    content = ["id", "instruction", "input", "output_1", "output_2"]
    labels = labels[~labels["held_out"]].groupby(content, sort=False)["preference"].mean().dropna().reset_index()
    ends = {
        f"finished_{k}": [finished[key] for key in zip(labels["id"], labels[f"output_{k}"], strict=True)]
        for k in (1, 2)
    }
    return labels.assign(**ends)


def outputs(run: Run) -> None:
    """Write every method's outputs on the evaluation instructions: outputs/METHOD.json, in alpaca_eval's format."""
    from simfarm.methods.best_of_n import choose
    from simfarm.policies.marker import with_marker
    from simfarm.policies.split import load_tensors
    from simfarm.policies.transformers import TransformersPolicy

    table = run.dir.read("samples/eval.parquet")
    drawn = table[table["sample"] != BASELINE]
    chosen: dict[str, pd.DataFrame] = {BASELINE: table[table["sample"] == BASELINE]}
    for method in run.config.methods:
        if method == "sft":
            chosen[method] = drawn[drawn["sample"] == min(drawn["sample"])]
        elif method == "best_of_n":
            n = run.config.best_of_n.n
            rewards = run.dir.read("samples/eval_rewards.parquet").merge(drawn[["id", "sample"]])
            best = choose(rewards["reward"].to_numpy(float).reshape(-1, n), n)
            chosen[method] = pd.concat([g.iloc[[i]] for (_, g), i in zip(drawn.groupby("id"), best, strict=True)])
        else:
            top: Top = run.split.new_top()
            load_tensors(top, run.dir / f"methods/{method}/policy.safetensors")
            policy = run.split.with_top(top, method)
            marker = run.dir.read_json(f"methods/{method}/marker.json") if method in BY_TASK else ""
            policy = with_marker(policy, marker) if marker else policy
            run.sample(f"eval_{method}", policy, run.instructions("eval"), [f"{0:05}"])
            chosen[method] = run.dir.read(f"samples/eval_{method}.parquet")
    for name, model in run.config.checkpoints.items():
        own = TransformersPolicy.load(model, device=run.config.policy.device, dtype=run.config.policy.dtype)
        run.sample(f"eval_{name}", own, run.instructions("eval"), [f"{0:05}"])
        chosen[name] = run.dir.read(f"samples/eval_{name}.parquet")
    for name, rows in chosen.items():
        columns = rows[["instruction", "input", "output"]].assign(generator=name)
        run.dir.write(columns.reset_index(drop=True), f"outputs/{name}.json")
    for generator, file in run.config.outputs.items():
        theirs = tables.read_outputs(file, generator).assign(generator=generator)
        tables.head_to_head(theirs, run.dir.read(f"outputs/{BASELINE}.json"))
        run.dir.write(theirs[["instruction", "input", "output", "generator"]], f"outputs/{generator}.json")


def evaluation(run: Run) -> None:
    """Turn judgements into win rates, paired differences, the correlation with humans, and the best-of-n curve."""
    judged = run.dir.read("evaluation/labels.parquet")
    rates = win_rates(judged, baseline=BASELINE)
    run.dir.write(rates, "evaluation/win_rates.csv")
    run.dir.write(length_controlled(judged, baseline=BASELINE), "evaluation/length_controlled.csv")
    if len(rates) > 1:
        run.dir.write(paired_differences(judged, baseline=BASELINE), "evaluation/paired_differences.csv")
    if run.config.evaluation.human_ranking:
        # AlpacaFarm has no people's rate of some methods
        human = load_human_ranking(run.config.evaluation.human_ranking).dropna(subset="score")
        both = rates.merge(human, on="generator")
        run.dir.write(both[["generator", "win_rate", "score"]], "evaluation/against_humans.csv")
        # two methods can only agree or not: no coefficient says anything
        if len(both) >= 3:
            simulated = rates[["generator", "standard_error"]].assign(score=rates["win_rate"])
            found = rank_correlations(simulated, human, seed=run.config.seed)
            run.dir.write(found, "evaluation/correlations.csv")
    curve_of(run)


def curve_of(run: Run) -> None:
    """Estimate the best-of-n curve for every n from the samples drawn."""
    gold = run.dir.read("evaluation/sample_gold.parquet")
    both = run.dir.read("samples/eval_rewards.parquet").merge(gold, on=["id", "sample"]).sort_values(["id", "sample"])
    n = both["sample"].nunique()
    if n > 1:
        shape = (-1, n)
        proxy, values = both["reward"].to_numpy(float).reshape(shape), both["gold"].to_numpy(float).reshape(shape)
        run.dir.write(best_of_n_curve(proxy, values), "overoptimization/best_of_n.csv")


def report(run: Run) -> None:
    """Write report.md, report.html and the figures."""
    from simfarm.report.html import write_report

    write_report(run.dir.path)


STAGES: dict[str, Callable[[Run], None]] = {
    "preference_samples": preference_samples,
    "labels": labels,
    "reward": reward,
    "eval_samples": eval_samples,
    "eval_rewards": eval_rewards,
    "unlabeled_samples": unlabeled_samples,
    "expert_iteration": expert_iteration,
    "ppo": ppo,
    **{method: by_task(method) for method in BY_TASK},
    "outputs": outputs,
    "output_rewards": output_rewards,
    "judgements": judgements,
    "training_gold": training_gold,
    "evaluation": evaluation,
    "report": report,
}
"""All stages, in order."""


def stages_of(config: ExperimentConfig) -> list[str]:
    """Return the stages that a config needs."""
    unneeded = {method for method in TRAINED if method not in config.methods}
    if "expert_iteration" in unneeded:
        unneeded.add("unlabeled_samples")
    if "ppo" in unneeded or config.overoptimization.every is None:
        unneeded.add("training_gold")
    return [name for name in STAGES if name not in unneeded]


def inputs_of(config: ExperimentConfig) -> dict[str, str]:
    """Return the hashes of what a config names: a run goes on only with the same content."""
    from simfarm import models

    found = {f"model {config.policy.model}": models.fingerprint(config.policy.model)}
    for name in (config.annotation.pool, config.evaluation.pool):
        found[f"pool {name}"] = load_pool(name).content_hash
    for split in ("preference", "unlabeled", "eval"):
        name = str(getattr(config.data, split))
        table = instructions_named(name)[["id", "instruction", "input"]]
        found[f"instructions {name}"] = draws.digest(*map(list, table.itertuples(index=False))).hex()
    for model in config.checkpoints.values():
        found[f"model {model}"] = models.fingerprint(model)
    for generator, file in config.outputs.items():
        own = tables.read_outputs(file, generator)[["instruction", "input", "output"]]
        found[f"outputs {generator}"] = draws.digest(*map(list, own.itertuples(index=False))).hex()
    if ranking := config.evaluation.human_ranking:
        found[f"human ranking {ranking}"] = draws.digest(load_human_ranking(ranking).to_json()).hex()
    return found


def prices_of(config: ExperimentConfig) -> dict[str, str]:
    """Return what the models that judge cost, in words, by model; a pool that asks no model stands by its own name."""
    prices, found = load_prices(), dict[str, str]()
    for name in (config.annotation.pool, config.evaluation.pool):
        found |= costs.unit_prices(load_pool(name), prices)
    return found


def check_extras(config: ExperimentConfig) -> None:
    """Check that the packages a run needs are installed.

    Raises:
        MissingExtraError: One is not.
    """
    for module in ("torch", "transformers", "safetensors"):
        require(module, "local", "An experiment")
    chosen = [getattr(config, method, None) for method in config.methods]
    if any(getattr(method, "rollout", "transformers") == "vllm" for method in chosen):
        require("vllm", "vllm", 'rollout = "vllm"')
