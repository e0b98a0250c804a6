"""Kill `simfarm annotate` at random moments against a faulty server, and count what was lost and what was asked twice.

    python benchmarks/annotate_killed.py --rows 2000 --kills 20

A fifth of the stub server's answers are faults: 429 with Retry-After, 500, a dropped connection, half a body, a slow
answer. Each round starts the real command and kills it after a number of answers drawn at random; the last round may
end. Then every row must have one label, every answer that was stored when a blow fell must be there unchanged, and the
server must not have been asked for it again. Only a call that was under way at the blow may be asked twice.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from annotate_throughput import make_pairs, stub

CONCURRENCY = 32


@dataclass
class Found:
    """What a series of blows left behind."""

    labels: int
    """Rows that have exactly one label with a verdict."""
    stored: list[int]
    """Answers stored at each blow."""
    asked_again: int
    """Finished and stored answers that the server was asked for again, over all blows; must be 0."""
    changed: int
    """Stored answers that a later round lost or changed; must be 0."""
    answers: int
    """Answers the server gave, more than `labels` by those that were under way at a blow."""
    faults: collections.Counter[str]
    last_words: str
    """What the command said when it was struck last."""


def hear_interrupts() -> None:
    """A shell's background job ignores interrupts, and its children with it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(folder: Path, *, rows: int, kills: int, blow: signal.Signals, seed: int = 0) -> Found:
    """Strike `kills` times, let the command end, and look at what is there."""
    pairs, store, log, labels = (folder / name for name in ("pairs.json", "calls.sqlite", "log", "labels.jsonl"))
    pairs.write_text(json.dumps(make_pairs(rows)))
    chance, marks, words = random.Random(seed), [], ""
    with stub("--faults", "0.2", "--latency", "0.02", "--slow", "0.3", "--log", str(log)) as url:
        command = [sys.executable, "-m", "simfarm", "annotate", str(pairs), "--pool", "alpacaeval", "--hard"]
        command += ["--base-url", url, "--store", str(store), "--out", str(labels), "--concurrency", str(CONCURRENCY)]
        environment = {**os.environ, "OPENAI_API_KEY": "sk-stub", "COLUMNS": "120"}
        for left in range(kills, 0, -1):
            done = answers(log)
            enough = done.total() + chance.randint(1, max(1, 2 * (rows - len(done)) // (left + 1)))
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=hear_interrupts
            )
            while answers(log).total() < enough and process.poll() is None:
                time.sleep(0.001)
            process.send_signal(blow)
            words = process.communicate()[1].decode()
            time.sleep(0.5)  # what the server still had under way ends and is logged
            marks.append((len(log.read_text().splitlines()), stored(pairs, url, store)))
        subprocess.run(command, env=environment, check=True, capture_output=True)
        last = stored(pairs, url, store)
    lines = [line.split() for line in log.read_text().splitlines()]
    again = sum(len(was.keys() & {name for name, _ in lines[at:]}) for at, was in marks)
    changed = sum(last.get(name) != response for _, was in marks for name, response in was.items())
    written = [json.loads(line) for line in labels.read_text().splitlines()]
    asked = [row["instruction"] for row in json.loads(pairs.read_text())]
    once = sum(
        row["instruction"] == text and row["preference"] in (1, 2) for row, text in zip(written, asked, strict=True)
    )
    faults = collections.Counter(what for _, what in lines if what != "answered")
    return Found(once, [len(was) for _, was in marks], again, changed, answers(log).total(), faults, words)


def answers(log: Path) -> collections.Counter[str]:
    """Count the answers that the server gave, by the name of the request."""
    lines = log.read_text().splitlines() if log.exists() else []
    return collections.Counter(line.split()[0] for line in lines if line.endswith(" answered"))


def stored(pairs: Path, url: str, store: Path) -> dict[str, Any]:
    """Return the stored responses, by the name that the server's log gives their requests."""
    import pandas as pd

    from simfarm.annotators.costs import requests
    from simfarm.annotators.pool import load_pool
    from simfarm.llm.store import SQLiteStore

    pool = load_pool("alpacaeval", base_url=url)
    owed = [request for _, request in requests(pool, pool.plan(pd.read_json(pairs)))]
    opened = SQLiteStore(store)
    kept = opened.get([request.key for request in owed])
    opened.close()
    return {
        sha256(request.messages[-1].content.encode()).hexdigest(): kept[request.key].response
        for request in owed
        if request.key in kept
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for blow in (signal.SIGKILL, signal.SIGINT):
        with tempfile.TemporaryDirectory() as folder:
            found = run(Path(folder), rows=given.rows, kills=given.kills, blow=blow, seed=given.seed)
        print(
            f"{blow.name}, {given.kills} times, with {', '.join(map(str, found.stored))} answers stored: "
            f"{found.labels:,} of {given.rows:,} rows have exactly one label; {found.changed} stored answers lost or "
            f"changed; {found.asked_again} of them asked again; the server gave {found.answers:,} answers, "
            f"{found.answers - given.rows:,} twice because they were under way at a blow; it met "
            f"{', '.join(f'{count} x {what}' for what, count in sorted(found.faults.items()))}.",
            flush=True,
        )


if __name__ == "__main__":
    main()
