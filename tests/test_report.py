from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simfarm import tables
from simfarm.errors import RunError
from simfarm.evaluation.correlation import correlations
from simfarm.evaluation.length_control import length_controlled
from simfarm.evaluation.winrate import paired_differences, win_rates
from simfarm.overoptimization.best_of_n import best_of_n_curve
from simfarm.report import findings
from simfarm.report.contents import differences, methods, provenance
from simfarm.report.data import RunData
from simfarm.report.examples import BUDGET, LONGEST, examples, script_json, thin
from simfarm.report.html import fill, write_report
from simfarm.report.measures import annotator_shares, disagreements, held_out_accuracy, kl_of, optimum
from simfarm.report.tabulate import Column, Table, latex_text, to_html, to_latex, to_markdown
from simfarm.report.terminal import print_results

HOSTILE = [
    "<script>document.title = 'owned'</script>",
    "</script><img src=x onerror=\"document.title = 'owned'\">",
    "<!-- <script> [link](javascript:alert(1)) {{script}} & &amp;",
    "line\u2028separator\u2029, right-to-left \u202eevil\u202c עברית, nul \x00, emoji \U0001f980",
    "$\\frac{a}{b}$ | *bold* ~ `code` \\section{x} %",
]
FIGURES = (
    "win_rates", "humans", "best_of_n", "reward_model", "training_ppo", "training_losses", "annotators", "disagreement"
)  # fmt: skip
NAME = "<img src=x onerror=alert(1)>|$x$ {{script}} </script>"
RATES = {"best_of_n": 0.9, "ppo": 0.5, "sft": 0.5}


def build(
    folder: Path,
    *,
    rates: dict[str, float] = RATES,
    n: int = 40,
    texts: list[str] | None = None,
    missing: bool = False,
    extras: bool = True,
) -> Path:
    """Write a run directory as the stages do; every method wins a given share of its comparisons."""
    said = texts or ["A short answer.", "A somewhat longer answer.", "No."]
    ids = [f"task-{i:02}" for i in range(n)]
    known = pd.DataFrame({"id": ids, "instruction": [f"Do {i}: {said[i % len(said)]}" for i in range(n)], "input": ""})
    known["category"] = ["plan" if i % 2 else "explain" for i in range(n)]
    rows = []
    for name, rate in rates.items():
        for i, instruction in enumerate(known["instruction"]):
            preference: float | None = 2.0 if (i + 0.5) / n < rate else 1.0
            lost = missing and i == 3
            rows.append(
                {
                    "instruction": instruction, "input": "", "output_1": f"baseline {said[i % len(said)]}",
                    "output_2": f"{name} {said[(i + 1) % len(said)]}", "generator_1": "baseline", "generator_2": name,
                    "preference": None if lost else preference, "preference_clean": None if lost else preference,
                    "flipped": False, "annotator": "anna", "order": "both", "replicate": 0,
                    "consistent": None if lost else i != 5, "reason": "refused" if lost else "", "cost": None,
                }
            )  # fmt: skip
    judged = pd.DataFrame(rows)
    tables.write_table(judged, folder / "evaluation/labels.parquet")
    found = win_rates(judged, baseline="baseline")
    tables.write_table(found, folder / "evaluation/win_rates.csv")
    tables.write_table(length_controlled(judged, baseline="baseline"), folder / "evaluation/length_controlled.csv")
    if len(rates) > 1:
        tables.write_table(
            paired_differences(judged, baseline="baseline"), folder / "evaluation/paired_differences.csv"
        )
    config = {
        "name": "tiny", "description": "A test.", "seed": 3, "methods": list(rates), "best_of_n": {"n": 4},
        "policy": {"model": "hf/none"}, "annotation": {"pool": "p", "flip": 0.25},
        "evaluation": {"pool": "p", "human_ranking": "alpacafarm"},
    }  # fmt: skip
    record = {"simfarm": "0.1.0", "config": config, "inputs": {"pool p": "ab" * 32}}
    (folder / "config.json").write_text(json.dumps(record), "utf-8")
    (folder / "stages.json").write_text(json.dumps({"labels": 1.5, "ppo": 60.0, "report": 9.9}), "utf-8")
    if extras:
        _extras(folder, known, found, said, missing)
    return folder


