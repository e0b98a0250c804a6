"""`simfarm diagnose`: how far annotators can be trusted, against human labels of the same pairs."""

from __future__ import annotations

from pathlib import Path

import click
import pandas as pd

from simfarm.cli.show import interval, machine_readable, output_options, p_value, print_notes, print_table
from simfarm.errors import ConfigError
from simfarm.evaluation.diagnostics import diagnose as run
from simfarm.tables import read_table


@click.command()
@click.argument("labels", type=click.Path(path_type=Path))
@click.option("--human", required=True, type=click.Path(path_type=Path), help="Human labels of the same pairs.")
@click.option("--self", "selves", multiple=True, metavar="ANNOTATOR=GENERATOR",
              help="Which generator an annotator is, if it is named otherwise.")  # fmt: skip
@click.option("--confidence", default=0.95, show_default=True)
@click.option("--bootstrap", default=500, show_default=True, help="Resamples of instructions, for the coefficients.")
@click.option("--seed", default=0, show_default=True)
@output_options
def diagnose(
    labels: Path,
    human: Path,
    selves: tuple[str, ...],
    confidence: float,
    bootstrap: int,
    seed: int,
    as_json: bool,
    as_csv: bool,
    which: str | None,
) -> None:
    """Agreement with people and its ceiling, biases, reliability, and which annotators err together."""
    pairs = [item.partition("=") for item in selves]
    if wrong := [a for a, sign, _ in pairs if not sign]:
        raise ConfigError(f"--self is {wrong[0]!r}; write ANNOTATOR=GENERATOR.")
    found = run(
        read_table(labels),
        read_table(human),
        selves={a: g for a, _, g in pairs},
        confidence=confidence,
        bootstrap=bootstrap,
        seed=seed,
    )
    tables = {
        "agreement": found.agreement,
        "tastes": found.tastes,
        "self_preference": found.self_preference,
        "pairs": found.pairs,
        "coefficients": found.coefficients,
    }
    if machine_readable(tables, as_json=as_json, as_csv=as_csv, which=which):
        return
    where = f"{found.n_instructions} instruction{'' if found.n_instructions == 1 else 's'}"
    click.echo(f"{found.n_items} pairs of outputs on {where} have labels of both kinds.")
    click.echo(f"All shares in percent, with {100 * confidence:g}% intervals clustered by instruction.")
    _print(tables)


def _print(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["agreement"]
    print_table(
        "Agreement with people ((humans): with one another, the ceiling; then judges that read nothing)",
        {
            "annotator": table["annotator"],
            "with a vote": interval(table, "agreement"),
            "without ties": interval(table, "agreement_no_ties"),
            "with majority": interval(table, "majority_agreement"),
            "nulls": interval(table, "null_rate"),
        },
    )
    print_table(
        "Chance-corrected agreement with the majority; reliability by each other alone (Dawid-Skene)",
        {
            "annotator": table["annotator"],
            "Cohen's kappa": interval(table, "kappa", 2),
            "reliability": interval(table, "reliability"),
        },
    )
    print_table(
        "As AlpacaEval scores: a tie counts half; bias and variance need several verdicts on a pair",
        {
            "annotator": table["annotator"],
            "agreement": interval(table, "alpacaeval_agreement"),
            "bias": interval(table, "bias"),
            "variance": interval(table, "variance"),
        },
    )
    taste = tables["tastes"]
    print_table(
        "Position (first: share for the one shown first; effect: gain in points from being first)",
        {
            "annotator": taste["annotator"],
            "first": interval(taste, "prefers_first"),
            "effect": interval(taste, "position_effect"),
            "p": [p_value(v) for v in taste["position_p"]],
            "consistent": interval(taste, "consistency"),
        },
    )
    print_table(
        "Length and lists (excess: points more than people on the same pairs)",
        {
            "annotator": taste["annotator"],
            "longer": interval(taste, "prefers_longer"),
            "excess": interval(taste, "longer_excess"),
            "list": interval(taste, "prefers_list"),
            "list excess": interval(taste, "list_excess"),
        },
    )
    print_table("Ties", {"annotator": taste["annotator"], "share": interval(taste, "tie_rate")})
    if len(tables["self_preference"]):
        own = tables["self_preference"]
        print_table(
            "Self-preference (points more than people like the annotator's own answers)",
            {"annotator": own["annotator"], "generator": own["generator"], "excess": interval(own, "self_preference")},
        )
    if len(tables["pairs"]):
        pairs = tables["pairs"].sort_values("error_correlation", ascending=False, kind="stable").head(15)
        print_table(
            "Which annotators err together (correlation of errors against the majority; p adjusted by Holm)",
            {
                "annotator": pairs["annotator_a"],
                "and": pairs["annotator_b"],
                "agree": interval(pairs, "agreement"),
                "errors": interval(pairs, "error_correlation", 2),
                "p": [p_value(v) for v in pairs["p_adjusted"]],
            },
        )
    among = tables["coefficients"]
    print_table(
        "Among themselves",
        {
            "who": among["who"],
            "equal votes": interval(among, "equal"),
            "Fleiss": interval(among, "fleiss_kappa", 2),
            "Krippendorff": interval(among, "alpha_nominal", 2),
            "(interval)": interval(among, "alpha_interval", 2),
        },
    )
    notes = ["errors are against human labels that err too, which makes all annotators seem to err together a little"]
    if "reliability" in table and table["reliability"].isna().all():
        notes.append("reliability without the truth (Dawid-Skene) needs three annotators or more")
    print_notes(notes)
