"""The run directory: it holds all of a run, resumes what was interrupted, and refuses what is not its own.

    config.json       the resolved config and the hashes of what it names; runs again as it is
    stages.json       which stages are done, and their seconds
    …                 what the stages write: see docs/architecture.md

A stage's files appear whole (written beside, then renamed); it counts as done when stages.json says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel

from simfarm import __version__, tables
from simfarm.errors import RunError
from simfarm.experiments.config import flatten

CONFIG, STAGES = "config.json", "stages.json"


class RunDirectory:
    """One run on disk."""

    def __init__(self, path: Path, config: BaseModel) -> None:
        """Open a directory for a run, making it if it is not there.

        Raises:
            RunError: It holds something else, or a run of another config, or cannot be written.
        """
        self.path = path
        self.stages: dict[str, float] = {}
        try:
            path.mkdir(parents=True, exist_ok=True)
            if (path / CONFIG).is_file():
                self._check_same(config)
                self.stages = self._read(STAGES) if (path / STAGES).is_file() else {}
            elif any(path.iterdir()):
                some = ", ".join(sorted(p.name for p in path.iterdir())[:3])
                raise RunError(
                    f"{path} is not empty and holds no run of simfarm ({some} …). Nothing was changed. Give an empty "
                    "or new directory with --out."
                )
            elif not os.access(path, os.W_OK):
                raise PermissionError(13, "no permission to write")
            self._record = self._read(CONFIG) if (path / CONFIG).is_file() else {}
        except OSError as error:
            raise RunError(
                f"The run directory {path} cannot be used: {error.strerror or error}. Give another with --out."
            ) from error
        self.config = config

    def start(self, inputs: dict[str, str]) -> None:
        """Write config.json, or check that what the config names is still what the run began with.

        Args:
            inputs: Hashes of the things named: pools, instructions, model.

        Raises:
            RunError: One of them has changed since.
        """
        fresh = {"simfarm": __version__, "config": self.config.model_dump(mode="json"), "inputs": inputs}
        if not self._record:
            self.write_json(CONFIG, fresh)
            self._record = fresh
            return
        changed = [name for name in inputs if self._record.get("inputs", {}).get(name, inputs[name]) != inputs[name]]
        if changed:
            raise RunError(
                f"The run in {self.path} began with another content of: {', '.join(changed)}. Results of both would be "
                "mixed. Start a new run with another --out, or put the old content back."
            )

    def _check_same(self, config: BaseModel) -> None:
        old = dict(flatten(self._read(CONFIG).get("config", {})))
        new = dict(flatten(config.model_dump(mode="json")))
        changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        if changed:
            shown = "; ".join(f"{key} was {old.get(key)!r} and is now {new.get(key)!r}" for key in changed[:5])
            more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
            raise RunError(
                f"The run in {self.path} has another config: {shown}{more}. Nothing was changed. Give another "
                "directory with --out, or take the change back to go on with this run."
            )

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return dict(json.loads((self.path / name).read_text("utf-8")))
        except ValueError as error:
            raise RunError(
                f"{self.path / name} cannot be read ({error}); the run cannot go on. Give another directory with --out."
            ) from error

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def is_done(self, stage: str) -> bool:
        """Tell whether a stage is done."""
        return stage in self.stages

    def mark_done(self, stage: str, seconds: float) -> None:
        """Record that a stage is done, and how long it took."""
        self.stages = {**self.stages, stage: round(seconds, 2)}
        self.write_json(STAGES, self.stages)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, whole or not at all."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}")
        partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", "utf-8")
        partial.replace(path)

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the run."""
        return json.loads((self.path / name).read_text("utf-8"))

    def write(self, table: pd.DataFrame, name: str) -> None:
        """Write a table, whole or not at all."""
        tables.write_table(table, self.path / name)

    def read(self, name: str) -> pd.DataFrame:
        """Read a table of the run."""
        return tables.read_table(self.path / name)

    def in_units(
        self, name: str, table: pd.DataFrame, size: int, work: Callable[[pd.DataFrame], pd.DataFrame]
    ) -> pd.DataFrame:
        """Do row-wise work in units of `size` rows, each kept when it is done; done units are not done again.

        Units are fixed by the table and the size, so that an interrupted run computes the same batches.

        Args:
            name: Folder of the units, removed by `drop_units` when the stage is done.
            table: The rows.
            size: Rows per unit.
            work: Turns rows into rows.

        Returns:
            The results in the order of the table.
        """
        parts = []
        for number, start in enumerate(range(0, len(table), size)):
            path = self.path / name / f"unit-{number:05}.parquet"
            if not path.is_file():
                tables.write_table(work(table.iloc[start : start + size]), path)
            parts.append(tables.read_table(path))
        return pd.concat(parts, ignore_index=True)

    def drop_units(self, name: str) -> None:
        """Remove the folder of units; its rows are in the stage's own table by then."""
        for path in (self.path / name).glob("unit-*.parquet"):
            path.unlink()
        (self.path / name).rmdir()
