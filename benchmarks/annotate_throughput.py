"""How fast simfarm annotates against a server that answers in 50 ms, beside alpaca_eval and a bare aiohttp loop.

    python -m venv peer && peer/bin/pip install alpaca_eval==0.6.6 'setuptools<81'
    cd benchmarks
    python annotate_throughput.py --peer-python ../peer/bin/python --out results/annotate_throughput.md

The server is a stub in a process of its own; every tool runs in a process of its own, one after the other, on the same
pairs, with an empty cache. Timed is the call that labels, without imports. Without --peer-python the comparison with
alpaca_eval is left out. Also measured: a pool of thirteen members, and a resume with 100,000 stored labels.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STUB = Path(__file__).with_name("stub_server.py")
CONCURRENCY = 128
LATENCY = 0.05
TEXT = """
the a of to and in that it is was for on are as with they be at one have this from by hot word but what some we can
out other were all there when up use your how said each she which do their time if will way about many then them write
would like so these her long make thing see him two has look more day could go come did number sound no most people
over know water than call first who may down side been now find my
"""

PEER = """
import json, logging, pathlib, sys, time
import pandas as pd
import openai
from alpaca_eval import annotators
logging.disable(logging.CRITICAL)
rows = json.load(open(sys.argv[1]))
cache = pathlib.Path(sys.argv[1]).with_name("alpaca_eval_cache.json")
judge = annotators.PairwiseAnnotator(annotators_config="weighted_alpaca_eval_gpt4_turbo", caching_path=cache)
begun = time.perf_counter()
labels = judge.annotate_pairs(pd.DataFrame(rows))
print(json.dumps({"seconds": time.perf_counter() - begun, "labels": sum(r["preference"] is not None for r in labels)}))
"""


def make_pairs(count: int) -> list[dict[str, str]]:
    draw, words = random.Random(0), TEXT.split()

    def text(low: int, high: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(low, high)))

    return [
        {"instruction": f"{i}: {text(10, 60)}", "output_1": text(60, 300), "output_2": text(60, 300)}
        for i in range(count)
    ]


@contextlib.contextmanager
def stub(*options: str) -> Iterator[str]:
    command = [sys.executable, str(STUB), "--latency", str(LATENCY), *options]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().split()[1]}/v1"
    finally:
        process.stdin.close()
        process.wait()


def measure(step: str, *arguments: str) -> dict[str, Any]:
    """Run one step of this file in a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, "--step", step, *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OPENAI_API_KEY": "sk-stub"},
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def step_bare(pairs: Path, url: str) -> dict[str, float]:
    """Post the requests of simfarm's judge with aiohttp and nothing around it."""
    import aiohttp

    bodies = [request.body(limit_field="max_tokens") for request in judge_requests(pairs, url)]

    async def run() -> float:
        gate = asyncio.Semaphore(CONCURRENCY)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def post(body: dict[str, Any]) -> None:
                async with gate, session.post(f"{url}/chat/completions", json=body) as response:
                    await response.read()

            begun = time.perf_counter()
            await asyncio.gather(*map(post, bodies))
            return time.perf_counter() - begun

    return {"seconds": asyncio.run(run()), "labels": len(bodies)}


def judge_requests(pairs: Path, url: str) -> Iterator[Any]:
    import pandas as pd

    from simfarm.annotators.costs import requests
    from simfarm.annotators.pool import load_pool

    pool = load_pool("alpacaeval", base_url=url)
    plan = pool.plan(pd.read_parquet(pairs))
    return (request for _, request in requests(pool, plan))


def step_simfarm(pairs: Path, url: str, pool_name: str, assign: str, store: str) -> dict[str, float]:
    """Label the pairs through a store."""
    import pandas as pd

    from simfarm.annotators.pool import load_pool
    from simfarm.llm.client import Client, Options
    from simfarm.llm.store import open_store

    for module in (
        "simfarm.llm.openai_server",
        "httpcore2",
    ):  # imported at the first call otherwise; no tool's imports are timed
        importlib.import_module(module)
    table = pd.read_parquet(pairs)
    pool = load_pool(pool_name, base_url=url)
    client = Client(open_store(store), options=Options(concurrency=CONCURRENCY))
    before = memory("VmRSS")
    begun = time.perf_counter()
    labels = pool.annotate(table, assign="all" if assign == "all" else "random", client=client)
    seconds = time.perf_counter() - begun
    return {
        "seconds": seconds,
        "labels": len(labels),
        "null": int(labels["preference"].isna().sum()),
        "asked": client.usage.asked,
        "found": client.usage.found,
        "before_mb": before,
        "peak_mb": memory("VmHWM"),
        "labels_mb": float(labels.memory_usage(deep=True).sum() / 2**20),
    }


