"""`simfarm rank`: a ranking with its uncertainty, and how it agrees with a human one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import click
import numpy as np
import pandas as pd
from scipy import stats

from simfarm.cli.show import interval, machine_readable, number, output_options, p_value, print_notes, print_table
from simfarm.errors import DataError
from simfarm.evalsets import load_human_ranking
from simfarm.evaluation.bradley_terry import ELO, battles, bootstrap, fit
from simfarm.evaluation.correlation import rank_correlations
from simfarm.evaluation.ranking import probability_above, rank_table
from simfarm.evaluation.separability import agreement_with_confidence, separability
from simfarm.evaluation.style import COVARIATES, Covariate
from simfarm.evaluation.style_control import style_controlled
from simfarm.tables import read_table

ENDS = ("ci_low", "ci_high")


@click.command()
@click.argument("labels", type=click.Path(path_type=Path))
@click.option("--human", help="Human ranking: a name that ships, or a file of generator, score[, standard_error].")
@click.option("--ties", type=click.Choice(["davidson", "half"]), default="davidson", show_default=True,
              help="Model ties (Davidson), or count each as half a win.")  # fmt: skip
@click.option("--style", help=f"Hold style equal: some of {','.join(COVARIATES)} (ties then count half).")
@click.option("--bootstrap", "draws", default=1000, show_default=True, help="Resamples of instructions; 0 for none.")
@click.option("--confidence", default=0.95, show_default=True)
@click.option("--seed", default=0, show_default=True)
@output_options
def rank(
    labels: Path,
    human: str | None,
    ties: str,
    style: str | None,
    draws: int,
    confidence: float,
    seed: int,
    as_json: bool,
    as_csv: bool,
    which: str | None,
) -> None:
    """Rank generators by Bradley–Terry: ratings on the Elo scale, ranks that cannot be excluded, P(A above B)."""
    table = read_table(labels)
    data = battles(table, "half" if ties == "half" or style else "davidson")
    tables: dict[str, pd.DataFrame] = {}
    if style:
        names = cast("list[Covariate]", [c.strip() for c in style.split(",") if c.strip()])
        fitted, effects = style_controlled(table, names, confidence=confidence)
        draws = 0
    else:
        fitted, effects = fit(data), None
    tables["ranking"] = ranking = rank_table(fitted, data, confidence=confidence, bootstrap_draws=draws, seed=seed)
    above = probability_above(fitted).loc[ranking["generator"], ranking["generator"]]
    tables["probability_above"] = above.rename_axis("generator").reset_index()
    if effects is not None:
        tables["style"] = effects
    notes = []
    if human is not None:
        people = load_human_ranking(human)
        simulated = ranking.rename(columns={"rating": "score"})[["generator", "score", "standard_error"]]
        tables["correlations"] = rank_correlations(simulated, people, confidence=confidence, seed=seed)
        notes += list(tables["correlations"]["note"])
        lacking = sorted(set(simulated["generator"]) - set(people["generator"].astype(str)))
        if lacking:
            notes.append(f"not in the human ranking and left out there: {', '.join(lacking)}")
        if draws:
            drawn = dict(zip(fitted.names, ELO * bootstrap(data, fitted, draws, seed=seed).T, strict=True))
            separate, note = _separability(simulated, people, drawn, confidence)
            notes += [note] if note else []
            if separate is not None:
                tables["separability"] = separate
    if machine_readable(tables, as_json=as_json, as_csv=as_csv, which=which):
        return
    _print(tables, confidence, style)
    print_notes(notes)


def _separability(
    simulated: pd.DataFrame, people: pd.DataFrame, drawn: dict[str, np.ndarray], confidence: float
) -> tuple[pd.DataFrame | None, str]:
    people = people.assign(generator=people["generator"].astype(str))
    both = simulated.merge(people, on="generator", suffixes=("", "_human"))
    if both["standard_error_human"].isna().any():
        return None, "agreement with confidence needs the standard errors of the human scores"
    z = float(stats.norm.ppf((1 + confidence) / 2))
    low, high = (both["score_human"] + sign * z * both["standard_error_human"] for sign in (-1, 1))
    columns = [drawn[name] for name in both["generator"]]
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    ends = np.array([np.quantile(values, tails) for values in columns]).T
    row = {"separability": 100 * separability(*ends), "human_separability": 100 * separability(low, high)}
    try:
        found = agreement_with_confidence(both["score"], columns, both["score_human"], low, high, confidence=confidence)
    except DataError as error:
        return pd.DataFrame([row]), str(error).rstrip(".")
    row |= {"agreement_with_confidence": 100 * found.with_confidence, "confident_pairs": found.confident_pairs}
    row |= {"same_order": 100 * found.strict_pairs, "brier": found.brier, "log_loss": found.log_loss}
    return pd.DataFrame([row]), ""


def _print(tables: dict[str, pd.DataFrame], confidence: float, style: str | None) -> None:
    ranking = tables["ranking"]
    level = f"{100 * confidence:g}% intervals, clustered by instruction"
    columns: dict[str, Iterable[object]] = {
        "generator": ranking["generator"],
        "rank": [f"{r} [{a}, {b}]" for r, a, b in zip(*(ranking[c] for c in ("rank", "rank_low", "rank_high")),
                                                      strict=True)],
        "rating": interval(ranking, "rating", 0, ENDS),
        "win rate": [number(v) for v in ranking["win_rate"]],
        "verdicts": [number(v, 0) for v in ranking["n_comparisons"]],
    }  # fmt: skip
    if "bootstrap_ci_low" in ranking:
        ends = zip(ranking["bootstrap_ci_low"], ranking["bootstrap_ci_high"], strict=True)
        columns["bootstrap"] = [f"[{a:.0f}, {b:.0f}]" for a, b in ends]
    print_table(f"Ranking{f' at equal {style}' if style else ''} (Elo points, mean 1000; {level})", columns)
    above = tables["probability_above"].set_index("generator")
    neighbours = zip(above.index[:-1], above.index[1:], strict=True)
    doubtful = [(a, b, float(np.asarray(above.loc[a, b]))) for a, b in neighbours]
    print_table(
        "Is each truly above the next?",
        {
            "generator": [a for a, _, _ in doubtful],
            "above": [b for _, b, _ in doubtful],
            "probability": [number(p, 3) for _, _, p in doubtful],
        },
    )
    if "style" in tables:
        effects = tables["style"]
        print_table(
            "Effects of style (log-odds per standard deviation of difference)",
            {
                "covariate": effects["covariate"],
                "effect": interval(effects, "effect", 3, ENDS),
                "p": [p_value(v) for v in effects["p"]],
            },
        )
    if "correlations" in tables:
        found = tables["correlations"]
        print_table(
            f"Agreement with the human ranking ({int(found['n'].iloc[0])} generators; both sides' uncertainty)",
            {
                "coefficient": found["coefficient"],
                "value": interval(found, "value", 3, ENDS),
                "p": [p_value(v) for v in found["p"]],
                "p by": found["method"],
            },
        )
    if "separability" in tables:
        row = tables["separability"].iloc[0].to_dict()
        digits = {"brier": 3, "log_loss": 3, "confident_pairs": 0}
        print_table(
            "Separability and agreement with confidence (percent of pairs; as Arena-Hard)",
            {
                "figure": [str(k).replace("_", " ") for k in row],
                "value": [number(float(v), digits.get(str(k), 1)) for k, v in row.items()],
            },
        )
