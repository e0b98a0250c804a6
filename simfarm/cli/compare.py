"""`simfarm compare`: several runs side by side."""

from __future__ import annotations

from pathlib import Path

import click

from simfarm.cli.show import interval, machine_readable, number, output_options, p_value, print_notes, print_table

EXAMPLES = """\b
simfarm compare runs/quickstart-seed0 runs/quickstart-seed1
simfarm compare runs/* --out compare.html
simfarm compare runs/a runs/b --csv --table differences
"""
ENDS = ("ci_low", "ci_high")
MOST_KEYS = 25


@click.command(epilog=EXAMPLES)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Also write a self-contained HTML page.")
@output_options
def compare(runs: tuple[Path, ...], out: Path | None, as_json: bool, as_csv: bool, which: str | None) -> None:
    """Compare finished RUNS: their methods, what their configs differ in, and which differences are beyond chance.

    The first run is the reference. Scores are paired by instruction where runs share instructions.
    """
    from simfarm.report.compare import compare_runs, write_comparison

    found = compare_runs(runs)
    if out is not None:
        write_comparison(found, out)
    tables = {"methods": found.methods, "differences": found.differences, "summary": found.summary}
    tables |= {"settings": found.settings, "seeds": found.seeds}
    if machine_readable(tables, as_json=as_json, as_csv=as_csv, which=which):
        return
    rates = found.methods
    print_table(
        "Win rate against each run's baseline (percent, 95% intervals, clustered by instruction)",
        {
            "method": rates["method"],
            "run": rates["run"],
            "win rate": interval(rates, "win_rate", ends=ENDS),
            "equal length": [number(v) for v in rates["lc_win_rate"]],
            "chars": [number(v, 0) for v in rates["length"]],
            "KL": [number(v, 2) for v in rates["kl"]],
        },
    )
    if len(found.seeds):
        print_table(
            "Over seeds (95% intervals by Student's t)",
            {
                "method": found.seeds["method"],
                "mean": interval(found.seeds, "mean", ends=ENDS),
                "sd": [number(v) for v in found.seeds["sd"]],
                "seeds": found.seeds["n_seeds"],
            },
        )
    if len(found.differences):
        gaps = found.differences
        print_table(
            f"Minus {next(iter(found.runs))}, on the same instructions (percentage points; p adjusted by Holm)",
            {
                "method": gaps["method"],
                "run": gaps["run"],
                "difference": interval(gaps, "difference", ends=ENDS),
                "p": [p_value(v) for v in gaps["p_adjusted"]],
                "instr.": gaps["n_instructions"],
            },
        )
    whole = found.summary
    print_table(
        "The runs",
        {
            "run": whole["run"],
            "minutes": [number(v) for v in whole["minutes"]],
            "labels, $": ["unknown" if v != v else number(v, 2) for v in whole["label_cost"]],
            "reward model right %": interval(whole, "reward_accuracy", ends=ENDS),
            "best-of-n gain": [number(v) for v in whole["best_of_n_gain"]],
        },
    )
    if len(found.settings):
        print_table(
            "What the configs differ in", {str(name): found.settings[name].head(MOST_KEYS) for name in found.settings}
        )
        if len(found.settings) > MOST_KEYS:
            click.echo(f"and {len(found.settings) - MOST_KEYS} more keys: --csv --table settings")
    click.echo()
    print_notes(found.notes)
    if out is not None:
        click.echo(f"Page: {out}")
