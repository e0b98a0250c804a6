"""The command line: one module per group of verbs, imported when the verb is used."""

from __future__ import annotations

import importlib
import sys

import click

from simfarm import __version__
from simfarm.errors import SimfarmError, suggest

# verb -> (module of simfarm.cli, one-line help); a module defines a click command named like its verb
VERBS: dict[str, tuple[str, str]] = {
    "run": ("run", "Run an experiment end to end."),
    "compare": ("compare", "Compare finished runs."),
    "models": ("models", "List the built-in models, or fetch one."),
    "evalsets": ("evalsets", "List the instruction sets; check one."),
    "annotate": ("annotate", "Label pairs or lists with a pool of annotators."),
    "pools": ("pools", "List the pools of annotators."),
    "pool": ("pools", "Show a pool, or check it."),
    "agreement": ("agreement", "Say how often a pool sides with people."),
    "winrate": ("winrate", "Win rates against a baseline, with intervals; at equal length."),
    "rank": ("rank", "Rank generators; compare with a human ranking."),
    "diagnose": ("diagnose", "Compare annotators with human labels: agreement, biases, reliability."),
    "calibrate": ("calibrate", "Fit a pool to a few human labels."),
    "power": ("power", "How many human labels to buy, and which."),
    "doctor": ("doctor", "Say what this machine has, and how fast it is."),
    "batch": ("batch", "Have an annotation's calls answered by a batch service."),
    "serve": ("serve", "Serve a model with vLLM and wait until it answers."),
}


class LazyGroup(click.Group):
    """Imports a verb's module only when that verb is used, so that --help is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of a first reading."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a verb and return its command."""
        if cmd_name not in VERBS:
            return None
        command = getattr(importlib.import_module(f"simfarm.cli.{VERBS[cmd_name][0]}"), cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        if VERBS:
            with formatter.section("Commands"):
                formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest verb where none is known by that name."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise click.UsageError(f"No such command {args[0]!r}.{suggest(args[0], VERBS)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="simfarm")
def cli() -> None:
    """Simulate human preference feedback: rank your methods before you pay annotators."""


def main() -> None:
    """Run the command line; an error that simfarm raises on purpose is printed as one paragraph, exit code 2."""
    try:
        cli.main(standalone_mode=True)
    except SimfarmError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
