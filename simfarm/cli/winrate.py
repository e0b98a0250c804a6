"""`simfarm winrate`: how often each generator is preferred to the baseline."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import cast

import click
import pandas as pd

from simfarm.cli.show import interval, machine_readable, number, output_options, p_value, print_notes, print_table
from simfarm.errors import ConfigError
from simfarm.evaluation.alpacaeval import GamedRows, length_controlled_table
from simfarm.evaluation.length_control import length_controlled
from simfarm.evaluation.style import COVARIATES, Covariate
from simfarm.evaluation.winrate import paired_differences, win_rates
from simfarm.tables import read_table

ENDS = ("ci_low", "ci_high")
MOST_PAIRS = 30


@click.command()
@click.argument("labels", type=click.Path(path_type=Path))
@click.option("--baseline", help="Generator to compare with; may be left out if one takes part in every row.")
@click.option(
    "--length-controlled",
    "control",
    is_flag=False,
    flag_value="simfarm",
    type=click.Choice(["simfarm", "alpacaeval"]),
    help="Win rates at equal length; `alpacaeval` is AlpacaEval 2's own model.",
)
@click.option("--covariates", default="length", show_default=True, help=f"To hold equal, of {','.join(COVARIATES)}.")
@click.option("--difficulty", type=click.Path(path_type=Path), help="alpacaeval: table of instruction, difficulty.")
@click.option("--gamed", type=click.Path(path_type=Path), help="alpacaeval: its df_gamed.csv, to fit the model.")
@click.option("--weights", type=click.Path(path_type=Path), help="alpacaeval: published generator, a, b, c.")
@click.option("--annotators", type=click.Choice(["fixed", "sampled"]), default="fixed", show_default=True,
              help="Whether the result is to hold for other annotators like these as well.")  # fmt: skip
@click.option("--confidence", default=0.95, show_default=True)
@output_options
def winrate(
    labels: Path,
    baseline: str | None,
    control: str | None,
    covariates: str,
    difficulty: Path | None,
    gamed: Path | None,
    weights: Path | None,
    annotators: str,
    confidence: float,
    as_json: bool,
    as_csv: bool,
    which: str | None,
) -> None:
    """Win rates in percent, with intervals clustered by instruction, and differences between generators."""
    table = read_table(labels)
    tables = {
        "win_rates": win_rates(
            table,
            baseline=baseline,
            confidence=confidence,
            annotators="sampled" if annotators == "sampled" else "fixed",
        )
    }
    if len(tables["win_rates"]) > 1:
        tables["differences"] = paired_differences(table, baseline=baseline, confidence=confidence)
    if control == "simfarm":
        names = [c.strip() for c in covariates.split(",") if c.strip()]
        tables["length_controlled"] = length_controlled(
            table,
            baseline=baseline,
            covariates=cast("list[Covariate]", names),
            confidence=confidence,
        )
    elif control == "alpacaeval":
        tables["length_controlled"] = _alpacaeval(table, baseline, difficulty, gamed, weights)
    if machine_readable(tables, as_json=as_json, as_csv=as_csv, which=which):
        return
    print_win_rates(tables, confidence)


def _alpacaeval(
    table: pd.DataFrame, baseline: str | None, difficulty: Path | None, gamed: Path | None, weights: Path | None
) -> pd.DataFrame:
    if difficulty is None or (gamed is None) == (weights is None):
        raise ConfigError(
            "AlpacaEval's length control needs --difficulty FILE (instruction, difficulty) and either --gamed FILE "
            "(alpaca_eval's df_gamed.csv) to fit, or --weights FILE (generator, a, b, c) as published. simfarm's own "
            "needs none of them: --length-controlled."
        )
    rows = None
    if gamed is not None:
        held = read_table(gamed, ["std_delta_len", "instruction_difficulty", "preference"])
        rows = GamedRows.from_table(held)
    published = None if weights is None else read_table(weights, ["a", "b", "c"])
    return length_controlled_table(
        table, read_table(difficulty, ["instruction", "difficulty"]), baseline=baseline, gamed=rows, weights=published
    )


def print_win_rates(tables: dict[str, pd.DataFrame], confidence: float) -> None:
    """Print win rates and what was computed beside them, with notes."""
    rates = tables["win_rates"]
    level = f"{100 * confidence:g}% intervals, clustered by instruction"
    print_table(
        f"Win rate against {rates['baseline'].iloc[0]} (percent, {level})",
        {
            "generator": rates["generator"],
            "win rate": interval(rates, "win_rate", ends=ENDS),
            "discrete": [number(v) for v in rates["discrete_win_rate"]],
            "won/tied/lost": [f"{w}/{t}/{x}" for w, t, x in zip(*(rates[c] for c in ("wins", "ties", "losses")),
                                                                strict=True)],
            "no verdict": rates["n_lost"],
            "instr.": rates["n_instructions"],
            "chars": [number(v, 0) for v in rates["mean_length"]],
        },
    )  # fmt: skip
    notes = [f"{g}: {r}" for g, r in zip(rates["generator"], rates["lost_reasons"], strict=True) if r]
    notes += [f"{g}: {n}" for g, n in zip(rates["generator"], rates["note"], strict=True) if n]
    if "length_controlled" in tables:
        lc = tables["length_controlled"]
        if "standard_error" in lc:
            effects = [c for c in lc.columns if c.startswith("effect_") and not c.endswith("_se")]
            print_table(
                f"Win rate at equal style (percent, {level}), and what a standard deviation more is worth (log-odds)",
                {
                    "generator": lc["generator"],
                    "win rate": interval(lc, "lc_win_rate", ends=ENDS),
                    **{
                        c.removeprefix("effect_"): [
                            "-" if math.isnan(v) else f"{v:.2f} ±{s:.2f}"
                            for v, s in zip(lc[c], lc[f"{c}_se"], strict=True)
                        ]
                        for c in effects
                    },
                },
            )
            notes += [f"{g}: {n}" for g, n in zip(lc["generator"], lc["note"], strict=True) if n]
        else:
            columns = ["lc_win_rate", "published_error", "a", "b", "c"]
            shown = {c.replace("_", " "): [number(v, 3) for v in lc[c]] for c in columns}
            print_table("AlpacaEval 2's length-controlled win rate (percent)", {"generator": lc["generator"], **shown})
            notes.append("AlpacaEval's error is the spread of fitted probabilities, not a sampling error")
            if unknown := list(lc.loc[lc["a"].isna(), "generator"]):
                notes.append(f"no published weights, so no length-controlled win rate: {', '.join(unknown)}")
    if "differences" in tables:
        every = tables["differences"]
        gaps, which = every, ""
        if len(every) > MOST_PAIRS:
            # the first pairs would all be the best generator's
            order = list(dict.fromkeys([*every["generator_a"], *every["generator_b"]]))
            neighbours = set(pairwise(order))
            gaps = every[[pair in neighbours for pair in zip(every["generator_a"], every["generator_b"], strict=True)]]
            which = " of each from the next"
        print_table(
            f"Differences{which} on the same instructions (percentage points; p adjusted by Holm for all pairs)",
            {
                "better": gaps["generator_a"],
                "than": gaps["generator_b"],
                "difference": interval(gaps, "difference", ends=ENDS),
                "p": [p_value(v) for v in gaps["p_adjusted"].where(gaps["difference"].notna())],
                "instr.": gaps["n_instructions"],
            },
        )
        if which:
            notes.append(f"all {len(every)} pairs with --csv --table differences")
    print_notes(notes)
