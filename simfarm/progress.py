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
def track(title: str, total: int, unit: str, *, note: Callable[[], str] | None = None) -> Iterator[Progress]:
    """Show the progress of `total` things: count, rate and time left.

    Args:
        title: What is being done.
        total: How many things there are; below 1 nothing is shown.
        unit: What the things are called, in the plural.
        note: Says what else to show, such as the money spent; asked whenever something became ready.
    """
    if total < 1 or _mode == "quiet":
        yield no_progress
    elif _mode == "auto" and sys.stderr.isatty():
        with _bar(title, total, unit, note) as advance:
            yield advance
    else:
        yield _Lines(title, total, unit, note)


@contextmanager
def _bar(title: str, total: int, unit: str, note: Callable[[], str] | None) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("  {task.description}"),
        # money is worth more of the line than a long bar
        BarColumn(bar_width=24 if note is None else 10),
        MofNCompleteColumn(),
        TextColumn(unit),
        *([] if note is None else [TextColumn("{task.fields[note]}")]),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=total, note="" if note is None else note())

        def advance(done: int) -> None:
            if note is None:
                bars.advance(task, done)
            else:
                bars.update(task, advance=done, note=note())

        yield advance


class _Lines:
    def __init__(self, title: str, total: int, unit: str, note: Callable[[], str] | None) -> None:
        self.title, self.total, self.unit, self.note = title, total, unit, note
        self.done = 0
        self.start = self.spoke = time.monotonic()

    def __call__(self, done: int) -> None:
        self.done += done
        now = time.monotonic()
        if now - self.spoke >= PLAIN_EVERY and self.done < self.total:
            self.spoke = now
            rate = self.done / (now - self.start)
            left = (self.total - self.done) / rate
            note = "" if self.note is None else f", {self.note()}"
            say(f"  {self.title}: {self.done:,}/{self.total:,} {self.unit}, {rate:.3g}/s, {left:.0f} s left{note}")