def _extras(folder: Path, known: pd.DataFrame, found: pd.DataFrame, said: list[str], missing: bool) -> None:
    n, rng = len(known), np.random.default_rng(0)
    humans = pd.DataFrame({"generator": ["ppo", "best_of_n", "sft"], "score": [55.1, 50.7, 44.3]})
    both = found.merge(humans, on="generator")[["generator", "win_rate", "score"]]
    tables.write_table(both, folder / "evaluation/against_humans.csv")
    if len(both) >= 3:
        tables.write_table(correlations(both["win_rate"], both["score"]), folder / "evaluation/correlations.csv")
    samples = ["00000", "00001", "00002", "00003"]
    drawn = known.loc[known.index.repeat(5)].assign(sample=["baseline", *samples] * n, output="x")
    tables.write_table(drawn, folder / "samples/eval.parquet")
    rewards = drawn[["id", "sample"]].assign(reward=rng.normal(size=5 * n))
    tables.write_table(rewards, folder / "samples/eval_rewards.parquet")
    chosen = rewards[rewards["sample"] != "baseline"]
    # gold rises with the proxy up to a point, then falls: the best of n is over-optimized
    gold = chosen.assign(gold=np.clip(0.6 - 0.3 * (chosen["reward"] - 0.5) ** 2, 0, 1)).drop(columns="reward")
    tables.write_table(gold, folder / "evaluation/sample_gold.parquet")
    curve = best_of_n_curve(chosen["reward"].to_numpy().reshape(n, 4), gold["gold"].to_numpy().reshape(n, 4))
    tables.write_table(curve, folder / "overoptimization/best_of_n.csv")
    tables.write_table(
        pd.DataFrame({"step": range(20), "loss": np.linspace(0.7, 0.5, 20)}), folder / "reward/metrics.jsonl"
    )
    accuracy = {f"{part}_{key}": 0.7 for part in ("train", "test") for key in ("accuracy_clean", "accuracy_noisy")}
    accuracy |= {"train_pairs": 90, "test_pairs": 10, "test_accuracy_of_length": 0.6}
    (folder / "reward/accuracy.json").write_text(json.dumps(accuracy), "utf-8")
    steps = {
        name: np.linspace(0, 1, 9) for name in ("reward", "kl", "entropy", "length", "clip_fraction", "value_loss")
    }
    tables.write_table(pd.DataFrame({"step": range(9), **steps}), folder / "methods/ppo/metrics.jsonl")
    tables.write_table(
        pd.DataFrame({"step": range(6), "loss": np.linspace(2.6, 2.2, 6), "learning_rate": 1e-4}),
        folder / "methods/best_of_n/metrics.jsonl",
    )
    labels = pd.DataFrame(
        {
            "id": known["id"], "instruction": known["instruction"], "input": "", "output_1": said[0],
            "output_2": [f"{said[i % len(said)]} and more" for i in range(n)], "preference": 1.0,
            "preference_clean": [2.0 if i % 4 else 1.0 for i in range(n)], "flipped": [i % 4 > 0 for i in range(n)],
            "annotator": ["anna" if i % 3 else "bert" for i in range(n)], 
            "order": ["12" if i % 2 else "21" for i in range(n)],
            "replicate": 0, "consistent": None, "reason": "", "cost": 0.01, "held_out": [i < 4 for i in range(n)],
        }
    )  # fmt: skip
    if missing:
        labels.loc[2:5, ["preference", "preference_clean"]] = None
        labels.loc[2:5, "reason"] = "no answer"
        labels["flipped"] = labels["flipped"].astype(object).mask(labels.index == 7, None)
    # a second verdict on each pair, so that annotators can be held against one another
    again = labels.assign(annotator=labels["annotator"].map({"anna": "bert", "bert": "anna"}), replicate=1)
    tables.write_table(pd.concat([labels, again], ignore_index=True), folder / "labels.parquet")


