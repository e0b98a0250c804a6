"""`simfarm batch`: have the calls of an annotation answered offline, by OpenAI's batch service or `vllm run-batch`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from simfarm.cli.annotate import ORDERS, model_option, parse_models


@click.group()
def batch() -> None:
    """Write the calls that an annotation owes as batch files, and take the answers in later."""


@batch.command(
    epilog="""\b
simfarm batch write pairs.json --pool alpacafarm --dir calls
simfarm batch ingest calls results.jsonl
simfarm annotate pairs.json --pool alpacafarm --out labels.json
"""
)
@click.argument("pairs", type=click.Path(path_type=Path))
@click.option("--pool", "pool_name", required=True, metavar="NAME|FOLDER", help="Who judges.")
@click.option("--dir", "folder", required=True, type=click.Path(path_type=Path), help="Folder for the batch files.")
@click.option("--flip", type=float, default=0.0, show_default=True, help="As in annotate.")
@click.option("--noise-first", is_flag=True, help="As in annotate.")
@click.option("--orders", type=ORDERS, default="random", show_default=True, help="As in annotate.")
@click.option("--replicates", type=int, default=1, show_default=True, help="As in annotate.")
@click.option("--seed", type=int, default=0, show_default=True, help="As in annotate.")
@click.option("--base-url", metavar="URL", help="As in annotate: part of what identifies a call.")
@click.option("--store", metavar="FILE|URL", help="Where answers are kept; what is there is not written.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts and the files as JSON.")
@model_option
def write(
    pairs: Path,
    pool_name: str,
    folder: Path,
    flip: float,
    noise_first: bool,
    orders: str,
    replicates: int,
    seed: int,
    base_url: str | None,
    store: str | None,
    as_json: bool,
    models: tuple[str, ...],
) -> None:
    """Write the calls that labelling PAIRS owes, one file per model.

    Afterwards give `annotate` the same pool, models, seed and orders, and it finds the answers in the store.
    """
    from simfarm.annotators import costs, inputs, lists
    from simfarm.annotators.pool import load_pool
    from simfarm.llm.batch import write as write_batch
    from simfarm.llm.store import open_store

    pool = load_pool(pool_name, models=parse_models(models), base_url=base_url)
    given = inputs.read_given(pairs)
    table = given.table if given.kind == "pairs" else lists.all_pairs(lists.candidates(given.table))
    plan = pool.plan(
        table,
        seed=seed,
        flip=flip,
        orders="both" if orders == "both" else "random",
        replicates=replicates,
        noise_first=noise_first,
    )
    written = write_batch((request for _, request in costs.requests(pool, plan)), open_store(store), folder)
    if as_json:
        files = [str(path) for path in written.files]
        click.echo(json.dumps({"calls": written.requests, "from_store": written.stored, "files": files}, indent=1))
        return
    click.echo(f"{written.requests:,} calls in {len(written.files)} files; {written.stored:,} are stored already.")
    for path in written.files:
        click.echo(f"  {path}")
    click.echo(
        "Upload a file to OpenAI's batch service (endpoint /v1/chat/completions), or run vllm run-batch -i FILE -o "
        f"RESULTS --model MODEL; then: simfarm batch ingest {folder} RESULTS"
    )


@batch.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--store", metavar="FILE|URL", help="Where answers are kept.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def ingest(folder: Path, results: tuple[Path, ...], store: str | None, as_json: bool) -> None:
    """Take in the RESULTS of batch files that lie in FOLDER."""
    from simfarm.errors import DataError
    from simfarm.llm.batch import ingest as take_in
    from simfarm.llm.store import open_store

    indexes = sorted(folder.glob("*.requests.jsonl"))
    if not indexes:
        raise DataError(f"{folder} holds no .requests.jsonl files; give the folder that simfarm batch write wrote.")
    taken = take_in(results, indexes, open_store(store))
    if as_json:
        click.echo(json.dumps({"stored": taken.stored, "failed": taken.failed}, indent=1))
        return
    click.echo(f"{taken.stored:,} answers stored.")
    for reason, count in sorted(taken.failed.items(), key=lambda item: -item[1]):
        click.echo(f"{count:,} without an answer, still owed: {reason}")
