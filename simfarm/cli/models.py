"""`simfarm models`: list and fetch built-in models."""

from __future__ import annotations

import dataclasses
import json

import click


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.pass_context
def models(ctx: click.Context, as_json: bool) -> None:
    """List the built-in models, or fetch one with `simfarm models pull NAME`."""
    from simfarm import models as catalogue

    if ctx.invoked_subcommand is not None:
        return
    places = {
        model.name: str(catalogue.stored_at(model)) if catalogue.is_stored(model.name) else None
        for model in catalogue.BUILTIN.values()
    }
    if as_json:
        rows = [{**dataclasses.asdict(m), "stored_in": places[m.name]} for m in catalogue.BUILTIN.values()]
        click.echo(json.dumps(rows, indent=1))
        return
    for model in catalogue.BUILTIN.values():
        place = places[model.name]
        where = f"stored in {place}" if place else f"not fetched ({model.download_mb} MB)"
        click.echo(f"{model.name:14} {model.description}, {model.licence}\n{'':14} {where}")
    click.echo("Also: hf/FOLDER for a model saved by transformers, hf/OWNER/NAME for one on the Hugging Face hub.")


@models.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Fetch it anew, to mend a damaged one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the folder.")
def pull(name: str, force: bool, as_json: bool) -> None:
    """Fetch a built-in model once and store it in the cache."""
    from simfarm import models as catalogue
    from simfarm.progress import say

    folder = str(catalogue.pull(name, force=force, report=say))
    click.echo(json.dumps({"name": name, "stored_in": folder}) if as_json else folder)