class Page(HTMLParser):
    """What a browser would make of a page: its elements, and the texts of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def contents_of(folder: Path) -> dict[str, bytes]:
    inside = [f"{d}/{p.name}" for d in ("figures", "tables") for p in sorted((folder / d).iterdir())]
    return {name: (folder / name).read_bytes() for name in ["report.html", "report.md", *inside]}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build(tmp_path_factory.mktemp("full"), missing=True)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build(tmp_path_factory.mktemp("hostile"), rates={NAME: 0.5, "ppo": 0.8}, texts=HOSTILE, n=10)
    write_report(folder)
    return folder


def test_a_full_run_has_everything(full: Path) -> None:
    page, text = (full / "report.html").read_text("utf-8"), (full / "report.md").read_text("utf-8")
    assert len(page) < 5_000_000
    for name in FIGURES:
        assert (full / f"figures/{name}.svg").is_file()
        assert (full / f"figures/{name}.png").is_file()
        assert f"](figures/{name}.png)" in text
    assert page.count("<svg") == len(FIGURES)
    assert page.count('role="img" aria-label="') == len(FIGURES)
    assert "best_of_n (89.7&nbsp;% preferred, 95&nbsp;% interval" in page
    assert "Spearman" in page
    assert "abababab" in page
    assert "Missing verdicts, left out of the rates: best_of_n 1 of 40 (1 x refused)" in page
    assert "61.5 US dollars" not in page
    assert "0.80 US dollars for training, unknown" in page
    assert text.count("\n## ") == len(FIGURES) + 1
    assert "| best\\_of\\_n | 89.7 |" in text
    assert "best\\_of\\_n & 89.7" in (full / "tables/methods.tex").read_text("utf-8")
    for name in ("methods", "length_controlled", "differences", "annotators", "disagreement", "reward_model"):
        assert (full / f"tables/{name}.tex").is_file()
        assert len(pd.read_csv(full / f"tables/{name}.csv")) > 0
    numbers = pd.read_csv(full / "tables/methods.csv").set_index("method")
    assert numbers.loc["best_of_n", "win rate %"] == pytest.approx(100 * 35 / 39)
    assert numbers.loc["ppo", "training min"] == 1.0


def test_prices_are_those_the_run_recorded(tmp_path: Path) -> None:
    folder = build(tmp_path, extras=False)
    assert ["unit prices", "not recorded by the version that began the run"] in provenance(RunData(folder)).rows
    record = json.loads((folder / "config.json").read_text("utf-8"))
    record["prices"] = {"openai/m": "unknown", "pool p": "free (this machine)"}
    (folder / "config.json").write_text(json.dumps(record), "utf-8")
    shown = [row for row in provenance(RunData(folder)).rows if "price" in str(row[0])]
    assert shown == [["price of openai/m", "unknown"], ["price of pool p", "free (this machine)"]]


def test_a_page_loads_nothing_and_runs_its_own_script_only(full: Path, hostile: Path) -> None:
    for folder in (full, hostile):
        text = (folder / "report.html").read_text("utf-8")
        page = Page(text)
        assert [dict(a).get("type") for t, a in page.tags if t == "script"] == ["application/json", None]
        for tag, attributes in page.tags:
            assert not [name for name in attributes if name.startswith("on")], tag
            assert tag not in ("img", "link", "iframe", "object", "embed", "base")
            for name in ("src", "href", "xlink:href", "action", "data"):
                assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
        assert not re.findall(r"url\((?!#)", text)
        assert "default-src 'none'" in text
        identifiers = [a["id"] for _, a in page.tags if "id" in a]
        assert len(identifiers) == len(set(identifiers))


def test_hostile_texts_are_shown_as_they_are(hostile: Path) -> None:
    data = json.loads(Page((hostile / "report.html").read_text("utf-8")).scripts[0])
    shown = [response["text"] for item in data["sets"][0]["items"] for response in item["responses"]]
    for text in HOSTILE:
        assert f"baseline {text}" in shown
        assert f"{NAME} {text}" in shown
    text = (hostile / "report.md").read_text("utf-8")
    assert "<img" not in text.replace("\\<img", "")


def test_lone_surrogates_stay_inside_json() -> None:
    text = script_json({"text": "\ud800 </script> \u2028"})
    assert text.isascii()
    assert "<" not in text
    assert json.loads(text) == {"text": "\ud800 </script> \u2028"}


def test_two_reports_of_one_run_are_the_same(full: Path) -> None:
    first = contents_of(full)
    write_report(full)
    assert contents_of(full) == first


@pytest.mark.parametrize("rates", [{"ppo": 0.5}, {"own": 1.0, "other": 0.0}])
def test_a_bare_run_has_a_report(tmp_path: Path, rates: dict[str, float]) -> None:
    folder = build(tmp_path, rates=rates, extras=False, n=6)
    write_report(folder)
    page = (folder / "report.html").read_text("utf-8")
    assert page.count("<svg") == 1
    assert "This run trained no policy." in page
    assert "No method of this run has a human score" in page


def test_one_instruction_has_no_interval_and_says_so(tmp_path: Path) -> None:
    run = RunData(build(tmp_path, rates={"ppo": 1.0}, extras=False, n=1))
    assert "ppo is not told apart from the baseline: 100.0 % preferred, one instruction only" in findings.headline(run)
    write_report(tmp_path)


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        write_report(tmp_path)
    (tmp_path / "config.json").write_text('{"config": {}}', "utf-8")
    with pytest.raises(RunError, match="no win rates"):
        write_report(tmp_path)
    (tmp_path / "config.json").write_text("{", "utf-8")
    with pytest.raises(RunError, match="cannot be read"):
        write_report(tmp_path)


def test_the_headline_claims_only_what_intervals_bear(tmp_path: Path) -> None:
    text = findings.headline(RunData(build(tmp_path / "a", rates={"up": 0.9, "mid": 0.5, "low": 0.1}, extras=False)))
    assert re.match(r"On 40 instructions, up \(90.0 % preferred, 95 % interval .*\) beats the baseline; low \(", text)
    assert "loses to the baseline. Not told apart from the baseline: mid; its interval includes 50 %." in text
    text = findings.headline(RunData(build(tmp_path / "b", rates={"x": 0.5, "y": 0.55}, extras=False)))
    assert "no method is told apart from the baseline: every interval includes 50 %. The highest is y with" in text
    # of one instruction there is no interval that could include anything
    text = findings.headline(RunData(build(tmp_path / "c", rates={"x": 1.0, "y": 0.0}, extras=False, n=1)))
    assert "no method is told apart from the baseline. The highest is x with" in text


def test_a_lead_that_is_one_of_length_is_named(tmp_path: Path) -> None:
    run = RunData(build(tmp_path, rates={"up": 0.9, "mid": 0.5}, extras=False))
    assert re.match(r"At the baseline's length the win rate would be: up \d\d", findings.at_equal_length(run))
    rates = pd.DataFrame({"generator": ["up"], "lc_win_rate": [55.0], "ci_low": [45.0], "ci_high": [64.0], "note": ""})
    tables.write_table(rates, tmp_path / "evaluation/length_controlled.csv")
    assert findings.at_equal_length(run).endswith(
        "up 55.0 % (95 % interval 45.0 to 64.0). The lead of up may be one of length."
    )
    assert findings.at_equal_length(RunData(build(tmp_path / "b", rates={"x": 0.5}, extras=False))) == ""


def test_a_second_draw_of_the_baseline_is_checked(tmp_path: Path) -> None:
    assert "as it should" in findings.check_of_procedure(RunData(build(tmp_path / "a", extras=False)))
    odd = RunData(build(tmp_path / "b", rates={"sft": 0.95}, extras=False))
    assert "excludes it" in findings.check_of_procedure(odd)
    assert findings.check_of_procedure(RunData(build(tmp_path / "c", rates={"ppo": 0.5}, extras=False))) == ""


def write_samples(folder: Path, reward: np.ndarray, gold: np.ndarray) -> RunData:
    n, k = reward.shape
    keys = pd.DataFrame({"id": np.repeat([f"i{i}" for i in range(n)], k), "sample": [f"{j:05}" for j in range(k)] * n})
    tables.write_table(keys.assign(reward=reward.ravel()), folder / "samples/eval_rewards.parquet")
    tables.write_table(keys.assign(gold=gold.ravel()), folder / "evaluation/sample_gold.parquet")
    return RunData(folder)


def test_planted_over_optimization_is_found_and_its_absence_is_not_claimed(tmp_path: Path) -> None:
    reward = np.random.default_rng(1).normal(size=(200, 16))
    hump = write_samples(tmp_path / "hump", reward, 0.6 - 0.1 * (reward - 0.8) ** 2)
    found = optimum(hump)
    assert found is not None
    assert 1 < found.n_peak < 16
    assert found.over_optimizes
    assert "over-optimization" in findings.over_optimization(found)
    rising = optimum(write_samples(tmp_path / "rising", reward, 0.5 + 0.05 * reward))
    assert rising is not None
    assert rising.n_peak == rising.n_max == 16
    assert rising.gain.ci_low > 0
    assert "no over-optimization is seen as far as this run went" in findings.over_optimization(rising)
    noise = optimum(write_samples(tmp_path / "noise", reward, np.random.default_rng(2).uniform(size=(200, 16))))
    assert noise is not None
    assert not noise.over_optimizes
    assert optimum(write_samples(tmp_path / "one", reward[:, :1], reward[:, :1])) is None
    assert findings.over_optimization(None) == ""


def test_the_correlation_says_what_its_number_of_methods_can_bear(full: Path) -> None:
    text = findings.against_humans(RunData(full))
    assert "over 3 methods" in text
    assert "With 3 methods even a perfect match has p = 0.33" in text
    assert "compare the order" in text


def test_an_own_ranking_that_is_gone_leaves_points_without_errors(tmp_path: Path) -> None:
    folder = build(tmp_path, extras=False)
    record = json.loads((folder / "config.json").read_text("utf-8"))
    record["config"]["evaluation"]["human_ranking"] = str(tmp_path / "gone.csv")
    (folder / "config.json").write_text(json.dumps(record), "utf-8")
    both = pd.DataFrame({"generator": ["ppo", "sft"], "win_rate": [50.0, 50.0], "score": [55.1, 44.3]})
    tables.write_table(both, folder / "evaluation/against_humans.csv")
    humans = RunData(folder).humans
    assert humans is not None
    assert humans["score_error"].isna().all()
    assert "2 methods of this run have a human score; a rank correlation needs three" in findings.against_humans(
        RunData(folder)
    )


def test_tastes_of_a_known_annotator() -> None:
    labels = pd.DataFrame(
        {
            "instruction": list("abcdef"), "output_1": "xx", "output_2": ["x", "x", "xxx", "xxx", "xx", "x"],
            "preference": [1, 1, 2, 2, 1, None], "preference_clean": [1, 1, 2, 2, 1.5, None],
            "flipped": [False, True, False, False, False, None], "annotator": ["a"] * 5 + ["b"],
            "order": ["12", "21", "12", "21", "12", "12"],
        }
    )  # fmt: skip
    shares = annotator_shares(labels).set_index("annotator")
    assert shares.loc["a", "longer"] == 1.0
    assert shares.loc["a", "first"] == 0.5
    assert shares.loc["a", "flipped"] == 0.2
    assert shares.loc["b", "missing"] == 1
    assert np.isnan(shares.loc["b", "longer"])
    assert shares.loc["all", "judged"] == 6


def test_held_out_accuracy_has_an_interval_where_rewards_were_kept_pair_by_pair(full: Path, tmp_path: Path) -> None:
    bare = held_out_accuracy(RunData(full))
    assert (bare["clean"].value, bare["of_length"].value) == (0.7, 0.6)
    assert np.isnan(bare["clean"].ci_low)
    pairs = pd.DataFrame(
        {
            "instruction": list("aabbcc"), "input": "", "output_1": "xx", "output_2": "x",
            "preference": [1, 2, 1, 1, 1.5, 1], "preference_clean": [1, 1, 1, 1, 1.5, None],
            "reward_1": [1.0, 1, 1, 0, 1, 1], "reward_2": [0.0, 0, 1, 1, 0, 0],
        }
    )  # fmt: skip
    tables.write_table(pairs, tmp_path / "reward/held_out.parquet")
    found = held_out_accuracy(RunData(tmp_path))
    assert found["clean"].value == (1 + 1 + 0.5 + 0) / 4
    assert found["noisy"].value == (1 + 0 + 0.5 + 0 + 1) / 5
    assert found["of_length"].value == 1.0
    assert 0 <= found["clean"].ci_low < found["clean"].value < found["clean"].ci_high <= 1


def test_kl_is_given_where_it_is_known(full: Path) -> None:
    run = RunData(full)
    assert kl_of(run, "sft") == 0.0
    assert kl_of(run, "best_of_n") == pytest.approx(np.log(4) - 3 / 4)
    assert kl_of(run, "ppo") == 1.0
    assert kl_of(run, "own") is None


def test_examples_carry_verdicts_and_tags(full: Path) -> None:
    evaluation, training = json.loads(examples(RunData(full)))["sets"]
    assert evaluation["note"] == "all 40"
    lost, split = evaluation["items"][3], evaluation["items"][5]
    assert "ppo: no verdict" in lost["tags"]
    assert lost["responses"][1]["verdicts"] == ["anna: no verdict (refused); shown in both orders"]
    assert "orders disagree" in split["tags"]
    assert split["responses"][0]["name"] == "baseline"
    assert split["category"] == "plan"
    assert training["items"][1]["responses"][1]["verdicts"] == [
        "anna: prefers output 1, flipped as noise from: prefers output 2; shown first: output 1"
    ]
    assert {"flipped", "held out", "by anna"} <= set(training["items"][1]["tags"])
    assert "no verdict" in training["items"][2]["tags"]


def test_examples_fit_their_budget(tmp_path: Path) -> None:
    run = RunData(build(tmp_path, texts=["y" * 30_000], n=60, extras=False))
    text = examples(run)
    assert len(text) < BUDGET + 1000
    shown = json.loads(text)["sets"][0]
    assert re.fullmatch(r"\d+ of 60, evenly spaced", shown["note"])
    output = shown["items"][0]["responses"][0]["text"]
    assert output.endswith("more characters)")
    assert len(output) < LONGEST + 100
    items = [{"id": "x" * i} for i in range(20)]
    assert thin(items, 10**6) == items
    assert thin(items, 1) == []


def test_a_template_is_filled_in_one_pass() -> None:
    assert fill("<{{a}}|{{b}}>", {"a": "{{b}} \\1", "b": "x"}) == "<{{b}} \\1|x>"
    with pytest.raises(KeyError):
        fill("{{c}}", {})


def test_tables_are_escaped_in_every_format() -> None:
    table = Table("a <b> | c", [Column("name"), Column("x %", ".1f")], [[NAME, 1.25], ["plain", None]])
    assert "<img" not in to_html(table)
    assert 'data-value="1.25">1.2<' in to_html(table)
    assert to_markdown(table).splitlines()[-1] == "| plain | – |"
    assert "\\|\\$x\\$" in to_markdown(table)
    assert "plain & --" in to_latex(table)
    assert latex_text("50 % of a_b & $x$ \\") == r"50 \% of a\_b \& \$x\$ \textbackslash{}"


def test_tables_of_a_run(full: Path, tmp_path: Path) -> None:
    table = methods(RunData(full))
    assert [row[0] for row in table.rows] == ["best_of_n", "ppo", "sft", "baseline"]
    assert table.columns[-1].header == "human %"
    bare = RunData(build(tmp_path, rates={"ppo": 0.5}, extras=False))
    assert methods(bare).columns[-1].header == "lost"
    assert differences(bare) is None


def test_results_fit_the_terminal(full: Path, hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_results(full)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines()[:-1])) <= 100
    assert "best_of_n" in shown
    assert " ".join(findings.headline(RunData(full)).split()) in " ".join(shown.split())
    assert shown.splitlines()[-1] == f"Report: {full / 'report.html'}"
    print_results(hostile)
    assert "$x$" in capsys.readouterr().out


def test_disagreement_of_annotators_is_counted_on_what_both_judged(tmp_path: Path) -> None:
    rows = [
        {
            "instruction": f"q{i}",
            "input": "",
            "output_1": "a",
            "output_2": "b",
            "annotator": name,
            "preference_clean": p,
        }
        for i in range(20)
        for name, p in (("anna", 1.0), ("bert", 2.0 if i < 5 else 1.2), ("cleo", 1.5 if i else 1.0))
    ]
    rows += [{**row, "preference_clean": 2.0 if i < 8 else 1.0} for i, row in enumerate(rows[::3])]
    tables.write_table(pd.DataFrame(rows), tmp_path / "labels.parquet")
    table = disagreements(RunData(tmp_path))
    assert table is not None
    found = table.set_index(["annotator_a", "annotator_b"])
    # anna said 1 of all, then 2 of the first eight; bert said 2 of the first five
    assert found.loc[("anna", "bert"), ["n", "disagree"]].to_list() == [40, pytest.approx((5 + 3) / 40)]
    assert found.loc[("bert", "anna"), "disagree"] == found.loc[("anna", "bert"), "disagree"]
    assert found.loc[("anna", "anna"), ["n", "disagree"]].to_list() == [20, pytest.approx(8 / 20)]
    # cleo's verdicts are ties but for one
    assert np.isnan(found.loc[("anna", "cleo"), "disagree"])
    row = found.loc[("anna", "bert")]
    assert row["low"] < row["disagree"] < row["high"]
    tables.write_table(pd.DataFrame(rows[:1]), tmp_path / "labels.parquet")
    assert disagreements(RunData(tmp_path)) is None
