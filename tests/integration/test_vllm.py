"""A real vLLM server on this machine, driven by the shipped client: logprobs, pools, the store, batch files.

Skipped where there is no vLLM. It needs an environment of its own (its pins differ from simfarm's): install_vllm.sh
beside this file makes one for a CPU; give its command as SIMFARM_VLLM=/path/to/env/bin/vllm. The model is the built-in
smollm2-135m (simfarm models pull smollm2-135m), or the folder in SIMFARM_VLLM_MODEL.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simfarm.annotators.costs import requests
from simfarm.annotators.pool import Pool, load_pool
from simfarm.llm import batch
from simfarm.llm.client import Client
from simfarm.llm.serve import Server, start
from simfarm.llm.store import SQLiteStore
from simfarm.models import is_stored, resolve

VLLM = os.environ.get("SIMFARM_VLLM") or shutil.which("vllm")
MODEL = os.environ.get("SIMFARM_VLLM_MODEL") or ("smollm2-135m" if is_stored("smollm2-135m") else None)
ARGUMENTS = ["--max-model-len", "2048", "--max-num-seqs", "16", "--dtype", "bfloat16", "--enforce-eager"]

pytestmark = [
    pytest.mark.skipif(
        VLLM is None,
        reason="vLLM is not installed: tests/integration/install_vllm.sh ENV, then SIMFARM_VLLM=ENV/bin/vllm",
    ),
    pytest.mark.skipif(MODEL is None, reason="no model: simfarm models pull smollm2-135m, or set SIMFARM_VLLM_MODEL"),
]

PAIRS = pd.DataFrame(
    {
        "instruction": [f"Name {n} animals." for n in ("two", "three", "four", "five")] * 3,
        "output_1": ["A dog and a cat.", "Dog, cat, mouse.", "Dogs, cats, mice and cows.", "I like animals."] * 3,
        "output_2": ["Blue.", "No.", "Animals live in many places.", "Dog, cat, mouse, cow and hen."] * 3,
        "input": ["", *["(European ones)"] * 3, *["(from a farm)"] * 4, *["(small ones)"] * 4],
    }
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # vLLM on a CPU takes most of the memory for its cache unless told otherwise
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    assert VLLM is not None and MODEL is not None
    log = tmp_path_factory.mktemp("vllm") / "log"
    running = start(MODEL, log=log, command=VLLM, arguments=ARGUMENTS, patience=600)
    yield running
    running.stop()


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return Client(SQLiteStore(tmp_path / "calls.sqlite"))


POOL = """
name = "letters"
description = "A judge of few words, whose probabilities a small model can tell."
soft = true
[models.judge]
model = "hf/unset"
[[members]]
kind = "prompted"
name = "judge"
model = "judge"
prompt = "p.txt"
parser = { kind = "logprobs", top = 20, least_mass = 0.0 }
max_tokens = 1
temperature = 1.0
"""
PROMPT = """[user]
Question: {instruction}
Answer A: {output_1}
Answer B: {output_2}
Which answer is better? Reply with one letter, A or B, and nothing else.
"""


def judge(folder: Path, model: str, base_url: str | None = None) -> Pool:
    (folder / "pool.toml").write_text(POOL)
    (folder / "p.txt").write_text(PROMPT)
    return load_pool(folder, models={"judge": model}, base_url=base_url)


def test_soft_labels_from_real_logprobs(server: Server, client: Client, tmp_path: Path) -> None:
    pool = judge(tmp_path, f"vllm/{server.model}", server.base_url)
    labels = pool.annotate(PAIRS, orders="both", client=client)
    assert labels["preference"].notna().all(), labels["reason"].tolist()
    assert labels["preference"].between(1, 2).all()
    assert labels["preference"].nunique() > 4, "probabilities, not letters"
    assert client.usage.asked == 24 and client.usage.failed == 0
    assert labels["cost"].eq(0).all() and labels["tokens"].gt(50).all()
    again = pool.annotate(PAIRS, orders="both", client=client)
    assert client.usage.asked == 0
    pd.testing.assert_frame_equal(labels, again)


def test_the_probabilities_are_those_of_the_model(server: Server, client: Client, tmp_path: Path) -> None:
    """In this process, with transformers, the same weights give the same probabilities up to bfloat16."""
    served = judge(tmp_path, f"vllm/{server.model}", server.base_url).annotate(PAIRS.head(4), client=client)
    ours = judge(tmp_path, f"hf/{MODEL}").annotate(PAIRS.head(4), client=client)
    assert (served["order"] == ours["order"]).all()
    assert np.abs(served["preference"] - ours["preference"]).max() < 0.08


def test_a_pool_of_many_members_runs_and_reports_its_nulls(server: Server, client: Client) -> None:
    roles = dict.fromkeys(("strong", "mid", "small"), f"vllm/{server.model}")
    pool = load_pool("open-weights", models=roles, base_url=server.base_url)
    labels = pool.annotate(PAIRS.head(2), assign="all", client=client)
    assert len(labels) == 2 * 9
    missing = labels["preference"].isna()
    assert (labels["reason"][missing] != "").all() and labels["raw"][missing].str.len().gt(0).all()
    assert client.usage.failed == 0, "what is missing was said, and could not be read"


def test_batch_files_run_with_run_batch(server: Server, client: Client, tmp_path: Path) -> None:
    """What `simfarm batch write` writes is what `vllm run-batch` reads, and its answers find their places."""
    assert VLLM is not None and MODEL is not None
    pool = judge(tmp_path, f"vllm/{server.model}", server.base_url)
    plan = pool.plan(PAIRS.head(3))
    written = batch.write((request for _, request in requests(pool, plan)), client.store, tmp_path / "b")
    assert written.requests == 3
    lines = [json.loads(line) for line in written.files[0].read_text().splitlines()]
    answers = tmp_path / "answers.jsonl"
    # run-batch loads the model under the name it is given, which is the one that stands in the file
    server.stop()
    names = ["--model", resolve(MODEL), "--served-model-name", lines[0]["body"]["model"]]
    done = subprocess.run(
        [VLLM, "run-batch", "-i", written.files[0], "-o", answers, *names, *ARGUMENTS], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    taken = batch.ingest([answers], sorted((tmp_path / "b").glob("*.requests.jsonl")), client.store)
    assert taken.stored == 3 and not taken.failed
    labels = pool.annotate(PAIRS.head(3), client=client)
    assert client.usage.asked == 0 and labels["preference"].notna().all()
