"""`simfarm pools` and `simfarm pool`: which pools there are, what is in one, and whether it works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from simfarm.cli.annotate import model_option, parse_models, server_options


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def pools(as_json: bool) -> None:
    """List the pools that ship with simfarm."""
    from rich.console import Console
    from rich.table import Table

    from simfarm.annotators.pool_config import pool_folder, pool_names, read_config

    configs = {name: read_config(pool_folder(name)) for name in pool_names()}
    if as_json:
        rows = [
            {
                "name": name,
                "description": config.description,
                "members": len(config.members),
                "models": {role: spec.model for role, spec in config.models.items()},
            }
            for name, config in configs.items()
        ]
        click.echo(json.dumps(rows, indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("pool", "members", "models", "what"):
        table.add_column(column, justify="right" if column == "members" else "left", overflow="fold")
    for name, config in configs.items():
        models = "\n".join(f"{role} = {spec.model}" for role, spec in config.models.items()) or "none"
        table.add_row(name, str(len(config.members)), models, config.description)
    Console().print(table)


@click.group()
def pool() -> None:
    """Show a pool, or check it."""


@pool.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@model_option
def show(name: str, as_json: bool, models: tuple[str, ...]) -> None:
    """Show the members of the pool NAME (or of a folder)."""
    from rich.console import Console
    from rich.table import Table

    from simfarm.annotators.costs import model_of
    from simfarm.annotators.pool import load_pool

    loaded = load_pool(name, models=parse_models(models))
    config = loaded.config
    if as_json:
        click.echo(json.dumps({**config.model_dump(mode="json"), "hash": loaded.content_hash}, indent=1))
        return
    console = Console()
    console.print(f"[bold]{config.name}[/bold]  {loaded.content_hash[:12]}\n{config.description}\n", highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("member", "weight", "model", "settings"):
        table.add_column(column, justify="right" if column == "weight" else "left", overflow="fold")
    for member in config.members:
        shown = member.model_dump(mode="json", exclude_defaults=True, exclude={"kind", "name", "weight", "model"})
        if "parser" in shown:
            shown["parser"] = member.model_dump()["parser"]["kind"]
        said = ", ".join(f"{key} {_brief(value)}" for key, value in shown.items())
        table.add_row(member.name, f"{member.weight:g}", model_of(loaded, member.name), said)
    console.print(table, highlight=False)


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{k} {_brief(v)}" for k, v in value.items()) + ")"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 48 else text[:45] + "…"


@pool.command()
@click.argument("name")
@click.option("--live", is_flag=True, help="Make one call per member.")
@click.option("--full", is_flag=True, help="Print whole prompts.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@model_option
@server_options
def check(
    name: str,
    live: bool,
    full: bool,
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
    """Check the pool NAME (or a folder): read it, render a prompt per member, count tokens, estimate prices.

    With --live each member judges one pair of two plainly different answers; the exit code is 1 if one gives no
    verdict.
    """
    from simfarm.annotators.check import check_pool
    from simfarm.annotators.pool import load_pool
    from simfarm.llm.client import Client, Options
    from simfarm.llm.prices import load_prices
    from simfarm.llm.store import open_store

    loaded = load_pool(name, models=parse_models(models), base_url=base_url)
    table = load_prices(prices)
    options = Options(concurrency=concurrency, requests_per_minute=rpm, tokens_per_minute=tpm, timeout=timeout)
    client = Client(open_store(store), options=options, prices=table) if live else None
    found = check_pool(loaded, table, client=client)
    if as_json:
        click.echo(json.dumps([one.__dict__ for one in found], indent=1))
    else:
        members = "1 member" if len(found) == 1 else f"{len(found)} members"
        click.echo(f"{loaded.name} ({loaded.content_hash[:12]}) is valid: {members}.\n")
        for one in found:
            price = "price unknown" if one.usd_per_1000 is None else f"at most ${one.usd_per_1000:.2f} per 1,000 labels"
            click.echo(f"{one.annotator}: {one.model}, about {one.tokens_per_label} tokens per label, {price}")
            prompt = one.prompt if full or len(one.prompt) <= 300 else f"{one.prompt[:200]} … {one.prompt[-80:]}"
            if prompt:
                click.echo("".join(f"    {line}\n" for line in prompt.splitlines() if line.strip()), nl=False)
            if live:
                verdict = f"verdict {one.verdict:g}" if one.verdict is not None else f"NO VERDICT: {one.reason}"
                click.echo(f"  live: {verdict} ({one.latency or 0:.2f} s), said {one.raw[:80]!r}")
    if live and any(one.verdict is None for one in found):
        raise SystemExit(1)
