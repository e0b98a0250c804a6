"""What a run left on disk, as the report reads it. Any file but the config and the win rates may be absent."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from simfarm import tables
from simfarm.errors import DataError, RunError, UnknownNameError
from simfarm.evalsets import load_human_ranking

BASELINE = "baseline"


@dataclass(frozen=True)
class RunData:
    """The files of one run; a table that the run did not write is None."""

    folder: Path

    def json(self, name: str) -> dict[str, Any] | None:
        """Read a JSON object of the run.

        Raises:
            RunError: The file is broken.
        """
        path = self.folder / name
        try:
            return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else None
        except ValueError as error:
            raise RunError(f"{path} cannot be read ({error}). Run the experiment again with another --out.") from error

    def table(self, name: str) -> pd.DataFrame | None:
        """Read a table of the run; one without rows counts as absent."""
        path = self.folder / name
        table = tables.read_table(path) if path.is_file() else None
        return None if table is None or table.empty else table

    @cached_property
    def record(self) -> dict[str, Any]:
        """config.json: the version of simfarm, the config, the hashes of what it names."""
        return self.json("config.json") or {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config."""
        return dict(self.record.get("config", {}))

    def setting(self, key: str) -> Any:
        """Return a value of the config by its dotted key, or None."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Seconds per stage, in order; the report's own are not known while it is written."""
        stages = self.json("stages.json") or {}
        return {stage: float(seconds) for stage, seconds in stages.items() if stage != "report"}

    @cached_property
    def win_rates(self) -> pd.DataFrame:
        """evaluation/win_rates.csv, best first."""
        table = self.table("evaluation/win_rates.csv")
        if table is None:
            raise RunError(
                f"{self.folder} has no win rates (evaluation/win_rates.csv). Finish it: give `simfarm run` again."
            )
        texts = {
            column: table[column].astype(object).fillna("").astype(str)
            for column in ("generator", "lost_reasons", "note")
        }
        return table.assign(**texts)

    @cached_property
    def methods(self) -> list[str]:
        """The methods compared with the baseline, best first."""
        return list(self.win_rates["generator"])

    @cached_property
    def trained(self) -> list[str]:
        """The methods compared that left a log of their training, best first."""
        return [name for name in self.methods if self.training_log(name) is not None]

    def training_log(self, method: str) -> pd.DataFrame | None:
        """Read a method's log of its training, one row a step; None if it has none."""
        # a method's name may be any text, the user's own; a folder's name is not
        known = {path.name for path in (self.folder / "methods").glob("*")}
        log = self.table(f"methods/{method}/metrics.jsonl") if method in known else None
        return None if log is None or "step" not in log.columns else log

    @cached_property
    def humans(self) -> pd.DataFrame | None:
        """Methods that have a human score: generator, win_rate, ci_low, ci_high, score, score_error (or NaN)."""
        both = self.table("evaluation/against_humans.csv")
        if both is None:
            return None
        try:
            known = load_human_ranking(str(self.setting("evaluation.human_ranking")))
        except (UnknownNameError, DataError):
            # the user's own ranking may be gone by now; its scores were kept, its standard errors were not
            known = pd.DataFrame({"generator": [], "standard_error": []}).astype({"generator": str})
        errors = known.rename(columns={"standard_error": "score_error"})[["generator", "score_error"]]
        both = both.astype({"generator": str})[["generator", "score"]].merge(errors, on="generator", how="left")
        return both.merge(self.win_rates[["generator", "win_rate", "ci_low", "ci_high"]], on="generator")

    @cached_property
    def samples(self) -> pd.DataFrame | None:
        """Best-of-n's samples and their rewards: id, sample, reward, gold, reward_baseline."""
        gold = self.table("evaluation/sample_gold.parquet")
        rewards = self.table("samples/eval_rewards.parquet")
        if gold is None or rewards is None:
            return None
        baseline = rewards[rewards["sample"] == BASELINE].set_index("id")["reward"]
        both = rewards.merge(gold, on=["id", "sample"]).astype({"reward": float, "gold": float})
        return both.assign(reward_baseline=both["id"].map(baseline).astype(float))

    @cached_property
    def instructions(self) -> pd.DataFrame | None:
        """The evaluation instructions: id, instruction, input, category."""
        table = self.table("samples/eval.parquet")
        columns = ["id", "instruction", "input", "category"]
        return None if table is None else table[columns].drop_duplicates("id").reset_index(drop=True)


def open_run(folder: Path) -> RunData:
    """Open the directory of a run.

    Raises:
        RunError: It holds no run, or its config is broken.
    """
    run = RunData(folder)
    if not run.record:
        raise RunError(f"{folder} holds no run: it has no config.json. Give the directory of a run.")
    return run
