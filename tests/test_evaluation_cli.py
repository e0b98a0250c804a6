import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy.special import expit

from simfarm.annotators.fake import quality
from simfarm.annotators.pool import load_pool
from simfarm.cli import cli
from simfarm.errors import ConfigError, DataError, SimfarmError, UnknownNameError

WORDS = [
    "red",
    "green",
    "blue",
    "soft",
    "hard",
    "old",
    "new",
    "warm",
    "cold",
    "big",
    "small",
    "loud",
    "quiet",
    "near",
    "far",
]


def run(*arguments):
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if not line.startswith("/")]
    assert max(map(len, lines)) <= 100 or result.output[0] in "{[g"
    return result.output


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    rows, human = [], []
    for i in range(80):
        instruction = " ".join(rng.choice(WORDS, 6, replace=False)) + f" {i}"
        ease = rng.normal()
        for name, skill in (("strong", 0.8), ("middle", 0.0), ("weak", -0.8)):
            texts = [" ".join(rng.choice(WORDS, int(rng.integers(4, 16)))) + f" {name}" for _ in range(2)]
            base = {"instruction": instruction, "output_1": texts[0], "output_2": texts[1],
                    "generator_1": "base", "generator_2": name}  # fmt: skip
            for annotator in ("a", "b", "c"):
                p = expit(skill + ease)
                verdict = 1.0 + (rng.random() < p) if rng.random() > 0.1 else (1.5 if rng.random() < 0.5 else None)
                order = "12" if rng.random() < 0.5 else "21"
                reason = "" if verdict else "refused"
                rows.append({**base, "annotator": annotator, "order": order, "preference": verdict, "reason": reason})
            gap = quality(instruction, texts[0]) - quality(instruction, texts[1])
            for person in ("p", "q"):
                vote = 2.0 - (rng.random() < expit(gap / 1.5))
                human.append({**base, "annotator": person, "preference": vote})
    paths = {"labels": tmp_path / "labels.jsonl", "human": tmp_path / "human.csv", "ranking": tmp_path / "ranking.csv"}
    paths["labels"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    pd.DataFrame(human).to_csv(paths["human"], index=False)
    ranking = pd.DataFrame({"generator": ["strong", "middle", "weak", "base"], "score": [1300, 1200, 1100, 1190]})
    ranking.assign(standard_error=8.0).to_csv(paths["ranking"], index=False)
    return paths


def test_winrate(files):
    out = run("winrate", files["labels"], "--length-controlled", "--covariates", "length")
    assert "Win rate against base" in out
    assert "refused" in out
    assert "Win rate at equal style" in out
    assert out.index("strong") < out.index("weak")
    tables = json.loads(run("winrate", files["labels"], "--json"))
    assert {row["generator"] for row in tables["win_rates"]} == {"strong", "middle", "weak"}
    assert len(tables["differences"]) == 3
    assert run("winrate", files["labels"], "--csv", "--table", "differences").startswith("generator_a,")


def test_winrate_errors_name_the_nearest(files):
    with pytest.raises(UnknownNameError, match="Did you mean 'base'"):
        run("winrate", files["labels"], "--baseline", "bas")
    with pytest.raises(UnknownNameError, match="Did you mean 'differences'"):
        run("winrate", files["labels"], "--csv", "--table", "difference")
    with pytest.raises(ConfigError, match="--difficulty"):
        run("winrate", files["labels"], "--length-controlled", "alpacaeval")


def test_winrate_alpacaeval_with_weights_and_with_gamed_rows(files, tmp_path):
    table = pd.read_json(files["labels"], lines=True)
    names = table["instruction"].unique()
    pd.DataFrame({"instruction": names, "difficulty": np.linspace(-1, 1, len(names))}).to_csv(tmp_path / "d.csv")
    weights = pd.DataFrame({"generator": ["strong", "middle", "weak"], "a": -1.0, "b": 1.0, "c": [1.0, 0.0, -1.0]})
    weights.to_csv(tmp_path / "w.csv", index=False)
    given = ("winrate", files["labels"], "--length-controlled", "alpacaeval", "--difficulty", tmp_path / "d.csv")
    found = json.loads(run(*given, "--weights", tmp_path / "w.csv", "--json"))["length_controlled"]
    assert found[1]["lc_win_rate"] == pytest.approx(50, abs=1)
    rng = np.random.default_rng(0)
    gamed = pd.DataFrame({"std_delta_len": rng.normal(size=60), "instruction_difficulty": rng.normal(size=60)})
    gamed["preference"] = 1.0 + (rng.random(60) < expit(gamed["instruction_difficulty"]))
    gamed.to_csv(tmp_path / "df_gamed.csv", index=False)
    assert "AlpacaEval 2's length-controlled" in run(*given, "--gamed", tmp_path / "df_gamed.csv")
    weights.iloc[:2].to_csv(tmp_path / "w.csv", index=False)
    assert "no length-controlled win rate: weak" in " ".join(run(*given, "--weights", tmp_path / "w.csv").split())
    weights.assign(generator=["stronk", "middel", "week"]).to_csv(tmp_path / "w.csv", index=False)
    with pytest.raises(UnknownNameError, match="Did you mean 'stronk'"):
        run(*given, "--weights", tmp_path / "w.csv")


def test_rank(files):
    out = run("rank", files["labels"], "--human", files["ranking"], "--bootstrap", 50)
    for part in ("Ranking (Elo points", "Is each truly above", "spearman", "agreement with confidence"):
        assert part in out
    tables = json.loads(run("rank", files["labels"], "--style", "length", "--json"))
    assert tables["style"][0]["covariate"] == "length"
    assert tables["ranking"][0]["generator"] == "strong"


def test_rank_against_a_human_ranking_that_lacks_a_method(files, tmp_path):
    ranking = pd.read_csv(files["ranking"])
    ranking[ranking["generator"] != "weak"].to_csv(tmp_path / "r.csv", index=False)
    assert "not in the human ranking and left out there: weak" in " ".join(
        run("rank", files["labels"], "--human", tmp_path / "r.csv", "--bootstrap", 20).split()
    )
    ranking.head(2).to_csv(tmp_path / "r.csv", index=False)
    with pytest.raises(DataError, match="three or more"):
        run("rank", files["labels"], "--human", tmp_path / "r.csv", "--bootstrap", 20)


def test_diagnose(files):
    out = run("diagnose", files["labels"], "--human", files["human"], "--bootstrap", 30, "--self", "a=strong")
    for part in ("Agreement with people", "(longest)", "(humans)", "Self-preference", "err together", "Krippendorff"):
        assert part in out
    with pytest.raises(ConfigError, match="ANNOTATOR=GENERATOR"):
        run("diagnose", files["labels"], "--human", files["human"], "--self", "a")


def test_power(files):
    out = run("power", "--difference", 5, "--price", 0.5, "--labels-per-day", 500)
    assert "Labels to tell two apart" in out
    assert "cost" in out
    out = run("power", "--pilot", files["labels"], "--baseline", "base", "--pair", "strong,weak")
    assert "Which comparisons to buy next" in out
    assert "detectable" in run("power", "--instructions", 200)
    with pytest.raises(ConfigError, match="Did you mean 'strong'"):
        run("power", "--pilot", files["labels"], "--pair", "stron,weak")
    with pytest.raises(ConfigError, match="--difference"):
        run("power")


def test_calibrate(files, tmp_path):
    out = tmp_path / "fitted"
    text = run("calibrate", "fake-biased", "--human", files["human"], "--out", out, "--bootstrap", 10)
    assert "On pairs the fit had not seen" in text
    pool = load_pool(out)
    weights = {m.name: m.weight for m in pool.config.members}
    assert sum(weights.values()) == pytest.approx(1, abs=1e-4)
    # the people judge by quality, with noise, and not by length
    assert weights["noisy"] > weights["long-lover"]
    assert "data sha256" in pool.config.description
    with pytest.raises(ConfigError, match="is there already"):
        run("calibrate", "fake-biased", "--human", files["human"], "--out", out)
    text = json.loads(
        run("calibrate", "fake-biased", "--human", files["human"], "--out", tmp_path / "x", "--bootstrap", 5, "--json")
    )
    assert text["parameters"][0]["parameter"].startswith("weight of")


def test_errors_are_one_paragraph(files, tmp_path):
    bad = pd.read_json(files["labels"], lines=True).assign(preference=3)
    bad.to_csv(tmp_path / "bad.csv", index=False)
    for verb in ("winrate", "rank"):
        with pytest.raises(SimfarmError, match="preference is"):
            run(verb, tmp_path / "bad.csv")


def test_tables_say_nothing_where_nothing_is_known(files, tmp_path):
    table = pd.read_json(files["labels"], lines=True)
    one = table[table["instruction"] == table["instruction"].iloc[0]]
    one.to_csv(tmp_path / "one.csv", index=False)
    out = run("winrate", tmp_path / "one.csv", "--baseline", "base")
    assert "one instruction only" in out
    assert "1.0000" not in out
    table[table["generator_2"] == "weak"].assign(preference=1.0).to_csv(tmp_path / "all.csv", index=False)
    out = run("winrate", tmp_path / "all.csv", "--length-controlled")
    assert "not controlled" in out
    assert "±" not in out


def test_many_differences_are_shown_between_neighbours(files, tmp_path):
    table = pd.read_json(files["labels"], lines=True)
    more = [table.assign(generator_2=table["generator_2"] + f" {k}") for k in range(3)]
    pd.concat(more).to_csv(tmp_path / "many.csv", index=False)
    out = run("winrate", tmp_path / "many.csv", "--baseline", "base")
    assert "Differences of each from the next" in out
    assert "all 36 pairs with --csv" in out
