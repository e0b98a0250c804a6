"""The run directory: one process at a time, keys that are younger than a run, unit prices."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from simfarm.annotators.costs import unit_prices
from simfarm.annotators.pool import load_pool
from simfarm.errors import RunError
from simfarm.experiments.config import ExperimentConfig
from simfarm.experiments.rundir import RunDirectory
from simfarm.llm.prices import load_prices

CONFIG = ExperimentConfig(name="x")
AT_WORK = """
import sys
from pathlib import Path
from simfarm.experiments.config import ExperimentConfig
from simfarm.experiments.rundir import RunDirectory
directory = RunDirectory(Path(sys.argv[1]), ExperimentConfig(name="x"))
with directory.at_work({}, {}):
    directory.mark_done("labels", 1.0)
    print("ready", flush=True)
    sys.stdin.read()
"""


def begun(folder: Path, config: ExperimentConfig = CONFIG, **inputs: str) -> RunDirectory:
    directory = RunDirectory(folder, config)
    with directory.at_work(inputs, {}):
        return directory


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    early = RunDirectory(tmp_path, CONFIG)
    command = [sys.executable, "-c", AT_WORK, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        with pytest.raises(RunError, match=rf"Another process \(process {process.pid}\) is at work .* --out"):
            begun(tmp_path)
        process.kill()
    # opened before the other's work, it knows of it now
    assert not early.stages
    with early.at_work({}, {}):
        assert early.is_done("labels")


def test_a_lock_left_alone_is_no_foreign_file(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 1\n")
    begun(tmp_path)
    assert (tmp_path / "config.json").is_file()


def without(folder: Path, section: str, key: str) -> None:
    """Take a key out of config.json, as if the run were older than the key."""
    record = json.loads((folder / "config.json").read_text())
    del (record["config"][section] if section else record["config"])[key]
    (folder / "config.json").write_text(json.dumps(record))


@pytest.mark.parametrize(("section", "key"), [("ppo", "clip"), ("annotation", "replicates"), ("", "rloo")])
def test_a_key_younger_than_the_run_counts_as_its_default(tmp_path: Path, section: str, key: str) -> None:
    begun(tmp_path)
    without(tmp_path, section, key)
    begun(tmp_path)


def test_a_key_younger_than_the_run_is_named_where_it_is_not_its_default(tmp_path: Path) -> None:
    begun(tmp_path)
    without(tmp_path, "annotation", "replicates")
    changed = ExperimentConfig.model_validate({"name": "x", "annotation": {"replicates": 3}})
    with pytest.raises(RunError, match=r"another config: annotation\.replicates was 1 and is now 3\. Nothing"):
        begun(tmp_path, changed)


def test_a_key_that_is_no_more_is_named(tmp_path: Path) -> None:
    begun(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    record["config"]["ppo"]["whitening"] = 2
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"ppo\.whitening was 2 and is now None"):
        begun(tmp_path)


def test_content_stays_as_strict_as_it_was(tmp_path: Path) -> None:
    begun(tmp_path, pool="a")
    with pytest.raises(RunError, match="another content of: pool"):
        begun(tmp_path, pool="b")


def test_unit_prices_are_dated_free_or_unknown() -> None:
    prices = load_prices()
    paid = unit_prices(load_pool("alpacafarm"), prices)
    assert paid["openai/gpt-6-luna"] == "US$ 0.1 in, 0.5 out per million tokens, price of 2026-09-22"
    assert unit_prices(load_pool("fake-biased"), prices) == {"pool fake-biased": "free (this machine)"}
    for model, url, text in (
        ("openai/unheard-of", None, "unknown"),
        ("hf/smollm2-135m", None, "free (this machine)"),
        ("vllm/some/model", None, "free (this machine)"),
        ("vllm/some/model", "http://gpu:8000/v1", "free (own server)"),
    ):
        assert unit_prices(load_pool("alpacaeval", models={"judge": model}, base_url=url), prices) == {model: text}
    own = unit_prices(load_pool("alpacaeval", base_url="http://me:secret@gpu:8000/v1"), prices)
    assert list(own.values()) == ["unknown"] and next(iter(own)).endswith(" at gpu/v1")


def test_half_a_unit_of_a_killed_process_does_not_stay_in_the_way(tmp_path: Path) -> None:
    run = begun(tmp_path)
    table = pd.DataFrame({"x": range(5)})
    (tmp_path / "units").mkdir()
    (tmp_path / "units/.unit-00001.parquet.99").write_bytes(b"PAR1")
    done = run.in_units("units", table, 2, lambda part: part.assign(y=part["x"] * 2))
    assert list(done["y"]) == [0, 2, 4, 6, 8]
    run.drop_units("units")
    assert not (tmp_path / "units").exists()
