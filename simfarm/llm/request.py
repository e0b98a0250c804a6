"""A call to a language model as a value, its key, and the answer read back from what the server sent.

The key is a hash of everything that can change the answer and of nothing that cannot. The model's name, its revision,
the server (where the name alone does not fix the weights), the messages, the sampling parameters, logprobs, the
response format and the replicate are in it; concurrency, timeouts, prices and API keys are not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

Role = Literal["system", "user", "assistant"]

PROVIDERS = ("openai", "vllm", "hf", "fake")


class Message(NamedTuple):
    """One turn of a conversation."""

    role: Role
    content: str


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode


def canonical(value: object) -> str:
    """Return JSON that is the same for equal values: sorted keys, no spaces, ASCII (it keeps broken Unicode)."""
    return _encode(value)


@dataclass(frozen=True, slots=True)
class Request:
    """One call. A field left at its default does not enter the key, so that new fields leave old keys as they are."""

    model: str
    """`provider/model`."""
    messages: tuple[Message, ...]
    temperature: float | None = None
    """None: the provider's own default."""
    top_p: float | None = None
    max_tokens: int | None = None
    top_logprobs: int | None = None
    """Ask for the probabilities of this many tokens at each position."""
    stop: tuple[str, ...] = ()
    reasoning_effort: str | None = None
    response_format: str | None = None
    """JSON of the provider's `response_format`."""
    extra: str | None = None
    """JSON object of further fields of the request's body, such as {"chat_template_kwargs": …}."""
    revision: str | None = None
    """Revision of the weights, or any word that tells two servers' models of one name apart."""
    server: str | None = None
    """Which server, where the model's name alone does not fix the weights: see `server_of`."""
    replicate: int = 0

    @property
    def provider(self) -> str:
        """What stands before the first slash of the model."""
        return self.model.split("/", 1)[0]

    @property
    def model_name(self) -> str:
        """What stands behind the first slash of the model."""
        return self.model.split("/", 1)[1]

    def to_json(self) -> str:
        """Return the canonical JSON of the fields that are not at their defaults."""
        return canonical({name: value for name, default in _FIELDS if (value := getattr(self, name)) != default})

    @property
    def key(self) -> str:
        """sha256 of `to_json`, in hex."""
        return hashlib.sha256(self.to_json().encode("ascii")).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> Request:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        values["messages"] = tuple(Message(*turn) for turn in values["messages"])
        if "stop" in values:
            values["stop"] = tuple(values["stop"])
        return cls(**values)

    def body(self, *, limit_field: str) -> dict[str, Any]:
        """Return the body of an OpenAI chat completion.

        Args:
            limit_field: What the server calls `max_tokens`.
        """
        body: dict[str, Any] = {
            "model": self.model_name,
            "messages": [{"role": role, "content": content} for role, content in self.messages],
        }
        for name in ("temperature", "top_p", "reasoning_effort"):
            if (value := getattr(self, name)) is not None:
                body[name] = value
        if self.max_tokens is not None:
            body[limit_field] = self.max_tokens
        if self.top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        if self.stop:
            body["stop"] = list(self.stop)
        if self.response_format is not None:
            body["response_format"] = json.loads(self.response_format)
        if self.extra is not None:
            body |= json.loads(self.extra)
        return body


_FIELDS = [(f.name, f.default) for f in fields(Request)]


def server_of(base_url: str | None) -> str | None:
    """Return what a base URL says about who answers: host and path, without scheme, port, user, password and query.

    A model's name means other weights on another host, so the host is part of a request's key; the port is not, since
    one's own servers change theirs at every start.
    """
    if not base_url:
        return None
    parts = urlsplit(base_url if "//" in base_url else f"//{base_url}")
    host = (parts.hostname or "").lower()
    host = "localhost" if host in ("127.0.0.1", "0.0.0.0", "::1") else host
    return f"{host}{parts.path.rstrip('/')}"


class TokenProbability(NamedTuple):
    """One alternative at one position."""

    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered, read from the raw response."""

    text: str
    finish_reason: str
    positions: tuple[tuple[TokenProbability, ...], ...]
    """Per generated token itself and the likeliest others, with logprobs; empty if none were asked for."""
    input_tokens: int | None
    cached_tokens: int
    output_tokens: int | None
    latency: float
    """Seconds."""
    stored: bool = False
    """Whether it came from the store."""
    key: str = ""

    @classmethod
    def read(cls, raw: Mapping[str, Any], *, latency: float, stored: bool = False, key: str = "") -> Answer:
        """Read a chat completion.

        Raises:
            ValueError: It is not one; the message says what is wrong with it.
        """
        choices = raw.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise ValueError(f"no choices in the response {json.dumps(raw)[:200]}")
        choice = choices[0]
        message = choice.get("message") or {}
        text = message.get("content")
        if not isinstance(text, str | None):
            raise ValueError(f"the content of the message is no text: {json.dumps(text)[:200]}")
        usage = raw.get("usage") or {}
        logprobs = (choice.get("logprobs") or {}).get("content") or []
        return cls(
            text=text or "",
            finish_reason=choice.get("finish_reason") or "",
            positions=tuple(_alternatives(place) for place in logprobs),
            input_tokens=usage.get("prompt_tokens"),
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
            output_tokens=usage.get("completion_tokens"),
            latency=latency,
            stored=stored,
            key=key,
        )


def _alternatives(place: Mapping[str, Any]) -> tuple[TokenProbability, ...]:
    # servers list the likeliest tokens; the one that was drawn need not be the first of them, nor among them
    tops = [place, *(top for top in place.get("top_logprobs") or [] if top["token"] != place["token"])]
    return tuple(TokenProbability(str(top["token"]), float(top["logprob"])) for top in tops)


def completion(
    text: str,
    *,
    finish_reason: str,
    input_tokens: int,
    output_tokens: int,
    positions: list[list[TokenProbability]] | None = None,
) -> dict[str, Any]:
    """Put what an in-process model said into the form of a chat completion, so that one reader reads all backends."""
    content = [
        {
            "token": places[0].token,
            "logprob": places[0].logprob,
            "top_logprobs": [{"token": token, "logprob": logprob} for token, logprob in places],
        }
        for places in positions or []
        if places
    ]
    return {
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": finish_reason,
                "logprobs": {"content": content} if content else None,
            }
        ],
        "usage": {"prompt_tokens": input_tokens, "completion_tokens": output_tokens},
    }
