"""The run directory: it holds all of a run, resumes what was interrupted, and refuses what is not its own.

    config.json       the resolved config, the hashes of what it names, unit prices; runs again as it is
    stages.json       which stages are done, and their seconds
    .lock             locked by the process that is at work here
    …                 what the stages write: see docs/architecture.md

A stage's files appear whole (written beside, then renamed); it counts as done when stages.json says so.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
from pydantic import BaseModel, ValidationError

from simfarm import __version__, tables
from simfarm.errors import RunError
from simfarm.experiments.config import flatten
from simfarm.progress import say

CONFIG, STAGES, LOCK = "config.json", "stages.json", ".lock"


class RunDirectory:
    """One run on disk."""

    def __init__(self, path: Path, config: BaseModel) -> None:
        """Open a directory for a run, making it if it is not there.

        Raises:
            RunError: It holds something else, or a run of another config, or cannot be written.
        """
        self.path, self.config = path, config
        try:
            path.mkdir(parents=True, exist_ok=True)
            if (path / CONFIG).is_file():
                self._check_same()
            elif others := sorted(p.name for p in path.iterdir() if p.name != LOCK):
                some = ", ".join(others[:3])
                raise RunError(
                    f"{path} is not empty and holds no run of simfarm ({some} …). Nothing was changed. Give an empty "
                    "or new directory with --out."
                )
            elif not os.access(path, os.W_OK):
                raise PermissionError(13, "no permission to write")
            self._load()
        except OSError as error:
            raise RunError(
                f"The run directory {path} cannot be used: {error.strerror or error}. Give another with --out."
            ) from error

    def _load(self) -> None:
        self._record, self.stages = (
            self._read(name) if (self.path / name).is_file() else {} for name in (CONFIG, STAGES)
        )

    @contextmanager
    def at_work(self, inputs: Mapping[str, str], prices: Mapping[str, str]) -> Iterator[None]:
        """Keep other processes out while stages are done; the end of the process, however it comes, lets them in.

        Writes config.json, or checks that what the config names is still what the run began with.

        Args:
            inputs: Hashes of the things named: pools, instructions, model.
            prices: Unit prices of the models that are asked, in words; those of the run's beginning are kept.

        Raises:
            RunError: Another process is at work here, or what is named has changed since, or nothing can be written.
        """
        try:
            lock = (self.path / LOCK).open("a+", encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from error
        with lock:
            try:
                self._take(lock)
                # another process may have worked here since the directory was opened
                if (self.path / CONFIG).is_file():
                    self._check_same()
                self._load()
                self._begin(inputs, prices)
            except OSError as error:
                raise self._unwritable(error) from error
            yield

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            f"The run directory {self.path} cannot be written: {error.strerror}. Mend that, or give another with --out."
        )

    def _take(self, file: TextIO) -> None:
        if sys.platform == "win32":
            return  # it has no locks of this kind
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunError(
                f"Another process ({file.read().strip() or 'just started'}) is at work in {self.path}. Wait until it "
                "ends, or end it, then give the same command again; or give another directory with --out."
            ) from None
        except OSError as error:
            say(f"{self.path}: this file system keeps no locks ({error.strerror}); let one process work here at a time")
        file.truncate(0)
        file.write(f"process {os.getpid()}\n")
        file.flush()

    def _begin(self, inputs: Mapping[str, str], prices: Mapping[str, str]) -> None:
        config = self.config.model_dump(mode="json")
        fresh = {"simfarm": __version__, "config": config, "inputs": dict(inputs), "prices": dict(prices)}
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

    def _check_same(self) -> None:
        recorded = self._read(CONFIG).get("config", {})
        # keys and values that are no more do not validate: they are among what is named below
        with suppress(ValidationError):
            # a key that is younger than the run counts as its default
            recorded = type(self.config).model_validate(recorded).model_dump(mode="json")
        old, new = dict(flatten(recorded)), dict(flatten(self.config.model_dump(mode="json")))
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
        # whole: a killed process may have left half a unit there
        shutil.rmtree(self.path / name)
