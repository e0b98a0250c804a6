"""The verbs annotate, pools, pool, batch: what they read, print and write."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from llm_helpers import stub_server

from simfarm import progress, tables
from simfarm.annotators import costs
from simfarm.annotators.inputs import read_given, to_trl
from simfarm.cli import cli
from simfarm.errors import ConfigError, DataError
from simfarm.llm.client import Usage
from simfarm.llm.request import Request, completion

FAKES = ["--model", "strong=fake/oracle", "--model", "mid=fake/noisy", "--model", "small=fake/noisy"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMFARM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [{"instruction": f"red {i}", "output_1": f"red {i}", "output_2": "blue", "id": i} for i in range(30)]
    return tables.write_table(pd.DataFrame(rows), tmp_path / "pairs.jsonl")


def simfarm(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
def test_labels_in_every_format(pairs: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"labels.{suffix}"
    result = simfarm("annotate", pairs, "--pool", "alpacafarm", "--out", out, "--orders", "both", *FAKES)
    assert "30 labels" in result.output
    labels = tables.check_labels(tables.read_table(out))
    assert labels["id"].tolist() == list(range(30))
    assert set(labels["pool"]) == {labels["pool"][0]} and labels["pool"][0].startswith("alpacafarm@")


def test_output_opens_in_datasets_and_as_trainers_pairs(pairs: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    out, trl = tmp_path / "labels.json", tmp_path / "trl.jsonl"
    simfarm("annotate", pairs, "--pool", "fake-biased", "--out", out, "--trl", trl)
    loaded = datasets.load_dataset("json", data_files=str(out), split="train", cache_dir=str(tmp_path / "hf"))
    assert loaded.num_rows == 30
    preference = datasets.load_dataset("json", data_files=str(trl), split="train", cache_dir=str(tmp_path / "hf"))
    row = preference[0]
    assert [turn["role"] for turn in row["prompt"] + row["chosen"] + row["rejected"]] == [
        "user",
        "assistant",
        "assistant",
    ]
    assert (read_given(trl).table["instruction"] == [f"red {i}" for i in pd.read_json(trl, lines=True)["id"]]).all()


def test_labels_of_several_raters_are_each_pair_once(tmp_path: Path) -> None:
    rows = [
        {"annotator": who, "preference": said, "instruction": q, "output_1": "a", "output_2": "b", "topic": q * 2}
        for q in ("q", "r")
        for who, said in (("ann", 1), ("bob", 2), ("eve", None))
    ]
    given = read_given(tables.write_table(pd.DataFrame(rows), tmp_path / "human.csv"))
    assert list(given.table.columns) == ["instruction", "output_1", "output_2", "topic"]
    assert list(given.table["topic"]) == ["qq", "rr"]


def test_to_trl_leaves_out_ties_and_missing_ones() -> None:
    labels = pd.DataFrame(
        {
            "instruction": ["i"] * 4,
            "input": ["", "in", "", ""],
            "output_1": list("abcd"),
            "output_2": list("wxyz"),
            "preference": [1.0, 1.8, 1.5, None],
            "annotator": list("klmn"),
        }
    )
    trl = to_trl(labels)
    assert [c[0]["content"] for c in trl["chosen"]] == ["a", "x"]
    assert [c[0]["content"] for c in trl["rejected"]] == ["w", "b"]
    assert [p[0]["content"] for p in trl["prompt"]] == ["i", "i\n\nin"]
    assert trl["p_chosen"].tolist() == [1.0, pytest.approx(0.8)]
    assert trl["annotator"].tolist() == ["k", "l"]


def test_the_same_command_again_asks_nobody(pairs: Path, tmp_path: Path) -> None:
    command = ["annotate", pairs, "--pool", "alpacafarm", "--json", "--store", tmp_path / "s.sqlite"]
    with stub_server("--latency", "0.001", "--text", "A") as url:
        first = json.loads(simfarm(*command, "--out", tmp_path / "a.json", "--base-url", url).stdout)
        assert first["calls"] > 10 and first["failed"] == 0
        assert first["calls_of_unknown_price"] == first["calls"]
    with stub_server("--refuse", "500:x:off") as url:
        again = json.loads(simfarm(*command, "--out", tmp_path / "b.json", "--base-url", url).stdout)
    assert again["calls"] == 0 and again["from_store"] >= first["calls"]
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()


def test_dry_run_counts_and_asks_nobody(pairs: Path, tmp_path: Path) -> None:
    result = simfarm("annotate", pairs, "--pool", "alpacafarm", "--dry-run", "--json", "--store", tmp_path / "s")
    found = json.loads(result.output)
    assert found["labels"] == 30 == sum(m["labels"] for m in found["members"])
    assert 0 < found["cost"] < 1
    half = simfarm("annotate", pairs, "--pool", "alpacafarm", "--dry-run", "--flip", "0.25", "--noise-first", "--json")
    assert 5 < json.loads(half.output)["noise_first"] < 25
    assert (
        "unknown"
        in simfarm("annotate", pairs, "--pool", "alpacaeval", "--dry-run", "--model", "judge=openai/unheard-of").output
    )


def test_max_cost_leaves_rows_null_and_says_why(pairs: Path, tmp_path: Path) -> None:
    with stub_server("--latency", "0.001") as url:
        prices = tmp_path / "p.toml"
        prices.write_text('[[price]]\nmodel = "openai/gpt-5.4@localhost/v1"\ninput = 100.0\noutput = 100.0\n')
        command = ["annotate", pairs, "--pool", "alpacaeval", "--base-url", url, "--prices", prices]
        simfarm(*command, "--out", tmp_path / "l.json", "--max-cost", "0.5")
    labels = tables.read_table(tmp_path / "l.json")
    assert 0 < labels["preference"].notna().sum() < 30
    assert labels["cost"].sum() <= 0.5
    assert labels["reason"][labels["preference"].isna()].str.contains("max_cost").all()


def test_progress_shows_what_was_spent(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.0)
    command = ["annotate", pairs, "--pool", "alpacaeval", "--out", tmp_path / "l.json"]
    with stub_server("--latency", "0.001") as url:
        prices = tmp_path / "p.toml"
        prices.write_text('[[price]]\nmodel = "openai/gpt-5.4@localhost/v1"\ninput = 100.0\noutput = 100.0\n')
        said = simfarm(*command, "--base-url", url, "--prices", prices).stderr
        amounts = [float(amount) for amount in re.findall(r"judgments, .* s left, \$([0-9.]+) spent", said)]
        assert len(amounts) == 29 and amounts == sorted(amounts) and amounts[-1] > 0.1
        # without that table nobody knows the price
        said = simfarm(*command, "--base-url", url, "--store", tmp_path / "other").stderr
    assert "s left, unknown price" in said
    assert "spent" not in simfarm(*command[:2], "--pool", "fake-biased", "--out", tmp_path / "f.json").stderr


@pytest.mark.parametrize(
    ("usage", "text"),
    [
        (Usage(), "$0.00 spent"),
        (Usage(asked=3, spent=0.00123), "$0.0012 spent"),
        (Usage(asked=3, unpriced=3), "unknown price"),
        (Usage(asked=3, spent=1.5, unpriced=1), "$1.50 spent, more at an unknown price"),
    ],
)
def test_an_unknown_price_is_not_nothing(usage: Usage, text: str) -> None:
    assert costs.spent(usage) == text


def test_lists_and_outputs(tmp_path: Path) -> None:
    rows = [{"instruction": f"red {i}", "output": f"{g} red", "generator": g} for g in "xyz" for i in range(4)]
    outputs = tables.write_table(pd.DataFrame(rows), tmp_path / "outputs.json")
    for how, size in (("pairs", 12), ("best_worst", 4), ("rank", 4)):
        simfarm("annotate", outputs, "--pool", "fake-biased", "--lists", how, "--out", tmp_path / f"{how}.jsonl")
        assert len(tables.read_table(tmp_path / f"{how}.jsonl")) == size
    assert {a["model"] for a in tables.read_table(tmp_path / "rank.jsonl")["answers"][0]} == {"x", "y", "z"}


def test_rankings_are_priced_before_they_are_asked(tmp_path: Path) -> None:
    rows = [{"instruction": f"red {i}", "outputs": ["red", "blue", "green"]} for i in range(6)]
    lists = tables.write_table(pd.DataFrame(rows), tmp_path / "lists.jsonl")
    command = ["annotate", lists, "--pool", "alpacafarm", "--lists", "rank", "--replicates", "2"]
    found = json.loads(simfarm(*command, "--dry-run", "--json").stdout)
    assert (
        found["labels"] == 12 == sum(m["labels"] for m in found["members"]) == sum(m["calls"] for m in found["members"])
    )
    assert 0 < found["cost"] < 1
    with pytest.raises(ConfigError, match="--trl needs pairs"):
        simfarm(*command, "--out", tmp_path / "l.json", "--trl", tmp_path / "t.jsonl")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pool", "alpacafarm", "--out", "l.txt"], "'.txt'; simfarm writes .json"),
        (["--pool", "alpacafrm", "--out", "l.json"], "Did you mean 'alpacafarm'"),
        (["--pool", "alpacafarm"], "--out LABELS"),
        (["--pool", "alpacafarm", "--out", "l.json", "--model", "strong"], "ROLE=PROVIDER/MODEL"),
        (["--pool", "alpacafarm", "--out", "l.json", "--flip", "2"], "probability"),
        (["--pool", "alpacafarm", "--out", "l.json", "--concurrency", "0"], "concurrency"),
        (["--pool", "alpacafarm", "--out", "l.json", "--prices", "none.toml"], "none.toml"),
    ],
)
def test_errors_name_what_mends_them(pairs: Path, arguments: list[str], message: str) -> None:
    with pytest.raises((ConfigError, LookupError)) as caught:
        simfarm("annotate", pairs, *arguments)
    assert message in str(caught.value)


def test_unknown_columns_are_named(tmp_path: Path) -> None:
    path = tables.write_table(pd.DataFrame({"question": ["q"], "answer": ["a"]}), tmp_path / "x.json")
    with pytest.raises(DataError, match="question, answer"):
        read_given(path)


def test_pools_lists_and_shows_all() -> None:
    listed = json.loads(simfarm("pools", "--json").stdout)
    sizes = {row["name"]: row["members"] for row in listed}
    assert sizes["alpacafarm"] == 13 and sizes["personas"] >= 8 and sizes["alpacaeval"] == 1
    for name in sizes:
        assert len(json.loads(simfarm("pool", "show", name, "--json").stdout)["members"]) == sizes[name]
        assert name in simfarm("pool", "show", name).output


@pytest.mark.parametrize("name", ["alpacafarm", "alpacaeval", "open-weights", "personas"])
def test_pool_check_renders_counts_and_prices_every_member(name: str) -> None:
    found = json.loads(simfarm("pool", "check", name, "--json").stdout)
    for one in found:
        assert "Open the calendar" in one["prompt"] and 100 < one["tokens_per_label"] < 5000
        assert one["usd_per_1000"] is not None
    assert len({one["prompt"] for one in found}) >= min(len(found), 6)


def test_pool_check_live_tells_a_working_member_from_a_broken_one(tmp_path: Path) -> None:
    with stub_server("--text", "A", "--latency", "0.001") as url:
        command = ["pool", "check", "alpacafarm", "--live", "--json", "--base-url", url, "--store", tmp_path / "s"]
        result = simfarm(*command)
    verdicts = {one["annotator"]: one["verdict"] for one in json.loads(result.output)}
    assert verdicts["small-terse"] == 1.0 and verdicts["mid-json"] is None
    assert result.exit_code == 1


def test_batch_files_go_out_and_come_back(pairs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "calls"
    write = ["batch", "write", pairs, "--pool", "alpacafarm", "--dir"]
    written = json.loads(simfarm(*write, tmp_path / "as json", "--json").output)
    assert (
        written["from_store"] == 0 and len(written["files"]) == 3 and all(Path(f).is_file() for f in written["files"])
    )
    assert f"{written['calls']} calls in 3 files" in simfarm(*write, folder).output
    results = []
    for path in sorted(folder.glob("*.jsonl")):
        if path.name.endswith(".requests.jsonl"):
            continue
        for number, line in enumerate(map(json.loads, path.read_text().splitlines())):
            assert line["url"] == "/v1/chat/completions" and "max_completion_tokens" in line["body"]
            body = completion("A", finish_reason="stop", input_tokens=10, output_tokens=1)
            failed = number == 0
            results.append(
                {
                    "custom_id": line["custom_id"],
                    "response": {"status_code": 500 if failed else 200, "body": {} if failed else body},
                    "error": None,
                }
            )
    answers = tmp_path / "results.jsonl"
    answers.write_text("".join(json.dumps(line) + "\n" for line in reversed(results)))
    said = simfarm("batch", "ingest", folder, answers).output
    assert f"{len(results) - 3} answers stored" in said and "3 without an answer" in said
    counts = json.loads(simfarm("batch", "ingest", folder, answers, "--json").output)
    assert counts["stored"] == len(results) - 3 and sum(counts["failed"].values()) == 3
    index = [json.loads(x) for x in (folder / "openai_gpt-6-luna.requests.jsonl").read_text().splitlines()]
    assert all(Request.from_json(x["request"]).key == x["key"] for x in index)
    again = simfarm(*write, tmp_path / "more").output
    assert again.startswith("3 calls")
    with pytest.raises(DataError, match="batch files already"):
        simfarm(*write, folder)
    answers.write_text('{"custom_id": "stranger"}\n')
    with pytest.raises(DataError, match="stranger"):
        simfarm("batch", "ingest", folder, answers)


VLLM = """#!{python}
import http.server, os, sys

class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

print(sys.argv[1:], flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Health).serve_forever()
"""


def test_serve_says_in_one_line_of_json_where_it_answers(tmp_path: Path) -> None:
    program, log = tmp_path / "vllm", tmp_path / "vllm.log"
    program.write_text(VLLM.format(python=sys.executable))
    program.chmod(0o755)
    (tmp_path / "config.json").write_text("{}")
    command = ["serve", str(tmp_path), "--vllm", str(program), "--log", str(log), "--json", "--max-model-len", "64"]
    with subprocess.Popen([sys.executable, "-m", "simfarm", *command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = json.loads(process.stdout.readline())
        assert found["model"] == str(tmp_path) and found["log"] == str(log)
        assert urllib.request.urlopen(found["url"].removesuffix("/v1") + "/health").status == 200
        # the server's end is the command's
        os.kill(found["pid"], signal.SIGTERM)
        assert process.stdout.read() == "" and process.wait(20) == 0
    assert "'--max-model-len', '64'" in log.read_text()
