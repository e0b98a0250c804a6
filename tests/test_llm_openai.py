"""The backend over the openai package: what goes out, and what every kind of response becomes."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from llm_helpers import ask

from simfarm.errors import ConfigError
from simfarm.llm.backend import RateLimited, Rejected, Transient
from simfarm.llm.openai_server import OpenAIServer
from simfarm.llm.request import Request, completion

KEY = "sk-secret-0123456789"
OK = json.dumps(completion("A", finish_reason="stop", input_tokens=3, output_tokens=1)).encode()


class Server:
    """Answers as it is told; keeps what it was sent."""

    def __init__(self) -> None:
        self.status, self.headers, self.body, self.wait, self.drop = 200, dict[str, str](), OK, 0.0, False
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                if outer.drop:
                    self.close_connection = True
                    return
                self.send_response(outer.status)
                for name, value in ({"Content-Length": str(len(outer.body))} | outer.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                for start in range(0, len(outer.body), 40):
                    time.sleep(outer.wait)
                    self.wfile.write(outer.body[start : start + 40])

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def ask(self, request: Request | None = None, *, base_url: str | None = None, timeout: float = 10.0) -> Any:
        async def run() -> Any:
            backend = OpenAIServer(base_url or f"http://127.0.0.1:{self.port}/v1", None, timeout=timeout)
            try:
                return await backend.complete(request or ask("q", "openai/m"))
            finally:
                await backend.close()

        return asyncio.run(run())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "OPENAI_BASE_URL", "OPENAI_CUSTOM_HEADERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    running = Server()
    yield running
    running.close()


def test_what_goes_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    request = ask("half a pair \ud800", "openai/m", temperature=0.5, max_tokens=7, extra='{"top_k":3}')
    assert server.ask(request) == json.loads(OK)
    ((path, headers, body),) = server.got
    assert path == "/v1/chat/completions"
    assert json.loads(body) == {
        "model": "m",
        "messages": [{"role": "user", "content": "half a pair \ud800"}],
        "temperature": 0.5,
        "max_tokens": 7,
        "top_k": 3,
    }
    assert headers["authorization"] == f"Bearer {KEY}" and headers["content-type"] == "application/json"
    own = {name for name in headers if name.startswith(("x-stainless", "openai-"))}
    assert not own, "nothing about this machine, its user's organization or project goes to a server of one's own"


def test_organization_and_project_go_to_openai_itself(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setattr("simfarm.llm.openai_server.OPENAI_URL", f"http://127.0.0.1:{server.port}/v1")

    async def run() -> None:
        backend = OpenAIServer(None, None, timeout=5)
        await backend.complete(ask("q", "openai/m", max_tokens=7))
        await backend.close()

    asyncio.run(run())
    ((_, headers, body),) = server.got
    assert headers["openai-organization"] == "org-1" and "openai-project" not in headers
    assert json.loads(body)["max_completion_tokens"] == 7


def test_without_a_key_none_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-admin-0123456789")
    server.ask()
    assert "authorization" not in server.got[0][1]
    with pytest.raises(ConfigError, match="http://"):
        server.ask(base_url="localhost:8000/v1")


def test_rate_limits_name_the_wait(server: Server) -> None:
    server.status, server.headers = 429, {"Retry-After": "7"}
    server.body = json.dumps({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}).encode()
    with pytest.raises(RateLimited, match="slow down") as caught:
        server.ask()
    assert caught.value.retry_after == 7
    assert len(server.got) == 1, "the client retries, not the package"


def test_no_money_left_is_no_rate_limit(server: Server) -> None:
    server.status, server.body = 429, b'{"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}'
    with pytest.raises(Rejected) as caught:
        server.ask()
    assert caught.value.whole_endpoint


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503, 529])
def test_server_errors_are_worth_another_try(server: Server, status: int) -> None:
    server.status, server.body = status, b"<html>bad gateway</html>"
    with pytest.raises(Transient, match=f"{status}: <html>bad gateway"):
        server.ask()


@pytest.mark.parametrize(("status", "whole"), [(400, False), (422, False), (401, True), (403, True), (404, True)])
def test_refusals_are_in_the_servers_words_without_the_key(server: Server, status: int, whole: bool) -> None:
    server.status = status
    server.body = json.dumps({"error": {"message": f"no: {KEY} and sk-other-123456", "code": "c"}}).encode()
    with pytest.raises(Rejected, match="no: ") as caught:
        server.ask()
    assert caught.value.whole_endpoint is whole
    assert caught.value.__cause__ is None
    assert "0123456789" not in str(caught.value) and "123456" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [b'{"choices": [{"mess', b"[1, 2]", b"null", b'"A"', b"\xff\xfe", b"[" * 100_000, b""],
)
def test_broken_bodies_are_worth_another_try(server: Server, body: bytes) -> None:
    server.body = body
    with pytest.raises(Transient):
        server.ask()


def test_a_body_packed_otherwise_than_it_says(server: Server) -> None:
    server.headers = {"Content-Encoding": "gzip"}
    with pytest.raises(Transient):
        server.ask()


def test_another_kind_of_success_is_none(server: Server) -> None:
    server.status = 202
    with pytest.raises(Rejected, match="202"):
        server.ask()


def test_a_redirect_is_not_followed(server: Server) -> None:
    server.status, server.headers = 307, {"Location": f"http://127.0.0.1:{server.port}/elsewhere"}
    with pytest.raises(Rejected, match="307") as caught:
        server.ask()
    assert caught.value.whole_endpoint
    assert [path for path, _, _ in server.got] == ["/v1/chat/completions"]


def test_lost_connections_are_named(server: Server) -> None:
    server.drop = True
    with pytest.raises(Transient, match=rf"connection to 127.0.0.1:{server.port}/v1 failed: ServerDis"):
        server.ask()
    with pytest.raises(Transient, match=r"failed: .*Refused"):
        server.ask(base_url="http://127.0.0.1:9/v1")
    server.drop, server.headers = False, {"Content-Length": str(len(OK) + 10), "Connection": "close"}
    with pytest.raises(Transient, match="failed: "):
        server.ask(timeout=0.5)


def test_an_answer_that_trickles_is_given_up_in_time(server: Server) -> None:
    server.wait = 0.2  # each piece comes well within the limit, the whole does not
    begun = time.monotonic()
    with pytest.raises(Transient, match="no answer in time"):
        server.ask(timeout=0.5)
    assert time.monotonic() - begun < 2


def test_the_proxy_of_the_environment_is_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.port}")
    assert server.ask(base_url="http://judge.example/v1") == json.loads(OK)
    assert server.got[0][0] == "http://judge.example/v1/chat/completions"
    monkeypatch.setenv("NO_PROXY", "judge.example")
    with pytest.raises(Transient, match="failed"):
        server.ask(base_url="http://judge.example/v1", timeout=2)
    assert len(server.got) == 1


def test_the_package_is_imported_only_when_a_call_is_owed() -> None:
    code = (
        "import sys, simfarm.cli.annotate, simfarm.annotators.pool, simfarm.annotators.costs;"
        "sys.exit(any(name in sys.modules for name in ('openai', 'aiohttp', 'httpx2', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
