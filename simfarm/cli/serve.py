"""`simfarm serve`: start a vLLM server and wait until it answers."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("model")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--port", type=int, help="Port to listen on; a free one if not given.")
@click.option("--vllm", "command", metavar="PATH", help="The vllm command, if it is not beside this Python or in PATH.")
@click.option("--log", type=click.Path(path_type=Path), help="Where the server's output goes.")
@click.option("--patience", type=float, default=900.0, show_default=True, help="Seconds to wait for it.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON when it answers: url, model, pid, log.")
def serve(
    model: str,
    arguments: tuple[str, ...],
    port: int | None,
    command: str | None,
    log: Path | None,
    patience: float,
    as_json: bool,
) -> None:
    """Serve MODEL with vLLM and wait until it is ready; Ctrl-C ends it.

    MODEL is a hub id, a folder or a built-in name. Everything that simfarm does not know goes to `vllm serve`.
    """
    from simfarm.llm.serve import start
    from simfarm.resources import cache_dir

    log = log or cache_dir() / "vllm.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    server = start(
        model,
        log=log,
        port=port,
        command=command,
        arguments=arguments,
        patience=patience,
        report=lambda line: click.echo(line, err=True),
    )
    if as_json:
        found = {"url": server.base_url, "model": server.model, "pid": server.process.pid, "log": str(log)}
        click.echo(json.dumps(found))
    else:
        click.echo(
            f"{server.model} answers at {server.base_url} (log: {log}). For example:\n"
            f"  simfarm annotate pairs.json --pool alpacaeval --out labels.json "
            f"--model judge=vllm/{server.model} --base-url {server.base_url}"
        )
    try:
        server.process.wait()
    except KeyboardInterrupt:
        click.echo("ending the server", err=True)
    finally:
        server.stop()
