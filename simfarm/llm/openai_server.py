"""`openai/…` (and `vllm/…` with a base URL): any server that speaks OpenAI's chat completions.

The openai package carries the requests, by its road for custom ones: `post` with the body as bytes, the response taken
as it came. The store wants it so, and turning it into typed objects costs more time than all the rest of a call. The
transport is the package's aiohttp one, several times quicker than its default. The client retries, not the package.
"""

from __future__ import annotations

import asyncio
import email.utils
import functools
import json
import os
import re
import ssl
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import aiohttp
import httpx2
import openai

from simfarm.errors import ConfigError
from simfarm.llm.backend import Backend, CallFailed, Endpoint, RateLimited, Rejected, Transient, Unreachable
from simfarm.llm.request import Request

OPENAI_URL = "https://api.openai.com/v1"
KEY_LIKE = re.compile(r"\b(sk-|Bearer )[A-Za-z0-9*_\-.]{4,}")
UNSENT = (
    *(f"X-Stainless-{what}" for what in ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version")),
    *(f"X-Stainless-{what}" for what in ("Async", "Retry-Count", "Read-Timeout")),
)
"""Headers by which the package describes this machine to the server; leaving them out also saves a tenth of a call."""
FAILURES = (openai.APIConnectionError, aiohttp.ClientError, OSError)
"""The transport lets some of aiohttp's own errors through."""
NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")


class _HTTPClient(openai.DefaultAioHttpClient):
    """Makes requests of what the openai package has merged already.

    Merging the headers again and parsing the URL again, as the base class does, is a tenth of the time of a call.
    """

    def build_request(self, method: str, url: httpx2.URL | str, **given: Any) -> httpx2.Request:
        """Return the request; see httpx2."""
        request = httpx2.Request(
            method,
            _parsed(url),
            headers=[("Accept-Encoding", self.headers["Accept-Encoding"]), *given["headers"]],
            # given as a stream, it does not have its headers looked through; aiohttp adds Host and Content-Length
            stream=httpx2.ByteStream(given["content"]),
            extensions={"timeout": given["timeout"].as_dict()},
        )
        request.headers.encoding = "ascii"
        request.read()
        return request


_parsed = functools.lru_cache(httpx2.URL)


class OpenAIServer:
    """One server. Connections are kept open and shared by all models asked there.

    Read from the environment: the key (OPENAI_API_KEY or what the endpoint names), OPENAI_BASE_URL, for OpenAI itself
    OPENAI_ORG_ID and OPENAI_PROJECT_ID, and the usual proxy settings.
    """

    def __init__(self, base_url: str | None, api_key_env: str | None, *, timeout: float) -> None:
        name = api_key_env or "OPENAI_API_KEY"
        base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        self._secret = os.environ.get(name, "")
        if not self._secret and not base_url:
            raise ConfigError(
                f"No API key: the environment variable {name} is not set. Set it, or give --base-url for a server of "
                "your own (simfarm serve MODEL starts one)."
            )
        if base_url and not re.match(r"https?://[^/]", base_url):
            raise ConfigError(f"The base URL {base_url!r} does not begin with http:// or https://.")
        self._where = _place(base_url or OPENAI_URL)
        # other servers know the limit by the name that OpenAI has retired
        self._limit_field = "max_tokens" if base_url else "max_completion_tokens"
        # whole, or it is put together and parsed anew for every call
        self._url = f"{(base_url or OPENAI_URL).rstrip('/')}/chat/completions"
        self._timeout = timeout
        self._client = openai.AsyncOpenAI(
            api_key=self._secret or "none",
            base_url=base_url or OPENAI_URL,
            max_retries=0,
            http_client=_HTTPClient(
                # 0 is aiohttp's word for no limit; how many are under way is the limiter's business
                limits=httpx2.Limits(max_connections=0, keepalive_expiry=15),
                timeout=httpx2.Timeout(timeout, connect=min(30.0, timeout)),
                # a redirect would carry the key and the prompt to a place nobody named
                follow_redirects=False,
                verify=_certificates(base_url or OPENAI_URL),
            ),
        )
        if base_url:
            self._client.organization = self._client.project = None
        unsent = UNSENT if self._secret else (*UNSENT, "Authorization")
        # what is given here need not be copied from the package's defaults for every call
        limits = {"max_retries": 0, "timeout": self._client.timeout, "security": {"bearer_auth": True}}
        self._options: Any = {"headers": dict.fromkeys(unsent, openai.Omit()), **limits}

    async def complete(self, request: Request) -> dict[str, Any]:
        """Ask; see `Backend.complete`."""
        body = json.dumps(request.body(limit_field=self._limit_field)).encode("ascii")
        try:
            # the transport's own limit is between two pieces of an answer, not for the whole of it
            async with asyncio.timeout(self._timeout):
                response = await self._client.post(
                    self._url, cast_to=httpx2.Response, content=body, options=self._options
                )
        except openai.APIStatusError as error:
            answer = error.response
            raise self._failure(answer.status_code, answer.headers, answer.content) from None
        except FAILURES as error:
            raise Unreachable(f"connection to {self._where} failed: {_cause(error)}") from None
        if response.status_code != 200:
            raise self._failure(response.status_code, response.headers, response.content)
        try:
            raw = json.loads(response.content)
        except (ValueError, RecursionError):
            raise Transient(f"{self._where} sent a body that is not JSON") from None
        if not isinstance(raw, dict):
            raise Transient(f"{self._where} sent a body that is not a chat completion")
        return raw

    def _failure(self, status: int, headers: Mapping[str, str], content: bytes) -> CallFailed:
        words, code = _error_in(content)
        words = words.replace(self._secret, "***") if self._secret else words
        shown = KEY_LIKE.sub(r"\1***", words)
        message = f"{self._where} answered {status}: {shown[:500].rstrip('.')}"
        if status == 429 and code not in NO_MONEY:
            return RateLimited(message, retry_after(headers))
        if status in (408, 409, 425) or status >= 500:
            return Transient(message)
        whole = status in (401, 402, 403, 404) or code in NO_MONEY or status < 400
        return Rejected(message, kind=f"{status} {code}", whole_endpoint=whole)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def _certificates(url: str) -> ssl.SSLContext | bool:
    # reading the certificates takes a twentieth of a second, which plain http to a server of one's own can do without;
    # a context without any trusts nobody
    plain = url.startswith("http://") and not getproxies()
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if plain else True


def _place(base_url: str) -> str:
    """Return host, port and path, without user and password."""
    parts = urlsplit(base_url)
    return parts.netloc.rpartition("@")[2] + parts.path.rstrip("/")


def _cause(error: BaseException) -> str:
    """Say what went wrong at the bottom; the package calls a dropped connection a timeout."""
    while error.__cause__ is not None and not isinstance(error, TimeoutError):
        error = error.__cause__
    return "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__


def _error_in(content: bytes) -> tuple[str, str]:
    """Return the words and the code of an error body, whichever server wrote it."""
    text = content.decode("utf-8", "replace").strip()
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return text or "no reason given", ""
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return str(error), ""
    words = error.get("message") or error.get("detail") or text
    return str(words), str(error.get("code") or error.get("type") or "")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Read Retry-After (seconds or a date) or retry-after-ms from a response's headers, in seconds."""
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return max(0.0, float(milliseconds) / 1000)
        if (text := headers.get("retry-after")) is not None:
            if re.fullmatch(r"\s*\d+(\.\d*)?\s*", text):
                return float(text)
            return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
    return None


def connect(endpoint: Endpoint, *, timeout: float) -> Backend:
    """Open a server for an endpoint.

    Raises:
        ConfigError: Its API key is not set.
    """
    return OpenAIServer(endpoint.base_url, endpoint.api_key_env, timeout=timeout)
