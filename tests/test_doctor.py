"""`simfarm doctor`: what it finds, what it never shows, and its exit code."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from click.testing import CliRunner
from packaging.requirements import Requirement

from simfarm import doctor, models
from simfarm.cli import cli
from simfarm.doctor import Finding
from simfarm.errors import ConfigError

SECRET = "sk-very-secret-0123456789"
Handler = Callable[[web.Request], Awaitable[web.Response]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/v1/models", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


def ask(handler: Handler, *, key: str = "", timeout: float = 5.0) -> Finding:
    async def run() -> Finding:
        async with serving(handler) as url:
            return await doctor.server(url, key, timeout)

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMFARM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)


def test_a_server_is_alive_or_what_mends_it() -> None:
    sent: list[str | None] = []

    async def alive(request: web.Request) -> web.Response:
        sent.append(request.headers.get("Authorization"))
        return web.json_response({"data": [{"id": f"m{i}"} for i in range(5)]})

    found = ask(alive, key=SECRET)
    assert found.state == "ok" and "serves m0, m1, m2 and 2 more" in found.found
    assert sent == [f"Bearer {SECRET}"]

    async def closed(_: web.Request) -> web.Response:
        return web.json_response({"error": f"bad key {SECRET}"}, status=401)

    found = ask(closed, key=SECRET)
    assert found.state == "bad" and "refuses the key (401)" in found.found and SECRET not in repr(found)

    async def elsewhere(_: web.Request) -> web.Response:
        raise web.HTTPFound("http://127.0.0.1:9/v1/models")

    assert "no list of models (302)" in ask(elsewhere).found

    async def slow(_: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.json_response({})

    assert "no answer in time" in ask(slow, timeout=0.2).found

    async def garbage(_: web.Request) -> web.Response:
        return web.Response(text="<html>")

    assert ask(garbage).state == "bad"


def test_a_dead_server_and_a_wrong_url() -> None:
    found = asyncio.run(doctor.server("http://user:hidden@127.0.0.1:9/v1", "", 2.0))
    assert found.state == "bad" and "does not answer" in found.found and "hidden" not in repr(found)
    with pytest.raises(ConfigError, match="write http://HOST:PORT/v1"):
        asyncio.run(doctor.server("localhost:8000", "", 2.0))


def test_versions_are_held_against_what_is_required() -> None:
    assert doctor._fits(Requirement("numpy>=2.2,<3"), "2.4.0")
    assert not doctor._fits(Requirement("numpy>=2.2,<3"), "1.26.0")
    assert not doctor._fits(Requirement("numpy"), None)
    assert doctor._belongs(Requirement("numpy>=2"), "")
    assert not doctor._belongs(Requirement("numpy>=2"), "local")
    assert doctor._belongs(Requirement('torch>=2; extra == "local"'), "local")
    assert not doctor._belongs(Requirement('torch>=2; extra == "local"'), "")
    groups = {one.name: one for one in doctor.packages()}
    assert groups["core"].state == "ok" and "numpy" in groups["core"].found


def test_a_damaged_model_is_bad_and_one_not_fetched_is_absent(tmp_path: Path) -> None:
    first, hub = doctor.stored_models(lambda line: None)
    assert (first.state, hub.state) == ("absent", "absent") and "simfarm models pull" in first.mend
    folder = models.stored_at(models.BUILTIN["smollm2-135m"])
    folder.mkdir(parents=True)
    (folder / models.MANIFEST).write_text(json.dumps({"sha256": {"model.safetensors": "0" * 64}}))
    (tmp_path / "hf/hub/models--owner--name").mkdir(parents=True)
    first, hub = doctor.stored_models(lambda line: None)
    assert first.state == "bad" and "--force" in first.mend
    assert hub.found == "hf/owner/name"


def test_the_estimate_scales_with_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "work", lambda: (lambda: None, "cpu"))
    monkeypatch.setattr(doctor, "timed", lambda task: (2 * doctor.REFERENCE_WORK, task[1]))
    low, high = (2 * doctor.QUICKSTART * factor / 60 for factor in (2 / 3, 3 / 2))
    assert f"about {low:.0f} to {high:.0f} minutes" in doctor.speed_of_machine().found
    monkeypatch.setattr(doctor, "work", lambda: (lambda: None, "cuda"))
    assert "minutes" not in doctor.speed_of_machine().found


def test_the_verb_shows_no_key_and_exits_with_what_needs_mending(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(cli, ["doctor", "--no-speed"])
    assert result.exit_code == 0, result.output
    assert "OPENAI_API_KEY: set" in result.output and SECRET not in result.output
    result = CliRunner().invoke(cli, ["doctor", "--no-speed", "--json", "--base-url", "http://127.0.0.1:9/v1"])
    assert result.exit_code == 1
    rows = json.loads(result.stdout)
    assert {row["group"] for row in rows} == {"packages", "devices", "keys", "models", "server"}
    assert next(row for row in rows if row["group"] == "server")["state"] == "bad"
    assert SECRET not in result.output
