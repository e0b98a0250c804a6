"""The tables of the report, built from a run's files."""

from __future__ import annotations

import importlib.metadata
import platform

import pandas as pd

from simfarm.experiments.config import flatten
from simfarm.report.data import BASELINE, RunData
from simfarm.report.goodhart import FIRST_WORDS, JUDGE, MEASURES
from simfarm.report.goodhart import goodhart as side_by_side
from simfarm.report.measures import annotator_shares, disagreements, judged_for, kl_of, minutes, money
from simfarm.report.tabulate import Cell, Column, Table

PACKAGES = ("numpy", "pandas", "scipy", "torch", "transformers", "matplotlib")


def methods(run: RunData) -> Table:
    """Win rates, with the length, KL and verdicts behind them."""
    rates, names = run.win_rates, run.methods
    humans = _by_name(run.humans, "score")
    controlled = _by_name(run.table("evaluation/length_controlled.csv"), "lc_win_rate")
    parts: list[tuple[Column, list[Cell], Cell]] = [
        (Column("method"), [*names], BASELINE),
        (Column("win rate %", ".1f"), rates["win_rate"].tolist(), None),
        (Column("95 % from", ".1f"), rates["ci_low"].tolist(), None),
        (Column("to", ".1f"), rates["ci_high"].tolist(), None),
        (Column("at equal length %", ".1f"), [controlled.get(name) for name in names], None),
        (Column("discrete %", ".1f"), rates["discrete_win_rate"].tolist(), None),
        (Column("wins", "d"), rates["wins"].tolist(), None),
        (Column("losses", "d"), rates["losses"].tolist(), None),
        (Column("ties", "d"), rates["ties"].tolist(), None),
        (Column("length", ".0f"), rates["mean_length"].tolist(), float(rates["baseline_length"].mean())),
        (Column("KL", ".2f"), [kl_of(run, name) for name in names], 0.0),
        (Column("training min", ".1f"), [minutes(run, name) for name in names], None),
        (Column("judged for US $", ".2f"), [judged_for(run, name) for name in names], None),
        (Column("kept", "d"), rates["n_kept"].tolist(), None),
        (Column("lost", "d"), rates["n_lost"].tolist(), None),
        (Column("human %", ".1f"), [humans.get(name) for name in names], None),
    ]
    # a column about which nothing is known is not shown
    parts = [part for part in parts if any(cell is not None for cell in part[1])]
    rows = [*zip(*(cells for _, cells, _ in parts), strict=True), [baseline for *_, baseline in parts]]
    caption = (
        f"Win rate against the baseline on {rates['n_instructions'].max()} instructions, intervals clustered by "
        "instruction. Discrete: wins and half the ties. Length: mean characters. KL from the initial policy in nats: "
        "by formula for best-of-n, over the last step's rollouts where a method has any. Training: the stages that "
        "make the method's policy or candidates, labels and reward model aside. Kept and lost: verdicts."
    )
    return Table(caption, [column for column, *_ in parts], rows)


def length_controlled(run: RunData) -> Table | None:
    """The win rates that methods would have if their responses were as long as the baseline's."""
    table = run.table("evaluation/length_controlled.csv")
    if table is None:
        return None
    columns = [
        Column("method"), Column("at equal length %", ".1f"), Column("95 % from", ".1f"), Column("to", ".1f"),
        Column("as it is %", ".1f"), Column("effect of length", "+.2f"), Column("standard error", ".2f"),
        Column("note"),
    ]  # fmt: skip
    fields = ["generator", "lc_win_rate", "ci_low", "ci_high", "win_rate", "effect_length", "effect_length_se", "note"]
    known = table.reindex(columns=fields).astype(object)
    caption = (
        "Win rates if responses were as long as the baseline's, by a logistic fit. Effect: log-odds of winning per "
        "standard deviation of the difference in length."
    )
    return Table(caption, columns, known.where(known.notna(), None).to_numpy().tolist())


