"""The command line as a whole: help with examples, completion, quiet and plain, exit codes, speed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from test_report import build

from simfarm import progress
from simfarm.cli import VERBS, cli, main
from simfarm.report.terminal import results


@pytest.fixture(autouse=True)
def usual_mode() -> Iterator[None]:
    yield
    progress.set_mode("auto")


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name in command.commands:
            yield from commands(command.commands[name], (*path, name))


def every_command() -> list[tuple[str, ...]]:
    context = click.Context(cli)
    found = []
    for verb in VERBS:
        command = cli.get_command(context, verb)
        assert command is not None
        found += [path for path, _ in commands(command, (verb,))]
    return found


@pytest.mark.parametrize("path", every_command(), ids=" ".join)
def test_help_has_an_example_and_fits(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli, [*path, "--help"], terminal_width=100)
    assert result.exit_code == 0
    usage, _, rest = result.output.partition("\n\n")
    assert f"simfarm {' '.join(path)}" in rest
    # an example is a line to copy, which may be a little longer than what is wrapped
    assert max(map(len, result.output.splitlines())) <= 110, usage


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_valid(shell: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["completion", shell])
    assert result.exit_code == 0 and "_SIMFARM_COMPLETE" in result.output
    if program := shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(result.output)
        subprocess.run([program, "-n", script], check=True)


@pytest.mark.parametrize(
    ("shell", "words", "wanted"),
    [
        ("bash", "simfarm co", ["compare", "completion"]),
        ("zsh", "simfarm win", ["winrate"]),
        ("fish", "simfarm run --dr", ["--dry-run"]),
    ],
)
def test_verbs_and_options_are_completed(shell: str, words: str, wanted: list[str]) -> None:
    *done, last = words.split()
    environment = {
        **os.environ, "_SIMFARM_COMPLETE": f"{shell}_complete", "COMP_WORDS": words,
        "COMP_CWORD": last if shell == "fish" else str(len(done)),
    }  # fmt: skip
    command = [sys.executable, "-c", "from simfarm.cli import cli; cli.main(prog_name='simfarm')"]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    for name in wanted:
        assert name in output
    assert "serve" not in output


def test_quiet_and_plain_choose_how_progress_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    progress.set_mode("plain")
    with progress.track("work", 3, "things") as advance:
        advance(1)
    assert "work: 1/3 things" in capsys.readouterr().err
    spent = iter(["$0.10 spent", "unknown price"])
    with progress.track("work", 3, "things", note=lambda: next(spent)) as advance:
        advance(1)
        advance(1)
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("s left, $0.10 spent") and second.endswith("s left, unknown price")
    progress.set_mode("quiet")
    with progress.track("work", 3, "things") as advance:
        advance(1)
    progress.say("a line")
    assert capsys.readouterr().err == ""
    CliRunner().invoke(cli, ["--plain", "models"])
    assert progress._mode == "plain" and os.environ.pop("NO_COLOR") == "1"


def test_a_bar_shows_the_note_of_the_last_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    said = ["$0.00 spent"]
    with progress.track("annotate", 24_000, "judgments", note=lambda: said[-1]) as advance:
        said.append("$1.25 spent")
        advance(12_000)
    shown = capsys.readouterr().err
    assert "12000/24000" in shown and "$1.25 spent" in shown


def test_results_as_json_hold_no_nan(tmp_path: Path) -> None:
    found = results(build(tmp_path, rates={"ppo": 1.0}, n=1, extras=False))
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again["win_rates"][0]["generator"] == "ppo" and again["win_rates"][0]["ci_low"] is None
    assert "one instruction only" in again["headline"]


def exits(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["simfarm", *arguments])
    with pytest.raises(SystemExit) as error:
        main()
    return int(error.value.code or 0)


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert exits(["--version"], monkeypatch) == 0
    assert exits(["models"], monkeypatch) == 0
    assert exits(["modls"], monkeypatch) == 2
    assert "Did you mean 'models'" in capsys.readouterr().err
    assert exits(["run", "quickstrat", "--dry-run"], monkeypatch) == 2
    assert "Did you mean 'quickstart'" in capsys.readouterr().err
    assert exits(["run", "quickstart", "--sead", "1"], monkeypatch) == 2
    assert "Did you mean one of: '--seed'" in capsys.readouterr().err


def test_an_interrupt_is_130_and_says_that_nothing_is_lost(tmp_path: Path) -> None:
    code = (
        "import sys, time; from simfarm import models; from simfarm.cli import main\n"
        "models.pull = lambda *a, **k: (print('ready', flush=True), time.sleep(30))\n"
        "sys.argv = ['simfarm', 'models', 'pull', 'smollm2-135m']; main()"
    )
    # a shell's background job ignores interrupts, and its children with it
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and "the same command goes on" in said


def test_a_closed_pipe_is_no_traceback() -> None:
    done = subprocess.run(
        ["sh", "-c", f"'{sys.executable}' -m simfarm evalsets --json | head -1"], capture_output=True, text=True
    )
    assert done.stdout == "[\n" and done.stderr == ""


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'pandas', 'numpy', 'matplotlib', 'pydantic', 'aiohttp', 'rich'}"
    code = (
        f"import sys; from click.testing import CliRunner; from simfarm.cli import cli\n"
        f"CliRunner().invoke(cli, ['--help']); print(sorted({heavy} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_place_that_cannot_be_written_is_one_paragraph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    pairs = tmp_path / "pairs.json"
    pairs.write_text('[{"instruction": "q", "output_1": "a", "output_2": "b", "preference": 1}]')
    below = str(tmp_path / "file" / "out.json")
    for command in (
        ["annotate", str(pairs), "--pool", "fake-biased", "--out", below],
        ["convert", str(pairs), "--out", below],
    ):
        monkeypatch.setattr(sys, "argv", ["simfarm", *command])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 2
