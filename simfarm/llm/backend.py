"""What a backend is: it turns a request into a raw chat completion, or says in which of three ways it failed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from simfarm.errors import ConfigError
from simfarm.llm.request import PROVIDERS, Answer, Request, server_of


class CallFailed(Exception):
    """A call brought no answer."""


class RateLimited(CallFailed):
    """The server asks to slow down (429)."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds, if the server named them."""


class Transient(CallFailed):
    """Worth another try: a server error, a lost connection, a timeout, a broken body."""


class Unreachable(Transient):
    """There was no response: no connection, a lost one, no answer in time."""


class Rejected(CallFailed):
    """The same call would be refused again.

    `kind` tells refusals of one cause apart from others. With `whole_endpoint` the cause is not this one request: a bad
    key, no such model, no money left.
    """

    def __init__(self, message: str, *, kind: str, whole_endpoint: bool) -> None:
        super().__init__(message)
        self.kind, self.whole_endpoint = kind, whole_endpoint


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is asked. Not part of any key, but for `server`."""

    model: str
    """`provider/model`."""
    base_url: str | None = None
    api_key_env: str | None = None
    """The environment variable that holds the key."""

    def __post_init__(self) -> None:
        provider, _, name = self.model.partition("/")
        if provider not in PROVIDERS or not name:
            raise ConfigError(
                f"The model {self.model!r} is not of the form provider/model. Providers: {', '.join(PROVIDERS)}; for "
                "example openai/gpt-6-luna, vllm/Qwen/Qwen3.5-9B, hf/smollm2-135m, fake/oracle."
            )

    @property
    def provider(self) -> str:
        """What stands before the first slash."""
        return self.model.split("/", 1)[0]

    @property
    def in_process(self) -> bool:
        """Whether the model runs in this process, in batches."""
        return self.provider == "hf" or (self.provider == "vllm" and not self.base_url)

    @property
    def server(self) -> str | None:
        """What of the place belongs into a request's key: see `request.server_of`.

        vllm/ models are named by their weights, so it does not matter where they are served.
        """
        if self.provider != "openai":
            return None
        server = server_of(self.base_url or os.environ.get("OPENAI_BASE_URL"))
        return None if server in (None, "api.openai.com/v1", "api.openai.com") else server


class Backend(Protocol):
    """Asks a server, one request at a time; many calls may be under way."""

    async def complete(self, request: Request) -> dict[str, Any]:
        """Return the raw chat completion.

        Raises:
            CallFailed: One of its three kinds.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


@runtime_checkable
class BatchBackend(Protocol):
    """Runs a model in this process, a batch at a time."""

    def complete_many(self, requests: Sequence[Request]) -> list[dict[str, Any] | CallFailed]:
        """Return a raw chat completion, or why there is none, for each request."""
        ...

    def unload(self) -> None:
        """Free the model's memory."""
        ...


def defused(content: str, tags: Iterable[str]) -> str:
    """Break the control tags of a model's chat template inside a text, so that its tokenizer reads them as text.

    A zero-width space goes behind the first character; the text looks the same.
    """
    for tag in tags:
        if len(tag) > 1 and tag in content:
            content = content.replace(tag, f"{tag[0]}\u200b{tag[1:]}")
    return content


def checked(raw: dict[str, Any], latency: float, key: str, request: Request) -> Answer:
    """Read a fresh response and make sure that it may be stored as an answer.

    Raises:
        Transient: It is no chat completion, or empty for no reason.
        Rejected: The provider's filter withheld the answer, or reasoning used up all tokens.
    """
    try:
        answer = Answer.read(raw, latency=latency, key=key)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Transient(f"the response is no chat completion: {error}") from None
    refusal = (raw["choices"][0].get("message") or {}).get("refusal")
    if answer.finish_reason == "content_filter" or refusal:
        raise Rejected(
            f"the provider withheld the answer: {str(refusal or 'content filter')[:200]}",
            kind="withheld",
            whole_endpoint=False,
        )
    if not answer.text:
        if answer.finish_reason == "length":
            raise Rejected(
                f"the model used all {request.max_tokens} tokens for reasoning and answered nothing; raise max_tokens "
                "or lower reasoning_effort",
                kind="no tokens left",
                whole_endpoint=False,
            )
        raise Transient("the answer is empty")
    return answer
