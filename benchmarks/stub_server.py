"""A local server that speaks OpenAI's chat completions, for benchmarks and tests. It answers "A" and its logprobs.

Prints `ready PORT` and serves until its standard input closes, so that it never outlives the one who started it.
With --log it appends a line per request: the sha256 of its last message and what was answered.
With --faults it misbehaves on that share of requests: 429 with Retry-After, 500, a dropped connection, a body that is
not JSON, a slow answer. Which request meets which fault depends on its last message and on how often it was asked.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import hashlib
import json
import os
import sys
from typing import Any

from aiohttp import web

FAULTS = ("429", "500", "dropped", "garbage", "slow")


def answer(text: str, model: str, size: int) -> bytes:
    top = [{"token": "A", "logprob": -0.4, "bytes": [65]}, {"token": "B", "logprob": -1.2, "bytes": [66]}]
    top += [{"token": "m", "logprob": -2.0, "bytes": [109]}, {"token": "M", "logprob": -2.5, "bytes": [77]}]
    body = {
        "id": "chatcmpl-stub",
        "object": "chat.completion",
        "created": 1_780_000_000,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": {"content": [{**top[0], "top_logprobs": top}], "refusal": None},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": size // 4, "completion_tokens": 1, "total_tokens": size // 4 + 1},
    }
    return json.dumps(body).encode()


class Stub:
    """Answers, misbehaves and notes what it did."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.asked: collections.Counter[str] = collections.Counter()
        self.log = options.log

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer one chat completion."""
        body = json.loads(await request.read())
        name = hashlib.sha256(body["messages"][-1]["content"].encode()).hexdigest()
        fault = self.fault(name)
        self.asked[name] += 1
        if fault:
            self.note(name, fault)
        match fault:
            case "429":
                return web.json_response(error("slow down", "rate_limit"), status=429, headers={"Retry-After": "0.2"})
            case "500":
                return web.json_response(error("internal error", "server_error"), status=500)
            case "dropped":
                assert request.transport is not None
                request.transport.close()
                return web.Response()
            case "garbage":
                return web.Response(body=b'{"choices": [{"mess', content_type="application/json")
            case "slow":
                await asyncio.sleep(self.options.slow)
        await asyncio.sleep(self.options.latency)
        if self.options.refuse:
            status, code, message = self.options.refuse.split(":", 2)
            return web.json_response(error(message, code), status=int(status))
        size = sum(len(message["content"]) for message in body["messages"])
        response = web.Response(body=answer(self.options.text, body["model"], size), content_type="application/json")
        if self.log:
            with contextlib.suppress(ConnectionResetError):  # who asked is gone, and was not answered
                await response.prepare(request)
                await response.write_eof()
                self.note(name, "answered")
        return response

    def fault(self, name: str) -> str:
        """Draw the fault that this asking of a request meets, or none."""
        draw = hashlib.sha256(f"{self.options.seed} {name} {self.asked[name]}".encode()).digest()
        if int.from_bytes(draw[:4], "big") / 2**32 >= self.options.faults:
            return ""
        return FAULTS[draw[4] % len(FAULTS)]

    def note(self, name: str, what: str) -> None:
        """Append to the log; one write of one line, so that a reader never sees half of it."""
        if self.log:
            os.write(self.log, f"{name} {what}\n".encode())


def error(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": code, "code": code, "param": None}}


async def serve(options: argparse.Namespace) -> None:
    stub = Stub(options)
    app = web.Application(client_max_size=2**24)
    app.router.add_post("/v1/chat/completions", stub.complete)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", options.port)
    await site.start()
    port = runner.addresses[0][1]
    print(f"ready {port}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    os._exit(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds")
    parser.add_argument("--text", default="A", help="what every answer says")
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests that meet a fault")
    parser.add_argument("--slow", type=float, default=1.0, help="seconds more that a slow answer takes")
    parser.add_argument("--refuse", default="", help="STATUS:CODE:MESSAGE for every request")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=lambda path: os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), default=0)
    asyncio.run(serve(parser.parse_args()))
