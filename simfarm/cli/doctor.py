"""`simfarm doctor`: what this machine has, and how fast it is."""

from __future__ import annotations

import dataclasses
import json

import click

EXAMPLES = """\b
simfarm doctor
simfarm doctor --base-url http://localhost:8000/v1 --no-speed
simfarm doctor --json
"""
MARKS = {"ok": ("✓", "green"), "absent": ("–", "yellow"), "bad": ("✗", "red")}


@click.command(epilog=EXAMPLES)
@click.option("--base-url", metavar="URL", help="An OpenAI-compatible server to look at. [default: $OPENAI_BASE_URL]")
@click.option("--speed/--no-speed", default=True, help="Time a small model, to say how long quickstart would take.")
@click.option("--timeout", default=5.0, show_default=True, help="Seconds for the server to answer.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def doctor(base_url: str | None, speed: bool, timeout: float, as_json: bool) -> None:
    """Say what is installed, which devices, keys, models and servers there are, and how fast this machine is.

    Nothing is changed or fetched, and no key is shown. The exit code is 1 if something needs mending; what is optional
    and not there (–) is not wrong.
    """
    from simfarm.doctor import examine
    from simfarm.progress import say

    found = examine(base_url=base_url, speed=speed, timeout=timeout, report=say)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(one) for one in found], indent=1))
    else:
        group = ""
        for one in found:
            if one.group != group:
                group = one.group
                click.secho(f"\n{group}", bold=True)
            mark, colour = MARKS[one.state]
            click.echo(f"  {click.style(mark, fg=colour)} {one.name}: {one.found}")
            if one.mend:
                click.echo(f"      {one.mend}")
    if any(one.state == "bad" for one in found):
        raise SystemExit(1)
