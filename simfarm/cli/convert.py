"""`simfarm convert`: read what other tools wrote, pair outputs, write their formats."""

from __future__ import annotations

import json
from pathlib import Path

import click

EXAMPLES = """\b
simfarm convert ppo.json sft.json --baseline baseline.json --out pairs.jsonl
simfarm convert results/OWNER__NAME/samples_mytask_*.jsonl --out outputs.json
simfarm convert annotations.json --out labels.jsonl
simfarm convert gpt.jsonl --baseline o3 --answers gpt-a.jsonl --answers o3-a.jsonl --out l.json
simfarm convert labels.jsonl --to alpaca_eval --out annotations.json
"""


@click.command(epilog=EXAMPLES)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="As .json, .jsonl, .csv or .parquet.")
@click.option("--baseline", metavar="FILE|NAME", help="Outputs to pair with; for Arena-Hard, the baseline's name.")
@click.option("--generator", help="The model's name, where a file does not say it.")
@click.option("--questions", type=click.Path(path_type=Path), help="Arena-Hard's question.jsonl.")
@click.option("--answers", multiple=True, type=click.Path(path_type=Path), help="Arena-Hard's model_answer files.")
@click.option("--to", "target", type=click.Choice(["alpaca_eval", "trl"]), help="Write labels in this format.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def convert(
    files: tuple[Path, ...],
    out: Path,
    baseline: str | None,
    generator: str | None,
    questions: Path | None,
    answers: tuple[Path, ...],
    target: str | None,
    as_json: bool,
) -> None:
    """Read FILES of alpaca_eval, Arena-Hard, lm-eval or inspect_ai, or simfarm's own, and write them as one table.

    Outputs with a --baseline FILE become pairs, the baseline's being output_1. What a file is, its columns tell.
    """
    import pandas as pd

    from simfarm import tables
    from simfarm.annotators.inputs import to_trl
    from simfarm.errors import ConfigError
    from simfarm.interchange import LABELS, read_foreign

    found = [
        read_foreign(file, generator=generator, questions=questions, answers=answers, baseline=baseline)
        for file in files
    ]
    kinds = {one.format in LABELS for one in found}
    if len(kinds) > 1:
        raise ConfigError("Some of the files hold labels and some outputs; convert them one kind at a time.")
    if kinds == {True}:
        table, what = pd.concat([one.table for one in found], ignore_index=True), "labels"
        table = {"alpaca_eval": tables.to_alpaca_eval, "trl": to_trl}[target](table) if target else table
    elif baseline is not None:
        beside = read_foreign(baseline, questions=questions).table
        groups = [group for one in found for _, group in one.table.groupby("generator", sort=False)]
        names = [str(group["generator"].iloc[0]) for group in groups]
        if clash := sorted({name for name in names if names.count(name) > 1 or name in set(beside["generator"])}):
            raise ConfigError(
                f"More than one of the files and the baseline hold outputs of {clash[0]!r}; they could not be told "
                "apart later. Give them a column `generator`, or, where they have none, files of different names."
            )
        table, what = pd.concat([tables.head_to_head(group, beside) for group in groups], ignore_index=True), "pairs"
    else:
        table, what = pd.concat([one.table for one in found], ignore_index=True), "outputs"
        table = tables.to_alpaca_eval(table) if target == "alpaca_eval" else table
    tables.write_table(table, out)
    formats = sorted({one.format for one in found})
    if as_json:
        click.echo(json.dumps({"out": str(out), "rows": len(table), "kind": what, "formats": formats}))
    else:
        click.echo(f"{len(table):,} {what} in {out} (read as: {', '.join(formats)})")
