"""The real command, struck at random moments on a faulty server: nothing finished is lost, nothing is asked twice."""

import importlib
import signal
from pathlib import Path

import pytest

ROWS, BLOWS = 120, 2


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_killed_at_random_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blow: signal.Signals) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    killed = importlib.import_module("annotate_killed")
    found = killed.run(tmp_path, rows=ROWS, kills=BLOWS, blow=blow)
    assert found.labels == ROWS
    assert 0 < found.stored[0] < ROWS, "the blows must fall in the middle"
    assert found.changed == 0 and found.asked_again == 0
    assert 0 <= found.answers - ROWS <= killed.CONCURRENCY * BLOWS, "only what was under way may be asked twice"
    assert set(found.faults) == {"429", "500", "dropped", "garbage", "slow"}
    assert ("the same command asks for the rest" in found.last_words) is (blow == signal.SIGINT)
