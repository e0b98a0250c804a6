"""The documentation: it builds without a warning, and says what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import simfarm as sf
from simfarm.cli import VERBS

ROOT = Path(__file__).parent.parent


def test_the_docs_build_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("mkdocs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True)
    # strict: build() aborts at a warning
    build(config)
    assert (tmp_path / "site/recipes/index.html").is_file()
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def test_the_page_on_python_names_what_there_is() -> None:
    text = (ROOT / "docs/python.md").read_text("utf-8")
    named = set(re.findall(r"^\| `(\w+)", text, re.MULTILINE))
    assert named == set(sf.__all__)


def test_the_page_on_the_command_line_names_every_verb() -> None:
    text = (ROOT / "docs/command-line.md").read_text("utf-8")
    table = text[text.index("| verb") : text.index("**JSON.**")]
    assert {name.split()[0] for name in re.findall(r"`([\w ]+)`", table)} >= set(VERBS)


def test_the_commands_of_the_recipes_have_the_options_they_use() -> None:
    import click

    from simfarm.cli import cli

    context = click.Context(cli)
    commands = re.findall(r"^simfarm (.+)$", (ROOT / "docs/recipes.md").read_text("utf-8"), re.MULTILINE)
    assert len(commands) > 12
    for line in commands:
        words = line.split("#")[0].split()
        command = cli.get_command(context, words[0])
        if isinstance(command, click.Group):
            command = command.commands[words[1]]
        assert command is not None, line
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_citation_has_the_version() -> None:
    assert f"\nversion: {sf.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
