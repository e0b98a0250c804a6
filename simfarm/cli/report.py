"""`simfarm report`: write the report of a finished run again."""

from __future__ import annotations

from pathlib import Path

import click

EXAMPLES = """\b
simfarm report runs/quickstart-seed0
simfarm report runs/overopt-small-seed300
"""


@click.command(epilog=EXAMPLES)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def report(run: Path, as_json: bool) -> None:
    """Write report.html, report.md, figures and tables of a finished RUN again, and show its results.

    Everything is read from the run directory, nothing is computed anew: for a run of an earlier simfarm, or one whose
    report was lost.
    """
    from simfarm.cli.run import show_results
    from simfarm.report.data import open_run
    from simfarm.report.html import write_report

    if open_run(run).setting("kind") == "laboratory":
        from simfarm.cli.laboratory import show_verdicts
        from simfarm.experiments.laboratory.config import LaboratoryConfig
        from simfarm.experiments.laboratory.runner import write_results
        from simfarm.experiments.rundir import RunDirectory

        config = LaboratoryConfig.model_validate(open_run(run).config)
        write_results(config, RunDirectory(run, config))
        show_verdicts(run, as_json)
    else:
        write_report(run)
        show_results(run, as_json)
