"""`simfarm evaluate`: outputs of any method against a baseline's, judged by a pool."""

from __future__ import annotations

from pathlib import Path

import click

from simfarm.cli.annotate import model_option, parse_models


@click.command(epilog="Example: simfarm evaluate mine.json --baseline baseline.json --pool embedded --out judged.json")
@click.argument("outputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--baseline", type=click.Path(path_type=Path), required=True, help="Outputs to compare with.")
@click.option("--pool", "pool_name", required=True, metavar="NAME|FOLDER", help="Who judges, without noise.")
@click.option("--replicates", type=click.IntRange(1), default=1, show_default=True, help="Labels per comparison.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Also keep the judgements: .json, .jsonl, .csv, .parquet.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@model_option
def evaluate(
    outputs: tuple[Path, ...],
    baseline: Path,
    pool_name: str,
    replicates: int,
    seed: int,
    out: Path | None,
    as_json: bool,
    models: tuple[str, ...],
) -> None:
    """Compare OUTPUTS (instruction, output [, generator]) with a baseline's on the same instructions.

    Every pair is judged in both orders. It prints win rates with intervals clustered by instruction, win rates at equal
    length, and differences between generators.
    """
    import pandas as pd

    from simfarm import tables
    from simfarm.annotators.pool import load_pool
    from simfarm.cli.show import machine_readable
    from simfarm.cli.winrate import print_win_rates
    from simfarm.errors import DataError
    from simfarm.evaluation.length_control import length_controlled
    from simfarm.evaluation.winrate import paired_differences, win_rates
    from simfarm.experiments.judging import annotate

    reference = tables.read_outputs(baseline)
    name = str(reference["generator"].iloc[0])
    pairs: list[pd.DataFrame] = []
    for path in outputs:
        for generator, rows in tables.read_outputs(path).groupby("generator", sort=False):
            if generator == name or any(generator == p["generator_2"].iloc[0] for p in pairs):
                raise DataError(f"{path}: the generator {generator!r} comes twice. Give each a name of its own.")
            pairs.append(tables.head_to_head(rows, reference))
    table = pd.concat(pairs, ignore_index=True)
    pool = load_pool(pool_name, models=parse_models(models))
    judged = annotate(pool, table, f"judging with {pool.name}", seed=seed, orders="both", replicates=replicates)
    if out is not None:
        tables.write_table(judged, out)
    found = {"win_rates": win_rates(judged, baseline=name)}
    found["length_controlled"] = length_controlled(judged, baseline=name)
    if len(pairs) > 1:
        found["differences"] = paired_differences(judged, baseline=name)
    if machine_readable(found, as_json=as_json, as_csv=False, which=None):
        return
    print_win_rates(found, 0.95)
