"""`simfarm calibrate`: fit a pool to a few human labels."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import pandas as pd

from simfarm.cli.show import interval, machine_readable, number, output_options, print_notes, print_table
from simfarm.evaluation.calibration import HELD_OUT, LOG_LOSS
from simfarm.tables import LABEL_COLUMNS, read_table


@click.command()
@click.argument("pool")
@click.option("--human", required=True, type=click.Path(path_type=Path),
              help="Human labels; several rows of one pair are several people.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the new pool.")
@click.option("--folds", default=5, show_default=True, help="Of instructions, for the figures on unseen pairs.")
@click.option("--bootstrap", default=200, show_default=True, help="Resamples of instructions, for the intervals.")
@click.option("--confidence", default=0.95, show_default=True)
@click.option("--model", "models", multiple=True, metavar="ROLE=PROVIDER/MODEL", help="Map a role to a model.")
@click.option("--base-url", help="Server of the roles whose own is not set.")
@click.option("--seed", default=0, show_default=True)
@output_options
def calibrate(
    pool: str,
    human: Path,
    out: Path,
    folds: int,
    bootstrap: int,
    confidence: float,
    models: tuple[str, ...],
    base_url: str | None,
    seed: int,
    as_json: bool,
    as_csv: bool,
    which: str | None,
) -> None:
    """Fit POOL's weights, temperatures, position and length terms to people's votes, and write the pool that results.

    Figures before and after are on pairs that the fit had not seen.
    """
    from simfarm.annotators.calibration import calibrate_pool, write_pool
    from simfarm.errors import ConfigError

    roles = [item.partition("=") for item in models]
    if wrong := [role for role, sign, _ in roles if not sign]:
        raise ConfigError(f"--model is {wrong[0]!r}; write ROLE=PROVIDER/MODEL.")
    if out.exists():
        raise ConfigError(f"{out} is there already; give --out the path of a new folder.")
    found = calibrate_pool(
        pool,
        read_table(human, LABEL_COLUMNS),
        folds=folds,
        bootstrap=bootstrap,
        confidence=confidence,
        seed=seed,
        models={role: model for role, _, model in roles},
        base_url=base_url,
    )
    path = write_pool(found, pool, out)
    fit = found.fit
    tables: dict[str, pd.DataFrame] = {"held_out": fit.held_out, "parameters": fit.parameters}
    if machine_readable(tables, as_json=as_json, as_csv=as_csv, which=which):
        return
    click.echo(path)
    click.echo(f"Fitted to {fit.n_votes} human votes on {fit.n_items} pairs (sha256 {found.data_hash[:16]}…).")
    held = fit.held_out
    loss = held["figure"] == LOG_LOSS
    # shown in hundredths, to stand in one column with percentages
    shown = held.set_index("figure").mul(np.where(loss, 100.0, 1.0), axis=0).reset_index()
    shown["figure"] = held["figure"].where(~loss, "log loss (.01 nats)")
    print_table(
        f"On pairs the fit had not seen ({100 * confidence:g}% intervals, clustered by instruction)",
        {"figure": shown["figure"], **{name: interval(shown, name) for name in HELD_OUT}},
    )
    table = fit.parameters
    print_table(
        "What was fitted",
        {
            "parameter": table["parameter"],
            "value": interval(table, "value", 3, ("ci_low", "ci_high")),
            "prior": [number(v, 3) for v in table["prior"]],
            "from the data": [f"{100 * v:.0f}%" for v in table["from_data"]],
        },
    )
    notes = list(fit.notes)
    if found.n_lost:
        notes.append(f"{found.n_lost} pairs left out: a member gave no verdict")
    if "flip" in set(table["parameter"]):
        notes.append(
            f"members without probabilities act as if {100 * fit.flip:.0f}% of their verdicts were flipped: "
            f"annotate with --flip {fit.flip:.2f} to match"
        )
    print_notes(notes)
