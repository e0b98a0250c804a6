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
def report(run: Path) -> None:
    """Write report.html, report.md, figures and tables of a finished RUN again, and show its results.

    Everything is read from the run directory, nothing is computed anew: for a run of an earlier simfarm, or one whose
    report was lost.
    """
    from simfarm.report.data import open_run
    from simfarm.report.html import write_report
    from simfarm.report.terminal import print_results

    if open_run(run).setting("kind") == "laboratory":
        from simfarm.cli.laboratory import print_verdicts
        from simfarm.experiments.laboratory.config import LaboratoryConfig
        from simfarm.experiments.laboratory.runner import write_results
        from simfarm.experiments.rundir import RunDirectory

        config = LaboratoryConfig.model_validate(open_run(run).config)
        write_results(config, RunDirectory(run, config))
        print_verdicts(run)
    else:
        write_report(run)
        print_results(run)
