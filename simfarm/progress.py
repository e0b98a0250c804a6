"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere, both on standard error.

`set_mode("plain")` gives lines on a terminal as well, `set_mode("quiet")` nothing at all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

Progress = Callable[[int], None]
"""Called with the number of things that became ready."""

PLAIN_EVERY = 15.0
"""Seconds between two plain lines."""


Mode = Literal["auto", "plain", "quiet"]
_mode: Mode = "auto"


def set_mode(mode: Mode) -> None:
    """Choose how progress is shown in this process: "auto", "plain" (no bars) or "quiet" (nothing)."""
    global _mode
    _mode = mode


def say(line: str) -> None:
    """Print a line of progress on standard error, unless the mode is "quiet"."""
    if _mode != "quiet":
        print(line, file=sys.stderr, flush=True)


def no_progress(_: int) -> None:
    """Report nothing."""


@contextmanager
def track(title: str, total: int, unit: str) -> Iterator[Progress]:
    """Show the progress of `total` things: count, rate and time left.

    Args:
        title: What is being done.
        total: How many things there are; below 1 nothing is shown.
        unit: What the things are called, in the plural.
    """
    if total < 1 or _mode == "quiet":
        yield no_progress
    elif _mode == "auto" and sys.stderr.isatty():
        with _bar(title, total, unit) as advance:
            yield advance
    else:
        yield _Lines(title, total, unit)


@contextmanager
def _bar(title: str, total: int, unit: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=total)
        yield lambda done: bars.advance(task, done)


class _Lines:
    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self.start = self.spoke = time.monotonic()

    def __call__(self, done: int) -> None:
        self.done += done
        now = time.monotonic()
        if now - self.spoke >= PLAIN_EVERY and self.done < self.total:
            self.spoke = now
            rate = self.done / (now - self.start)
            left = (self.total - self.done) / rate
            say(f"  {self.title}: {self.done:,}/{self.total:,} {self.unit}, {rate:.3g}/s, {left:.0f} s left")