def goodhart(run: RunData) -> Table | None:
    """Proxy, judge, gold, length and diversity of every method."""
    table = side_by_side(run)
    if table is None:
        return None
    shown = {
        "proxy": ("proxy, sd", "+.2f"), "judge": ("judge %", ".1f"), "gold": ("gold %", ".1f"),
        "length": ("length", ".0f"), "diversity": ("distinct-2 %", ".1f"),
    }  # fmt: skip
    columns = [Column("method")]
    for header, form in shown.values():
        columns += [Column(header, form), Column("95 % from", form), Column("to", form)]
    fields = ["generator", *(f"{measure}{end}" for measure in MEASURES for end in ("", "_ci_low", "_ci_high"))]
    cells = table[fields].astype(object)
    caption = (
        "Proxy: the reward model's mean lead over the baseline on the same instruction, in standard deviations of the "
        "baseline's rewards. Judge: preferred to the baseline by the annotators of the training labels, with their "
        "noise; gold: by the pool without noise. Length: mean characters. Distinct-2: different pairs of neighbouring "
        f"words among all in the first {FIRST_WORDS} words of every response. Intervals are clustered by instruction."
    )
    return Table(caption, columns, cells.where(cells.notna(), None).to_numpy().tolist())


def _by_name(table: pd.DataFrame | None, column: str) -> dict[str, float]:
    return {} if table is None else dict(zip(table["generator"].astype(str), table[column].astype(float), strict=True))


def differences(run: RunData) -> Table | None:
    """The paired differences of methods."""
    table = run.table("evaluation/paired_differences.csv")
    if table is None:
        return None
    columns = [
        Column("a"), Column("b"), Column("a − b, points", "+.1f"), Column("95 % from", ".1f"), Column("to", ".1f"),
        Column("p", ".3f"), Column("p, Holm", ".3f"), Column("instructions", "d"),
    ]  # fmt: skip
    fields = ["generator_a", "generator_b", "difference", "ci_low", "ci_high", "p", "p_adjusted", "n_instructions"]
    caption = (
        "Differences of win rates against the baseline, paired by instruction. Intervals each on their own; Holm's p "
        "is adjusted for all pairs."
    )
    return Table(caption, columns, table[fields].astype(object).to_numpy().tolist())


def tables(run: RunData) -> dict[str, Table]:
    """Return the tables that are also written as files, by name; one that the run has no data for is left out."""
    found = {
        "methods": methods(run), "length_controlled": length_controlled(run), "differences": differences(run),
        "goodhart": goodhart(run), "annotators": annotators(run), "disagreement": disagreement(run),
        "reward_model": rewards(run),
    }  # fmt: skip
    return {name: table for name, table in found.items() if table is not None}


def disagreement(run: RunData) -> Table | None:
    """How often each two annotators disagree."""
    table = disagreements(run)
    if table is None:
        return None
    columns = [
        Column("annotator"), Column("and"), Column("verdicts", ".0f"), Column("disagree %", ".1f"),
        Column("95 % from", ".1f"), Column("to", ".1f"),
    ]  # fmt: skip
    upper = table[[list(table["annotator_a"]).index(a) <= list(table["annotator_a"]).index(b)
                   for a, b in zip(table["annotator_a"], table["annotator_b"], strict=True)]]  # fmt: skip
    rows = upper.assign(**{column: 100 * upper[column] for column in ("disagree", "low", "high")})
    caption = "Disagreement on the comparisons that both judged; an annotator with itself: asked again."
    return Table(caption, columns, rows.astype(object).to_numpy().tolist())


def annotators(run: RunData) -> Table | None:
    """Who judged what, and with which tastes."""
    labels = run.table("labels.parquet")
    if labels is None:
        return None
    shares = annotator_shares(labels)
    columns = [
        Column("annotator"), Column("labels", "d"), Column("missing", "d"), Column("flipped %", ".1f"),
        Column("chose longer %", ".0f"), Column("95 % from", ".0f"), Column("to", ".0f"),
        Column("chose first shown %", ".0f"), Column("from", ".0f"), Column("to", ".0f"),
    ]  # fmt: skip
    percent = ["flipped", "longer", "longer_low", "longer_high", "first", "first_low", "first_high"]
    scaled = shares.assign(**{column: 100 * shares[column] for column in percent})
    caption = "The labels for training. Tastes are of clean verdicts that are no tie, before any is flipped."
    fields = ["annotator", "judged", "missing", *percent]
    return Table(caption, columns, scaled[fields].astype(object).to_numpy().tolist())


