"""`simfarm annotate`: label pairs or lists with a pool."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click
import pandas as pd

from simfarm.errors import ConfigError

ORDERS = click.Choice(["random", "both"])
ASSIGN = click.Choice(["random", "all"])
HOW = click.Choice(["pairs", "best_worst", "rank"])

EXAMPLES = """\b
simfarm annotate pairs.json --pool alpacafarm --dry-run
simfarm annotate pairs.json --pool alpacafarm --out labels.json --max-cost 5
simfarm annotate pairs.json --pool alpacaeval --out labels.json --model judge=hf/smollm2-135m
"""


def model_option(command: Any) -> Any:
    """Add --model, which maps roles to models."""
    return click.option(
        "--model",
        "models",
        multiple=True,
        metavar="ROLE=PROVIDER/MODEL",
        help="Map a role of the pool to a model: strong=openai/gpt-6.1-sol, judge=hf/smollm2-135m, small=fake/oracle.",
    )(command)


def server_options(command: Any) -> Any:
    """Add the options that say how to ask."""
    for option in reversed(
        [
            click.option("--base-url", metavar="URL", help="Server of the roles whose server the pool does not name."),
            click.option("--store", metavar="FILE|URL", help="Where answers are kept: a file or postgresql://…"),
            click.option("--prices", type=click.Path(path_type=Path), help="Prices that win over simfarm's own table."),
            click.option("--concurrency", type=int, default=128, show_default=True, help="Calls under way per model."),
            click.option("--rpm", type=float, help="Requests per minute and model, at most."),
            click.option("--tpm", type=float, help="Tokens per minute and model, at most."),
            click.option("--timeout", type=float, default=600.0, show_default=True, help="Seconds for one answer."),
        ]
    ):
        command = option(command)
    return command


def parse_models(models: tuple[str, ...]) -> dict[str, str]:
    """Read `role=provider/model`.

    Raises:
        ConfigError: One is not of this form.
    """
    found = {}
    for text in models:
        role, equals, model = text.partition("=")
        if not equals or not role or not model:
            raise ConfigError(f"--model {text} is not of the form ROLE=PROVIDER/MODEL (strong=openai/gpt-6.1-sol).")
        found[role.strip()] = model.strip()
    return found


@click.command(epilog=EXAMPLES)
@click.argument("pairs", type=click.Path(path_type=Path))
@click.option("--pool", "pool_name", required=True, metavar="NAME|FOLDER", help="Who judges; see simfarm pools.")
@click.option("--out", type=click.Path(path_type=Path), help="Labels, as .json, .jsonl, .csv or .parquet.")
@click.option("--trl", type=click.Path(path_type=Path), help="Also write prompt, chosen, rejected for TRL.")
@click.option("--flip", type=float, default=0.0, show_default=True, help="Probability that a verdict is turned round.")
@click.option("--noise-first", is_flag=True, help="Draw the noise first, and ask nobody about noised labels.")
@click.option("--orders", type=ORDERS, default="random", show_default=True, help="Show a pair once or in both orders.")
@click.option(
    "--assign",
    type=ASSIGN,
    default="random",
    show_default=True,
    help="One member per pair, or every one.",
)
@click.option("--replicates", type=int, default=1, show_default=True, help="How often each pair is labelled.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of members, orders, letters and flips.")
@click.option("--soft/--hard", default=None, help="Expectations or drawn verdicts; as the pool says if not given.")
@click.option(
    "--lists",
    "how",
    type=HOW,
    default="pairs",
    show_default=True,
    help="What to label of lists of candidates.",
)
@click.option("--limit", type=int, help="Label only the first N rows.")
@click.option("--max-cost", type=float, metavar="USD", help="Stop asking before this is spent.")
@click.option("--dry-run", is_flag=True, help="Count calls, tokens and dollars, and ask nobody.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@model_option
@server_options
def annotate(
    pairs: Path,
    pool_name: str,
    out: Path | None,
    trl: Path | None,
    flip: float,
    noise_first: bool,
    orders: Any,
    assign: Any,
    replicates: int,
    seed: int,
    soft: bool | None,
    how: Any,
    limit: int | None,
    max_cost: float | None,
    dry_run: bool,
    as_json: bool,
    models: tuple[str, ...],
    base_url: str | None,
    store: str | None,
    prices: Path | None,
    concurrency: int,
    rpm: float | None,
    tpm: float | None,
    timeout: float,
) -> None:
    """Label PAIRS with a pool of annotators.

    PAIRS holds comparisons (instruction, output_1, output_2), trainers' pairs (prompt, chosen, rejected), lists
    (instruction, outputs), Nectar's (prompt, answers) or outputs of several generators. Every answer is kept: the same
    command again, or after an interruption, asks only what is owed.
    """
    from simfarm.annotators import costs, inputs, lists
    from simfarm.annotators.pool import load_pool
    from simfarm.llm.client import Client, Options
    from simfarm.llm.prices import load_prices
    from simfarm.llm.store import open_store
    from simfarm.progress import track
    from simfarm.tables import SUFFIXES, write_table

    if out is None and not dry_run:
        raise ConfigError("Give --out LABELS for the labels, or --dry-run to see what they would cost.")
    for path in (out, trl):  # before anything is paid for
        if path is not None and path.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"{path} ends in {path.suffix!r}; simfarm writes {', '.join(SUFFIXES)}.")
        if path is not None and not dry_run:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(path.parent, os.W_OK):
                raise ConfigError(f"The folder {path.parent} cannot be written. Give another place for {path.name}.")
    pool = load_pool(pool_name, models=parse_models(models), base_url=base_url)
    given = inputs.read_given(pairs)
    table = given.table if limit is None else given.table.head(limit)
    options = Options(
        concurrency=concurrency, requests_per_minute=rpm, tokens_per_minute=tpm, max_cost=max_cost, timeout=timeout
    )
    client = Client(open_store(store), options=options, prices=load_prices(prices))
    # a pool that asks no model spends nothing
    note = None if pool.offline else lambda: costs.spent(client.usage)
    ranking = given.kind == "lists" and how != "pairs"
    if ranking:
        if trl is not None and how == "rank":
            raise ConfigError("--trl needs pairs: use --lists pairs or best_worst.")
        if orders != "random" or assign != "random" or noise_first:
            raise ConfigError(f"--lists {how} asks one member once: no --orders, --assign, --noise-first.")
        if dry_run:
            owed = list(lists.ranking_requests(pool, lists.candidates(table), seed=seed, replicates=replicates))
            counts = Counter(name for name, _ in owed)
            calls = ((name, request) for name, request in owed if request is not None)
            found = costs.estimate_calls(pool, counts, calls, store=client.store, prices=client.prices)
            return _print_estimate(found, len(owed), 0, as_json)
        with track(f"rank with {pool.name}", len(table) * replicates, "lists", note=note) as progress:
            labels = _asked(
                lambda: lists.annotate_lists(
                    pool, table, how=how, seed=seed, flip=flip, replicates=replicates, client=client, progress=progress
                )
            )
    else:
        if given.kind == "lists":
            table = lists.all_pairs(lists.candidates(table, str(pairs)))
        draws = {
            "seed": seed,
            "flip": flip,
            "orders": orders,
            "assign": assign,
            "replicates": replicates,
            "noise_first": noise_first,
        }
        plan = pool.plan(table, **draws)
        if dry_run:
            soft_labels = pool.config.soft if soft is None else soft
            found = costs.estimate(pool, plan, store=client.store, prices=client.prices, soft=soft_labels)
            noised = sum(task.noise is not None for task in plan.tasks)
            return _print_estimate(found, len(plan.tasks), noised, as_json)
        with track(f"annotate with {pool.name}", costs.judgments(plan), "judgments", note=note) as progress:
            labels = _asked(lambda: pool.annotate(table, soft=soft, client=client, progress=progress, **draws))
    assert out is not None
    write_table(labels, out)
    if trl is not None:
        write_table(inputs.to_trl(labels), trl)
    _print_summary(labels, client, out, as_json)


def _asked(work: Any) -> pd.DataFrame:
    try:
        table: pd.DataFrame = work()
    except KeyboardInterrupt:
        click.echo("\nInterrupted. Every answer that came is kept; the same command asks for the rest.", err=True)
        sys.exit(130)
    return table


def _print_estimate(found: list[Any], labels: int, noised: int, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from simfarm.annotators.costs import amount

    costs = [one.cost for one in found]
    total = None if None in costs else sum(costs)
    if as_json:
        rows = [{slot: getattr(one, slot) for slot in one.__slots__} for one in found]
        click.echo(json.dumps({"members": rows, "labels": labels, "noise_first": noised, "cost": total}, indent=1))
        return
    table = Table(title="What would be asked (tokens and dollars at most)", title_justify="left", box=None)
    for column in ("annotator", "model", "labels", "calls", "stored", "in", "out", "US $"):
        named = column in ("annotator", "model")
        table.add_column(column, justify="left" if named else "right", no_wrap=column != "model", overflow="fold")
    for one in found:
        price = "unknown" if one.cost is None else amount(one.cost)
        counts = (one.labels, one.calls, one.stored, one.input_tokens, one.output_tokens)
        table.add_row(one.annotator, one.model, *(f"{n:,}" for n in counts), price)
    Console().print(table)
    spared = f" {noised:,} labels are noise drawn first, which nobody is asked about." if noised else ""
    most = "an unknown amount (a price is unknown; see --prices)" if total is None else f"${amount(total)}"
    click.echo(f"{labels:,} labels, at most {most}.{spared}")


def _print_summary(labels: pd.DataFrame, client: Any, out: Path, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from simfarm.annotators import costs

    usage = client.usage
    asked = {
        "calls": usage.asked,
        "from_store": usage.found,
        "retried": usage.retried,
        "failed": usage.failed,
        "spent": usage.spent,
        "calls_of_unknown_price": usage.unpriced,
        "seconds": round(usage.seconds, 2),
    }
    if "preference" not in labels:  # a ranking
        nulls = int((labels["reason"] != "").sum())
        click.echo(json.dumps(asked) if as_json else f"{len(labels):,} rankings, {nulls:,} missing, in {out}.")
        return
    found = costs.summary(labels)
    if as_json:
        members = json.loads(found.to_json(orient="records"))
        click.echo(json.dumps({"out": str(out), "members": members, **asked}, indent=1))
        return
    table = Table(title=f"{len(labels):,} labels in {out}", title_justify="left", box=None)
    for column in ("annotator", "labels", "null", "1st shown", "agree", "$/1,000", "s", "tokens"):
        table.add_column(column, justify="left" if column == "annotator" else "right", no_wrap=True)
    for row in found.to_dict("records"):
        table.add_row(
            row["annotator"],
            f"{row['labels']:,}",
            f"{row['null_share']:.1%}",
            _share(row["first_share"]),
            _share(row["consistent_share"]),
            "unknown" if _none(row["cost_per_1000"]) else f"{row['cost_per_1000']:.2f}",
            "" if _none(row["latency"]) else f"{row['latency']:.2f}",
            "" if _none(row["tokens_per_label"]) else f"{row['tokens_per_label']:.0f}",
        )
    Console().print(table)
    unknown = f" and {usage.unpriced:,} calls of unknown price" if usage.unpriced else ""
    click.echo(
        f"{usage.asked:,} calls (${usage.spent:.4f}{unknown}), {usage.found:,} answers from the store, "
        f"{usage.failed:,} failed, {usage.seconds:.1f} s."
    )
    worst = found[found["reason"] != ""].sort_values("null_share", ascending=False)
    if len(worst):
        click.echo(f"Missing: {worst.iloc[0]['annotator']}, most often because: {worst.iloc[0]['reason']}")


def _none(value: object) -> bool:
    return value is None or value != value


def _share(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.0%}"
