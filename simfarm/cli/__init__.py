"""The command line: one module per group of verbs, imported when the verb is used."""

from __future__ import annotations

import importlib
import os
import sys

import click
from click.shell_completion import CompletionItem

from simfarm import __version__
from simfarm.errors import SimfarmError, suggest

# verb -> (module of simfarm.cli, one-line help); a module defines a click command named like its verb
VERBS: dict[str, tuple[str, str]] = {
    "run": ("run", "Run an experiment end to end."),
    "report": ("report", "Write the report of a finished run again."),
    "compare": ("compare", "Compare finished runs."),
    "train": ("train", "Train by one method, or train a reward model."),
    "score": ("score", "Score outputs by a reward model."),
    "evaluate": ("evaluate", "Compare outputs with a baseline's, judged by a pool."),
    "models": ("models", "List the built-in models, or fetch one."),
    "evalsets": ("evalsets", "List the instruction sets; check one."),
    "annotate": ("annotate", "Label pairs or lists with a pool of annotators."),
    "pools": ("pools", "List the pools of annotators."),
    "pool": ("pools", "Show a pool, or check it."),
    "winrate": ("winrate", "Win rates against a baseline, with intervals; at equal length."),
    "rank": ("rank", "Rank generators; compare with a human ranking."),
    "diagnose": ("diagnose", "Compare annotators with human labels: agreement, biases, reliability."),
    "calibrate": ("calibrate", "Fit a pool to a few human labels."),
    "power": ("power", "How many human labels to buy, and which."),
    "convert": ("convert", "Read what other tools wrote; write their formats."),
    "overopt": ("overopt", "Where a proxy stops being true: curves, fits, verdict."),
    "doctor": ("doctor", "Say what this machine has, and how fast it is."),
    "batch": ("batch", "Have an annotation's calls answered by a batch service."),
    "serve": ("serve", "Serve a model with vLLM and wait until it answers."),
    "completion": ("completion", "Complete verbs and options in your shell."),
}
# what the help of a verb ends with, where its module says nothing longer
EXAMPLES = {
    "models": "simfarm models",
    "models pull": "simfarm models pull smollm2-135m",
    "evalsets": "simfarm evalsets --check simfarm --split eval",
    "pools": "simfarm pools --json",
    "pool": "simfarm pool show embedded",
    "pool show": "simfarm pool show alpacafarm --model small=fake/oracle",
    "pool check": "simfarm pool check alpacafarm --live",
    "winrate": "simfarm winrate labels.json --baseline sft --length-controlled",
    "rank": "simfarm rank labels.json --human alpacafarm",
    "diagnose": "simfarm diagnose labels.json --human human.jsonl",
    "calibrate": "simfarm calibrate alpacaeval --human human.jsonl --out mine",
    "power": "simfarm power --difference 5 --price 0.35",
    "batch": "simfarm batch write pairs.json --pool alpacafarm --dir calls",
    "batch ingest": "simfarm batch ingest calls results.jsonl",
    "serve": "simfarm serve Qwen/Qwen3.5-9B --port 8000",
}
EXIT_CODES = """\b
Exit codes: 0 done; 1 a check found something wrong; 2 a wrong option or input;
130 interrupted (the same command goes on where it stopped).
"""


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
        _give_example(command, cmd_name)
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

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a verb without importing any."""
        verbs = [CompletionItem(v, help=text) for v, (_, text) in VERBS.items() if v.startswith(incomplete)]
        return [*verbs, *click.Command.shell_complete(self, ctx, incomplete)]


def _give_example(command: click.Command, name: str) -> None:
    if command.epilog is None and name in EXAMPLES:
        command.epilog = f"Example: {EXAMPLES[name]}"
    if isinstance(command, click.Group):
        for verb, inner in command.commands.items():
            _give_example(inner, f"{name} {verb}")


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="simfarm")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress: only results and errors.")
@click.option("--plain", is_flag=True, help="Show progress as lines, without bars and colours, on a terminal too.")
def cli(quiet: bool, plain: bool) -> None:
    """Simulate human preference feedback: rank your methods before you pay annotators."""
    if plain:
        os.environ["NO_COLOR"] = "1"
    if quiet or plain:
        from simfarm import progress

        progress.set_mode("quiet" if quiet else "plain")


def main() -> None:
    """Run the command line; an error that simfarm raises on purpose is printed as one paragraph, exit code 2."""
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("\nInterrupted. What was done is kept; the same command goes on from there.", err=True)
        sys.exit(130)
    except SimfarmError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except BrokenPipeError:
        # whoever read the output has enough; the interpreter must not try to flush it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        click.echo(f"Error: {error.filename} cannot be used: {error.strerror}. Give another path.", err=True)
        sys.exit(2)
    # with --help and the like, click returns the exit code instead of leaving
    sys.exit(code if isinstance(code, int) else 0)
