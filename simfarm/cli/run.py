"""`simfarm run`: an experiment end to end."""

from __future__ import annotations

import json
from pathlib import Path

import click

from simfarm.errors import ConfigError
from simfarm.policies.trackers import TRACKERS

EXAMPLES = """\b
simfarm run quickstart
simfarm run quickstart --seed 1 --set ppo.steps=20
simfarm run quickstart --set outputs.mine=FILE.json --out runs/mine
simfarm run overopt-small
simfarm --quiet run quickstart --json
"""


@click.command(epilog=EXAMPLES)
@click.argument("experiment")
@click.option("--out", type=click.Path(path_type=Path), help="Run directory. [default: runs/NAME-seedSEED]")
@click.option("--seed", type=click.IntRange(0), help="Seed of every draw; wins over the config.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set a config key: ppo.steps=20.")
@click.option("--track", type=click.Choice(TRACKERS), help="Send the metrics of trainings there as well.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def run(
    experiment: str,
    out: Path | None,
    seed: int | None,
    settings: tuple[str, ...],
    track: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run EXPERIMENT: a built-in name, a TOML file, or the config.json of a run.

    The same command again goes on where a run was interrupted, or shows the results of a finished one.
    """
    from simfarm.cli.show import records
    from simfarm.experiments.config import load_config
    from simfarm.experiments.laboratory.config import LaboratoryConfig
    from simfarm.experiments.runner import plan, run_experiment
    from simfarm.report import terminal

    config = load_config(experiment, settings, seed=seed)
    if isinstance(config, LaboratoryConfig):
        from simfarm.cli.laboratory import run_and_print

        if track is not None:
            raise ConfigError("--track is for an experiment's trainings; a laboratory has hundreds of short ones.")
        run_and_print(config, out or Path("runs") / f"{config.name}-seed{config.seed}", dry_run, as_json)
        return
    if dry_run:
        work = plan(config)
        if as_json:
            click.echo(
                json.dumps([{**row, "tokens": row["tokens"] or None} for row in records(work.fillna(0))], indent=1)
            )
        else:
            terminal.print_plan(config, work)
        return
    folder = out or Path("runs") / f"{config.name}-seed{config.seed}"
    show_results(run_experiment(config, folder, track=track).path, as_json)


def show_results(folder: Path, as_json: bool) -> None:
    """Print the results of a finished run, as a table or as JSON."""
    from simfarm.report import terminal

    if as_json:
        click.echo(json.dumps(terminal.results(folder), indent=1))
    else:
        terminal.print_results(folder)
