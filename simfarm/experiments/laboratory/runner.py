"""Run a laboratory: seeds in processes of their own, every arm of every seed a file; then curves, verdicts, report."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import pandas as pd

from simfarm import tables
from simfarm.errors import RunError, require
from simfarm.experiments.laboratory.analysis import Family, analyse
from simfarm.experiments.laboratory.config import Arm, LaboratoryConfig
from simfarm.experiments.rundir import RunDirectory
from simfarm.progress import Progress, no_progress, say, track


def run_laboratory(config: LaboratoryConfig, out: Path) -> RunDirectory:
    """Run what is not yet done of a laboratory.

    Args:
        config: What to run.
        out: The run directory; an interrupted run of the same config goes on, a finished one is only opened.

    Raises:
        RunError: The directory holds something else, or a run of another config, or another process is at work in it,
            or it cannot be written.
        MissingExtraError: PyTorch is not installed.
    """
    directory = RunDirectory(out, config)
    if directory.is_done("report"):
        return directory
    for module in ("torch", "transformers"):
        require(module, "local", "A laboratory")
    with directory.at_work({}, {}):
        _work(config, directory)
    return directory


def _work(config: LaboratoryConfig, directory: RunDirectory) -> None:
    out = directory.path
    seeds = _owed(config, directory)
    processes = min(config.processes or os.cpu_count() or 1, len(seeds))
    say(f"{config.name}: {len(seeds)} seeds to do, {processes} at a time, {len(config.arms())} arms each, in {out}")
    if processes > 1:
        # a process that is forked after PyTorch has threads may hang
        context = multiprocessing.get_context("spawn")
        with (
            track("laboratory", len(seeds), "seeds") as advance,
            ProcessPoolExecutor(processes, mp_context=context) as pool,
        ):
            owed = {pool.submit(run_seed, config, seed, out): seed for seed in seeds}
            try:
                for done in as_completed(owed):
                    directory.mark_done(f"seed {owed[done]}", done.result())
                    advance(1)
            except BaseException:
                # leaving the pool waits for every seed, begun or not: arms that are done are kept, the rest is not owed
                pool.shutdown(wait=False, cancel_futures=True)
                for child in multiprocessing.active_children():
                    child.terminate()
                raise
    else:
        with track("laboratory", len(seeds) * len(config.arms()), "arms") as advance:
            for seed in seeds:
                directory.mark_done(f"seed {seed}", run_seed(config, seed, out, advance))
    start = time.monotonic()
    write_results(config, directory)
    directory.mark_done("report", time.monotonic() - start)


def _owed(config: LaboratoryConfig, directory: RunDirectory) -> list[int]:
    return [seed for seed in range(config.seed, config.seed + config.seeds) if not directory.is_done(f"seed {seed}")]


def write_results(config: LaboratoryConfig, directory: RunDirectory) -> None:
    """Write the curves, the verdicts and the report from what the seeds left.

    Raises:
        RunError: A seed is not done.
    """
    from simfarm.report.laboratory import write_laboratory_report

    owed = _owed(config, directory)
    if owed:
        raise RunError(
            f"{directory.path} has no results yet: {len(owed)} of {config.seeds} seeds are still to do. Finish it: "
            "give `simfarm run` again."
        )
    families = results(config, directory.path)
    for name in ("best_of_n", "ppo"):
        found = [f.curves(name) for f in families]
        directory.write(pd.concat(found, ignore_index=True), f"overoptimization/{name}.csv")
    directory.write(pd.concat([f.verdicts() for f in families], ignore_index=True), "overoptimization/verdicts.csv")
    write_laboratory_report(directory.path, config, families)


def run_seed(config: LaboratoryConfig, seed: int, out: Path, progress: Progress = no_progress) -> float:
    """Compute every arm of a seed that is not yet there; returns seconds."""
    import torch

    from simfarm.experiments.laboratory.world import World

    start = time.monotonic()
    # matrices this small gain nothing from threads, and one thread adds up in one order
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    world = World(config, seed)
    parent = multiprocessing.parent_process()
    for arm in config.arms():
        if parent is not None and not parent.is_alive():
            raise SystemExit("the run was killed")
        for what, path in arm_files(config, seed, arm, out).items():
            if not path.is_file():
                tables.write_table(world.best_of_n(arm) if what == "best_of_n" else world.train(arm), path)
        progress(1)
    torch.set_num_threads(before)
    return time.monotonic() - start


def arm_files(config: LaboratoryConfig, seed: int, arm: Arm, out: Path) -> dict[str, Path]:
    """Return where an arm's results of a seed are kept."""
    folder, number = out / "seeds" / str(seed), config.arms().index(arm)
    # best-of-n knows no β: arms that differ in it alone would have one curve
    wanted = [("best_of_n", arm.kl_coef == config.base.kl_coef), ("ppo", arm.ppo)]
    return {what: folder / f"arm-{number:02}-{what}.parquet" for what, is_wanted in wanted if is_wanted}


def results(config: LaboratoryConfig, out: Path) -> list[Family]:
    """Read what the seeds left, and fit and judge every arm of every family."""
    seeds = range(config.seed, config.seed + config.seeds)
    found = {
        (arm, what): pd.concat(
            [tables.read_table(arm_files(config, s, arm, out)[what]).assign(seed=s) for s in seeds], ignore_index=True
        )
        for arm in config.arms()
        for what in arm_files(config, config.seed, arm, out)
    }
    return [analyse(name, changes, config, found) for name, changes in config.families.items()]


def plan_laboratory(config: LaboratoryConfig) -> pd.DataFrame:
    """Count what a laboratory does, without doing it: stage, what, count, tokens (null)."""
    arms, seeds = config.arms(), config.seeds
    trained = {
        (a.flip, a.judge, a.labels, a.layers, k)
        for a in arms
        for k in range(1 if a.rule == "single" else config.members)
    }
    steps = sum(arm.ppo for arm in arms) * seeds * config.ppo.steps
    rows = [
        ("seeds", "worlds, each with a model trained from scratch", seeds),
        ("samples", "responses to choose from", seeds * config.prompts * config.samples),
        ("labels", "pairs labelled, at most, by an arm", seeds * max(arm.labels for arm in arms)),
        ("reward", "reward models trained", seeds * len(trained)),
        ("best_of_n", "curves", seeds * sum(arm.kl_coef == config.base.kl_coef for arm in arms)),
        ("ppo", "steps", steps),
        ("ppo", "rollouts", steps * config.ppo.rollouts),
    ]
    return pd.DataFrame(rows, columns=["stage", "what", "count"]).assign(tokens=pd.array([pd.NA] * 7, "Int64"))
