"""`simfarm completion`: the script by which a shell completes simfarm's verbs and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

EXAMPLES = """\b
simfarm completion bash >> ~/.bashrc
simfarm completion zsh >> ~/.zshrc
simfarm completion fish > ~/.config/fish/completions/simfarm.fish
"""


@click.command(epilog=EXAMPLES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that makes SHELL complete simfarm's verbs and options; put it where the shell reads it."""
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, "simfarm", "_SIMFARM_COMPLETE").source())