def rewards(run: RunData) -> Table | None:
    """The reward model's accuracy on both parts."""
    found = run.json("reward/accuracy.json")
    if found is None:
        return None
    columns = [
        Column("part"), Column("pairs", "d"), Column("right on clean %", ".1f"), Column("right on noisy %", ".1f"),
        Column("longer is right %", ".1f"),
    ]  # fmt: skip

    def percent(key: str) -> float | None:
        return 100 * float(found[key]) if found.get(key) is not None else None

    rows: list[list[Cell]] = [
        [
            name, int(found[f"{part}_pairs"]), percent(f"{part}_accuracy_clean"), percent(f"{part}_accuracy_noisy"),
            percent(f"{part}_accuracy_of_length"),
        ]
        for part, name in (("train", "trained on"), ("test", "held out"))
        if f"{part}_pairs" in found
    ]  # fmt: skip
    caption = (
        "Share of pairs that the reward model orders as the labels do (ties left out), and that length alone does."
    )
    return Table(caption, columns, rows)


def provenance(run: RunData) -> Table:
    """What made these numbers."""
    texts = [
        ("experiment", run.setting("name")), ("seed", run.setting("seed")), ("simfarm", run.record.get("simfarm")),
        ("model", run.setting("policy.model")), ("pool for labels", run.setting("annotation.pool")),
        ("pool for evaluation", run.setting("evaluation.pool")),
        *((f"hash of {name}", value) for name, value in run.record.get("inputs", {}).items()),
        ("money for labels", f"{_money(run, 'labels.parquet')} for training, "
                             f"{_money(run, 'evaluation/labels.parquet')} for evaluation{_judge_money(run)}"),
        *_prices(run),
        ("report written with", f"Python {platform.python_version()}, {', '.join(_versions())}"),
        ("report written on", f"{platform.system()} {platform.machine()}"),
    ]  # fmt: skip
    caption = "Where the numbers come from."
    return Table(caption, [Column("what"), Column("value")], [[key, str(value)] for key, value in texts])


def _prices(run: RunData) -> list[tuple[str, str]]:
    """Return the unit prices that the run recorded when it began."""
    prices = run.record.get("prices")
    if prices is None:
        return [("unit prices", "not recorded by the version that began the run")]
    return [(f"price of {name}", str(price)) for name, price in prices.items()]


def _versions() -> list[str]:
    known = {d.name for d in importlib.metadata.distributions()}
    return [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES if name in known]


def _judge_money(run: RunData) -> str:
    """Return what the judge's verdicts cost, where they were not the evaluation's own, turned round by noise."""
    same = run.setting("annotation.pool") == run.setting("evaluation.pool")
    return "" if same or run.table(JUDGE) is None else f", {_money(run, JUDGE)} for the judge"


def _money(run: RunData, name: str) -> str:
    cost = money(run, name)
    return "unknown (no price recorded)" if cost is None else f"{cost:.2f} US dollars"


def stages(run: RunData) -> Table | None:
    """Seconds per stage."""
    if not run.seconds:
        return None
    rows: list[list[Cell]] = [[stage.replace("_", " "), seconds] for stage, seconds in run.seconds.items()]
    rows.append(["all", float(sum(run.seconds.values()))])
    return Table("Time of each stage.", [Column("stage"), Column("seconds", ",.1f")], rows)


def config(run: RunData) -> Table:
    """The resolved config, one key a row."""
    rows = [[key, str(value)] for key, value in flatten(run.config)]
    caption = "The resolved config. The same run again: simfarm run config.json --out NEW_DIRECTORY"
    return Table(caption, [Column("key"), Column("value")], rows)
