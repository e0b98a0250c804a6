"""Run an experiment: its stages in order, each done once, with progress; and say beforehand what that takes."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import pandas as pd

from simfarm import tables
from simfarm.annotators.pool import load_pool
from simfarm.errors import RunError, require
from simfarm.evalsets import load_human_ranking
from simfarm.experiments.config import ExperimentConfig
from simfarm.experiments.judging import BASELINE, verdicts_per_gold
from simfarm.experiments.rundir import RunDirectory
from simfarm.experiments.stages import (
    STAGES,
    TRAINED,
    Run,
    check_extras,
    inputs_of,
    instructions_named,
    prices_of,
    stages_of,
)
from simfarm.progress import say


def run_experiment(config: ExperimentConfig, out: Path, *, track: str | None = None) -> RunDirectory:
    """Run what is not yet done of an experiment.

    Args:
        config: What to run.
        out: The run directory; an interrupted run of the same config goes on, a finished one is only opened.
        track: Where the metrics of trainings (but expert iteration's) go as well, one of `policies.trackers.TRACKERS`:
            TensorBoard's files to reward/tensorboard and methods/METHOD/tensorboard, the others' runs to project
            simfarm.

    Raises:
        MissingExtraError: Something it needs is not installed.
        RunError: The directory holds something else, or a run of another config, or another process is at work in it,
            or it cannot be written.
        SimfarmError: A stage cannot be done; what was done stays, and the same command goes on from there.
    """
    directory = RunDirectory(out, config)
    stages = stages_of(config)
    if all(map(directory.is_done, stages)):
        return directory
    check_extras(config)
    if track is not None:
        require(track, track, f"--track {track}")
    run = Run(config, directory, track)
    if not directory.is_done("evaluation"):
        _check_files(run)
    with directory.at_work(inputs_of(config), prices_of(config)):
        owed = [stage for stage in stages if not directory.is_done(stage)]
        say(f"{config.name}: {len(owed)} of {len(stages)} stages to do, in {out}")
        for stage in owed:
            say(f"[{stages.index(stage) + 1}/{len(stages)}] {stage.replace('_', ' ')}")
            start = time.monotonic()
            try:
                STAGES[stage](run)
            except OSError as error:
                raise RunError(
                    f"Stage {stage} cannot write to {out}: {error}. Make room or mend the permissions, then give the "
                    "same command again: what is done is kept."
                ) from error
            directory.mark_done(stage, time.monotonic() - start)
            say(f"  done in {time.monotonic() - start:.0f} s")
    return directory


def _check_files(run: Run) -> None:
    """Check the user's own files that only late stages read: once a run has begun, mending one would mean a new run."""
    config = run.config
    if config.evaluation.human_ranking:
        load_human_ranking(config.evaluation.human_ranking)
    for generator, file in config.outputs.items():
        theirs = tables.read_outputs(file, generator).assign(generator=generator)
        tables.head_to_head(theirs, run.instructions("eval").assign(output="", generator=BASELINE))


def plan(config: ExperimentConfig) -> pd.DataFrame:
    """Count what a run does, without doing it.

    Returns:
        One row per kind of work: stage, what, count, tokens (at most; null where none are counted).
    """
    data, sizes = config.data, {}
    for split in ("preference", "unlabeled", "eval"):
        sizes[split] = min(len(instructions_named(str(getattr(data, split)))), data.limit_of(split) or sys.maxsize)
    limit, rows = config.policy.max_new_tokens, []

    def add(stage: str, what: str, count: int, tokens: int | None = None) -> None:
        rows.append({"stage": stage, "what": what, "count": count, "tokens": tokens})

    responses = sizes["preference"] * config.annotation.responses
    pairs = sizes["preference"] * len(config.annotation.paired) * config.annotation.replicates
    add("preference_samples", "responses to label", responses, responses * limit)
    add("labels", f"labels by {config.annotation.pool}, flip {config.annotation.flip:g}", pairs)
    add("reward", "pairs x epochs to train on", round(pairs * (1 - config.annotation.held_out)) * config.reward.epochs)
    n = config.best_of_n.n if "best_of_n" in config.methods else 1
    add("eval_samples", "baseline and best-of-n responses", sizes["eval"] * (n + 1), sizes["eval"] * (n + 1) * limit)
    if "expert_iteration" in config.methods:
        drawn = sizes["unlabeled"] * config.expert_iteration.n
        add("unlabeled_samples", "candidates of expert iteration", drawn, drawn * limit)
    looks = 0
    if "ppo" in config.methods:
        rollouts = config.ppo.steps * config.ppo.rollouts
        add("ppo", "rollouts", rollouts, rollouts * limit)
        if every := config.overoptimization.every:
            # every so many steps, and after the last
            looks = math.ceil(config.ppo.steps / every)
            add("ppo", "responses looked at", sizes["eval"] * looks, sizes["eval"] * looks * limit)
    drawn_by = {
        "quark": config.quark.steps * config.quark.rollouts,
        "reinforce": config.reinforce.steps * config.reinforce.rollouts,
        "rloo": config.rloo.steps * config.rloo.prompts * config.rloo.samples,
    }
    for method, rollouts in drawn_by.items():
        if method in config.methods:
            add(method, "rollouts", rollouts, rollouts * limit)
    trained = len(config.checkpoints) + sum(method in TRAINED for method in config.methods)
    add("outputs", "responses of trained policies", trained * sizes["eval"], trained * sizes["eval"] * limit)
    shown = 2 if config.evaluation.orders == "both" else 1
    methods = len(config.methods) + len(config.checkpoints) + len(config.outputs)
    compared = sizes["eval"] * shown * methods * config.evaluation.replicates
    gold = sizes["eval"] * shown * verdicts_per_gold(load_pool(config.evaluation.pool))
    add("judgements", f"verdicts by {config.evaluation.pool}, no noise", compared)
    add("judgements", f"verdicts by {config.evaluation.pool} on all samples (gold)", gold * n)
    if config.annotation.pool != config.evaluation.pool:
        add("judgements", f"verdicts by {config.annotation.pool}, flip {config.annotation.flip:g}", compared)
    if looks:
        # the first is at the initial policy, whose responses are drawn already
        add("training_gold", f"verdicts by {config.evaluation.pool} along PPO (gold)", gold * (1 + looks))
    return pd.DataFrame(rows).astype({"tokens": "Int64"})
