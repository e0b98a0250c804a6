"""Metrics of a training, sent while it goes on to where people look at such things."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from simfarm.errors import require

TRACKERS = ("tensorboard", "trackio", "wandb")


class Tracker(Protocol):
    """What a training tells its metrics to."""

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Keep the metrics of a step."""
        ...

    def finish(self) -> None:
        """Write what is not yet written."""
        ...


def open_tracker(name: str, folder: Path, config: Mapping[str, Any]) -> Tracker:
    """Start tracking a training: TensorBoard's files go to `folder`/tensorboard, the others' runs to project simfarm.

    Args:
        name: One of TRACKERS.
        folder: Of the training; its name is the run's.
        config: What the training was told, for trackers that show it.

    Raises:
        MissingExtraError: The tracker is not installed.
    """
    module = require(name, name, f"--track {name}")
    if name == "tensorboard":
        return _TensorBoard(folder / "tensorboard")
    # wandb's and trackio's runs have the methods of a tracker
    run: Tracker = module.init(project="simfarm", name=folder.resolve().name, config=dict(config))
    return run


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=step)
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()