def memory(field: str) -> float:
    """Return this process's memory in MB: VmRSS = now, VmHWM = at its peak (Linux; 0 elsewhere)."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")), 0.0)


def step_fill(pairs: Path, url: str, store: str) -> dict[str, float]:
    """Store an answer for every request, as if they had been asked."""
    from simfarm.llm.request import TokenProbability, completion
    from simfarm.llm.store import StoredCall, open_store

    places = [[TokenProbability("A", -0.4), TokenProbability("B", -1.2)]]
    raw = completion("A", finish_reason="stop", input_tokens=400, output_tokens=1, positions=places)
    opened, batch = open_store(store), []
    for request in judge_requests(pairs, url):
        batch.append(StoredCall(request.key, request.to_json(), raw, 0.05))
        if len(batch) == 2000:
            opened.put(batch)
            batch.clear()
    opened.put(batch)
    return {"labels": opened.count()}


def peer(python: str, pairs: Path, url: str) -> dict[str, float]:
    """Run alpaca_eval as it comes: its own judge, its own concurrency."""
    done = subprocess.run(
        [python, "-c", PEER, str(pairs)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OPENAI_API_KEY": "sk-stub", "OPENAI_API_BASE": url, "IS_ALPACA_EVAL_2": "True"},
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(options: argparse.Namespace) -> None:
    import pandas as pd

    rows = []

    def report(what: str, found: dict[str, Any], note: str = "") -> float:
        rate = found["labels"] / found["seconds"]
        rows.append((what, f"{found['labels']:,.0f}", f"{found['seconds']:.2f}", f"{rate:,.1f}", note))
        print(f"{what}: {rate:,.1f} labels/s ({found['seconds']:.2f} s) {note}", flush=True)
        return float(rate)

    with tempfile.TemporaryDirectory() as folder, stub() as url:
        table = make_pairs(options.pairs)
        pairs, for_peer = Path(folder, "pairs.parquet"), Path(folder, "pairs.json")
        pd.DataFrame(table).to_parquet(pairs)
        for_peer.write_text(json.dumps(table))
        bound = CONCURRENCY / LATENCY
        bare, rates, peers = [], [], []
        for run in range(options.repeats):
            found = measure("bare", str(pairs), url)
            bare.append(found["labels"] / found["seconds"])
            found = measure("simfarm", str(pairs), url, "alpacaeval", "random", f"{folder}/{run}.sqlite")
            assert found["null"] == 0 and found["asked"] == options.pairs
            rates.append(found["labels"] / found["seconds"])
            if options.peer_python:
                Path(folder, "alpaca_eval_cache.json").unlink(missing_ok=True)
                found = peer(options.peer_python, for_peer, url)
                assert found["labels"] == options.pairs
                peers.append(found["labels"] / found["seconds"])

        def middle(what: str, runs: list[float], note: str = "") -> float:
            median = sorted(runs)[len(runs) // 2]
            each = f"median of {', '.join(f'{rate:,.0f}' for rate in runs)}"
            report(what, {"labels": options.pairs, "seconds": options.pairs / median}, f"{each}{note}")
            return median

        bare_rate = middle("bare aiohttp loop", bare)
        peer_rate = middle("alpaca_eval 0.6.6, as it comes", peers) if peers else None
        rate = sorted(rates)[len(rates) // 2]
        versus = f"; {rate / peer_rate:.1f} x alpaca_eval" if peer_rate else ""
        note = f"{versus}; {rate / bare_rate:.2f} of the bare loop, {rate / bound:.2f} of the bound {bound:.0f}/s"
        middle("simfarm, pool alpacaeval", rates, note)
        wide = measure("simfarm", str(pairs), url, "alpacafarm", "all", f"{folder}/wide.sqlite")
        report("simfarm, pool alpacafarm, every pair to all 13 members", wide, f"{wide['asked']:,} calls side by side")
        stores = {count: f"{folder}/resume-{count}.sqlite" for count in (options.pairs, options.resume)}
        tables = {count: Path(folder, f"{count}.parquet") for count in stores}
        for count, path in tables.items():
            pd.DataFrame(make_pairs(count)).to_parquet(path)
            measure("fill", str(path), url, stores[count])
        for store_size, row_count in (
            (options.pairs, options.pairs),
            (options.resume, options.pairs),
            (options.resume,) * 2,
        ):
            again = measure("simfarm", str(tables[row_count]), url, "alpacaeval", "random", stores[store_size])
            assert again["found"] == row_count and again["asked"] == 0
            note = (
                f"nothing asked; memory {again['before_mb']:.0f} MB before, {again['peak_mb']:.0f} MB at its peak, "
                f"with the labels' {again['labels_mb']:.0f} MB"
            )
            report(f"simfarm, {row_count:,} rows again, {store_size:,} answers stored", again, note)
    if options.out:
        lines = [
            "# Annotation throughput",
            "",
            f"`python benchmarks/annotate_throughput.py --peer-python … --out …`, {time.strftime('%Y-%m-%d')}. "
            f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}. The stub server runs "
            f"in a process of its own on the same machine and answers in {LATENCY * 1000:.0f} ms; simfarm's "
            f"concurrency is {CONCURRENCY}, alpaca_eval's is its default. Every run is a fresh process with an empty "
            "cache; timed is the call that labels, without imports.",
            "",
            "| | labels | seconds | labels/s | |",
            "|---|---|---|---|---|",
            *("| " + " | ".join(row) + " |" for row in rows),
        ]
        path = Path(options.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="Python of an environment with alpaca_eval==0.6.6")
    parser.add_argument("--pairs", type=int, default=805)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--resume", type=int, default=100_000)
    parser.add_argument("--out", help="write the table to this Markdown file")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args()
    steps = {"bare": step_bare, "simfarm": step_simfarm, "fill": step_fill}
    if given.step:
        print(json.dumps(steps[given.step](Path(given.arguments[0]), *given.arguments[1:])))
    else:
        main(given)
