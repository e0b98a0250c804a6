"""Proxy, judge, gold, length and diversity side by side: planted cases, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report import NAME, Page, build

from simfarm import tables
from simfarm.report import contents, findings
from simfarm.report.data import RunData
from simfarm.report.goodhart import crossed, distinct_2, goodhart, parted_trainings
from simfarm.report.html import write_report

REWARDS = "evaluation/output_rewards.parquet"


def plant(folder: Path, methods: dict[str, tuple[float, float]], *, n: int = 40) -> RunData:
    """Write a run in which each method has a win rate, and a lead in the proxy in standard deviations."""
    build(folder, rates={name: rate for name, (rate, _) in methods.items()}, n=n, extras=False)
    labels = tables.read_table(folder / "evaluation/labels.parquet")
    asked = labels.drop_duplicates(["instruction", "input"])[["instruction", "input"]]
    rng = np.random.default_rng(0)
    base = rng.normal(size=n)
    base = (base - base.mean()) / base.std(ddof=1)
    rewards = {"baseline": base, **{m: base + lead + 0.2 * rng.normal(size=n) for m, (_, lead) in methods.items()}}
    scored = [asked.assign(generator=name, reward=2 * values) for name, values in rewards.items()]
    tables.write_table(pd.concat(scored, ignore_index=True), folder / REWARDS)
    tables.write_table(labels, folder / "evaluation/judge.parquet")
    return RunData(folder)


def test_every_measure_stands_beside_the_others(tmp_path: Path) -> None:
    run = plant(tmp_path, {"low": (0.1, 1.0), "high": (0.9, 0.5)})
    found = goodhart(run)
    assert found is not None
    assert list(found["generator"]) == ["high", "low", "baseline"]
    table = found.set_index("generator")
    assert table.loc["low", "proxy"] == pytest.approx(1.0, abs=0.1)
    assert table.loc["low", "proxy_ci_low"] < table.loc["low", "proxy"] < table.loc["low", "proxy_ci_high"]
    assert table.loc["high", "gold"] == table.loc["high", "judge"] == pytest.approx(90)
    assert table.loc["baseline", ["proxy", "judge", "gold"]].to_list() == [0, 50, 50]
    assert np.isnan(table.loc["baseline", "gold_ci_low"])
    labels = tables.read_table(tmp_path / "evaluation/labels.parquet")
    assert table.loc["baseline", "length"] == labels["output_1"].str.len().mean()
    assert table.loc["low", "length"] == labels.loc[labels["generator_2"] == "low", "output_2"].str.len().mean()
    shown = contents.goodhart(run)
    assert shown is not None and len(shown.columns) == 16 and shown.rows[-1][0] == "baseline"


def test_what_the_judge_did_not_say_is_missing_and_not_a_guess(tmp_path: Path) -> None:
    run = plant(tmp_path, {"a": (0.5, 1.0), "b": (0.5, 1.0)})
    judge = tables.read_table(tmp_path / "evaluation/judge.parquet")
    judge["preference"] = judge["preference"].astype(float).mask(judge["generator_2"] == "a")
    tables.write_table(judge, tmp_path / "evaluation/judge.parquet")
    found = goodhart(run)
    assert found is not None
    table = found.set_index("generator")
    assert np.isnan(table.loc["a", "judge"]) and table.loc["b", "judge"] == 50
    write_report(tmp_path)


def test_distinct_2_by_hand() -> None:
    # a-b, b-a, a-b and a-b, b-c: five pairs, three different
    assert distinct_2(["a b A b", "a b c"]).value == pytest.approx(60)
    assert distinct_2(["a b", "c d"]).value == 100
    assert np.isnan(distinct_2(["a b", "c d"]).ci_low)
    assert np.isnan(distinct_2(["alone", ""]).value)
    # what stands after the first words does not count
    text = "one two three four"
    assert distinct_2([text, text + " one two" * 30], first=4) == distinct_2([text, text], first=4)


words = st.lists(st.lists(st.sampled_from("abcd"), max_size=6).map(" ".join), min_size=3, max_size=8)


@given(words)
def test_distinct_2_has_the_jackknife_of_its_definition(texts: list[str]) -> None:
    found = distinct_2(texts)
    assert distinct_2(texts[::-1]).value == found.value or np.isnan(found.value)
    if not np.isfinite(found.ci_low):
        return
    without = np.array([distinct_2(texts[:i] + texts[i + 1 :]).value for i in range(len(texts))])
    n = len(texts)
    assert found.standard_error == pytest.approx(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))
    assert 0 <= found.ci_low <= found.value <= found.ci_high <= 100


def test_gold_below_and_proxy_above_the_baseline_is_over_optimized(tmp_path: Path) -> None:
    (text,) = findings.parting(plant(tmp_path, {"ppo": (0.1, 1.0), "sft": (0.5, 0.0)}))
    assert text.startswith("Proxy and gold part: the reward model scores ppo (proxy +1.0")
    assert "gold 10.0 % preferred, 95 % interval" in text and text.endswith("This method is over-optimized.")
    assert text in findings.conclusions(RunData(tmp_path))


def test_a_gain_that_gold_does_not_show_is_said_more_weakly(tmp_path: Path) -> None:
    (text,) = findings.parting(plant(tmp_path, {"ppo": (0.5, 1.0), "rloo": (0.55, 1.0)}))
    assert text == (
        "The reward model scores rloo and ppo above the baseline, but gold does not tell them apart from the baseline: "
        "the gain in proxy is not seen in gold."
    )


def test_where_nothing_parts_one_sentence_says_so(tmp_path: Path) -> None:
    (text,) = findings.parting(plant(tmp_path / "up", {"ppo": (0.9, 1.0), "sft": (0.5, 0.0)}))
    assert text == "Proxy and gold are not seen to part: ppo is above the baseline in both, beyond its interval."
    (text,) = findings.parting(plant(tmp_path / "flat", {"sft": (0.5, 0.0)}))
    assert "no method above the baseline" in text
    (text,) = findings.parting(plant(tmp_path / "down", {"sft": (0.1, -1.0)}))
    assert "no method above the baseline" in text


def test_methods_in_opposite_orders_are_named(tmp_path: Path) -> None:
    run = plant(tmp_path / "a", {"ppo": (0.6, 1.5), "best_of_n": (0.95, 0.5)}, n=100)
    pairs = crossed(run)
    assert pairs[["by_proxy", "by_gold"]].to_numpy().tolist() == [["ppo", "best_of_n"]]
    assert pairs["proxy"].iloc[0] == pytest.approx(1, abs=0.1) and pairs["gold"].iloc[0] == pytest.approx(35)
    assert any("the proxy puts ppo above best_of_n by 1.0" in text for text in findings.parting(run))
    assert crossed(plant(tmp_path / "b", {"ppo": (0.95, 1.5), "best_of_n": (0.6, 0.5)}, n=100)).empty
    assert crossed(plant(tmp_path / "c", {"ppo": (0.58, 1.5), "best_of_n": (0.6, 0.5)}, n=100)).empty


def looks(folder: Path, gold: list[float], proxy: list[float]) -> RunData:
    rng, n = np.random.default_rng(0), 60
    rows = [
        {"id": f"i{i}", "step": 4 * k, "kl": 0.1 * k, "proxy": p + 0.1 * rng.normal(), "gold": g + 0.05 * rng.normal()}
        for k, (g, p) in enumerate(zip(gold, proxy, strict=True))
        for i in range(n)
    ]
    tables.write_table(pd.DataFrame(rows), folder / "overoptimization/ppo.parquet")
    return RunData(folder)


def test_a_training_that_went_on_too_long_is_named_with_its_step(tmp_path: Path) -> None:
    (found,) = parted_trainings(looks(tmp_path / "a", [0.5, 0.6, 0.7, 0.5], [0, 1, 2, 3]))
    assert (found.method, found.peak.position, found.peak.end) == ("ppo", 8, 12)
    assert found.peak.fall.value == pytest.approx(-20, abs=2) and found.rise.value == pytest.approx(1, abs=0.1)
    (text,) = findings.parting(RunData(tmp_path / "a"))
    assert text.startswith("Along the training of ppo proxy and gold part: gold is highest at step 8")
    # gold does not fall; or the proxy does not go on
    assert not parted_trainings(looks(tmp_path / "b", [0.5, 0.6, 0.7, 0.7], [0, 1, 2, 3]))
    assert not parted_trainings(looks(tmp_path / "c", [0.5, 0.6, 0.7, 0.5], [0, 1, 2, 2]))


def test_the_panel_is_in_the_report(tmp_path: Path) -> None:
    plant(tmp_path, {NAME: (0.1, 1.0), "ppo": (0.8, 1.0)})
    write_report(tmp_path)
    page, text = (tmp_path / "report.html").read_text("utf-8"), (tmp_path / "report.md").read_text("utf-8")
    part = page[page.index('<section id="overoptimization"') : page.index('<section id="reward"')]
    assert part.count("<svg") == 1 and part.count("<table") == 1
    assert "](figures/goodhart.png)" in text and "over-optimized" in text
    assert not [tag for tag, _ in Page(page).tags if tag in ("img", "iframe")]
    assert len(pd.read_csv(tmp_path / "tables/goodhart.csv")) == 3 and (tmp_path / "tables/goodhart.tex").is_file()


def test_a_run_without_rewards_of_its_outputs_has_no_panel(tmp_path: Path) -> None:
    run = RunData(build(tmp_path, extras=False))
    assert goodhart(run) is None and contents.goodhart(run) is None and findings.parting(run) == []
    write_report(tmp_path)
    assert not (tmp_path / "figures/goodhart.svg").exists()
    # rewards that do not vary give no scale
    plant(tmp_path, {"ppo": (0.5, 1.0)})
    flat = tables.read_table(tmp_path / REWARDS).assign(reward=1.0)
    tables.write_table(flat, tmp_path / REWARDS)
    assert goodhart(RunData(tmp_path)) is None
