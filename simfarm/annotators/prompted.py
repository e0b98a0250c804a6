"""An annotator that is a language model with a prompt, a parser and decoding parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, model_validator

from simfarm.annotators.base import Presentation
from simfarm.annotators.parsers import Logprobs, Parser
from simfarm.annotators.prompts import Template, Values, parse_template
from simfarm.errors import ConfigError
from simfarm.llm.backend import Endpoint
from simfarm.llm.client import Client, Failure, Job, Outcome, Stream
from simfarm.llm.request import Request, canonical
from simfarm.llm.store import open_store
from simfarm.records import Verdict

PAIR_SLOTS = ("instruction", "input", "output_1", "output_2", "number", "count")
LIST_SLOTS = ("instruction", "input", "letter", "output", "count")

Deliver = Callable[[int, Verdict], None]
"""Told the verdict of the pair at an index, as soon as it is there."""


class ModelSpec(BaseModel):
    """A model, where to ask it, and what it needs that members need not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    """`provider/model`."""
    base_url: str | None = None
    api_key_env: str | None = None
    """The environment variable that holds the API key; OPENAI_API_KEY if unset."""
    revision: str | None = None
    """Revision of the weights, or any word that tells two servers' models of one name apart."""
    reasoning_effort: str | None = None
    takes_temperature: bool = True
    """Whether the model can be told a temperature; a member's is not sent otherwise."""
    spare_tokens: int = Field(0, ge=0)
    """Added to a member's max_tokens, for a model that spends tokens on reasoning first."""
    extra: dict[str, Any] = {}
    """Further fields of the request's body."""

    @property
    def endpoint(self) -> Endpoint:
        """Where to ask it."""
        return Endpoint(self.model, self.base_url, self.api_key_env)


class PromptedMember(BaseModel):
    """A member of a pool that is prompted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["prompted"] = "prompted"
    name: str
    weight: float = Field(1.0, ge=0)
    model: str
    """A role of the pool's `[models]`, or `provider/model`."""
    prompt: str
    """Path of the prompt file in the pool's folder."""
    list_prompt: str | None = None
    """Path of the prompt file for ranking a list of candidates; the pool's if unset."""
    fill: dict[str, str] = {}
    """Text for further slots of the prompt, such as a persona."""
    parser: Parser
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int = Field(64, ge=1)
    stop: tuple[str, ...] = ()
    response_format: dict[str, Any] | None = None
    comparisons_per_prompt: int = Field(1, ge=1, le=20)

    @model_validator(mode="after")
    def _check(self) -> PromptedMember:
        if self.comparisons_per_prompt > 1 and isinstance(self.parser, Logprobs):
            raise ValueError(f"member {self.name!r}: logprobs hold one verdict, so comparisons_per_prompt must be 1")
        if clash := sorted(set(self.fill) & {*PAIR_SLOTS, *LIST_SLOTS}):
            raise ValueError(f"member {self.name!r}: fill may not set {', '.join(clash)}, which each comparison fills")
        return self


@runtime_checkable
class AsksModels(Protocol):
    """An annotator whose verdicts are calls, so that a pool can have all its members' calls under way at once."""

    def stream(self, pairs: Sequence[Presentation], deliver: Deliver, *, soft: bool) -> Stream:
        """Return the calls that judge the pairs; each verdict is delivered when its call is answered."""
        ...


class PromptedAnnotator:
    """A language model with a prompt and a parser."""

    def __init__(
        self, member: PromptedMember, spec: ModelSpec, template: Template, list_template: Template | None = None
    ) -> None:
        self.member, self.spec, self.template, self.list_template = member, spec, template, list_template
        self.endpoint = spec.endpoint
        self._server = self.endpoint.server

    def judge(self, pairs: Sequence[Presentation], *, soft: bool = False) -> list[Verdict]:
        """Judge the pairs, through the store in the user's cache; see `Annotator.judge`."""
        verdicts: dict[int, Verdict] = {}
        Client(open_store()).run([self.stream(pairs, verdicts.__setitem__, soft=soft)])
        return [verdicts[i] for i in range(len(pairs))]

    def stream(self, pairs: Sequence[Presentation], deliver: Deliver, *, soft: bool) -> Stream:
        """Return the calls that judge the pairs; see `AsksModels.stream`.

        Raises:
            ConfigError: `soft` is asked and the parser knows no probabilities.
        """
        if soft and not isinstance(self.member.parser, Logprobs):
            raise ConfigError(
                f"The annotator {self.member.name!r} has no probabilities, so it gives no soft labels: its parser is "
                f"{self.member.parser.kind!r}. Give it the parser 'logprobs', or ask for hard labels."
            )
        return Stream(self.endpoint, self._jobs(pairs, deliver, soft))

    def _jobs(self, pairs: Sequence[Presentation], deliver: Deliver, soft: bool) -> Iterator[Job]:
        for group in groups(pairs, self.member.comparisons_per_prompt):
            shown = [pairs[i] for i in group]

            def read(outcome: Outcome, group: list[int] = group, shown: list[Presentation] = shown) -> None:
                for i, verdict in zip(group, self.verdicts(shown, outcome, soft=soft), strict=True):
                    deliver(i, verdict)

            yield Job(self.request(shown), read)

    def request(self, shown: Sequence[Presentation]) -> Request:
        """Return the call that judges these pairs in one prompt."""
        return self._request(self.template.render(self._values(shown)), shown[0].replicate)

    def _request(self, messages: Any, replicate: int, **changes: Any) -> Request:
        member, spec = self.member, self.spec
        parser = member.parser
        values: dict[str, Any] = {
            "model": spec.model,
            "messages": messages,
            "temperature": member.temperature if spec.takes_temperature else None,
            "top_p": member.top_p if spec.takes_temperature else None,
            "max_tokens": member.max_tokens + spec.spare_tokens,
            "top_logprobs": parser.top if isinstance(parser, Logprobs) else None,
            "stop": member.stop,
            "reasoning_effort": spec.reasoning_effort,
            "response_format": canonical(member.response_format) if member.response_format else None,
            "extra": canonical(spec.extra) if spec.extra else None,
            "revision": spec.revision,
            "server": self._server,
            "replicate": replicate,
        }
        return Request(**(values | changes))

    def _values(self, shown: Sequence[Presentation]) -> Values:
        each = [
            self._texts(pair.comparison.instruction, pair.comparison.input, self.template)
            | {"output_1": pair.outputs[0], "output_2": pair.outputs[1], "number": str(number)}
            for number, pair in enumerate(shown, 1)
        ]
        return {**self.member.fill, "count": str(len(shown)), "each": each, **(each[0] if len(each) == 1 else {})}

    @staticmethod
    def _texts(instruction: str, input: str, template: Template) -> dict[str, str]:
        # a prompt without a place for the input shows it below the instruction
        joined = instruction if "input" in template.slots or not input else f"{instruction}\n\n{input}"
        return {"instruction": joined, "input": input}

    def verdicts(self, shown: Sequence[Presentation], outcome: Outcome, *, soft: bool = False) -> list[Verdict]:
        """Read the verdicts of the pairs of one prompt."""
        count, result = len(shown), outcome.result
        cost = None if outcome.cost is None else outcome.cost / count
        if isinstance(result, Failure):
            return [Verdict(None, reason=result.reason, cost=cost)] * count
        tokens = None
        if result.input_tokens is not None and result.output_tokens is not None:
            tokens = round((result.input_tokens + result.output_tokens) / count)
        drawn = []
        for pair, parsed in zip(shown, self.member.parser.parse(result, count), strict=True):
            preference = parsed.preference
            if preference is not None and isinstance(self.member.parser, Logprobs) and not soft:
                preference = 1.0 if pair.uniform("verdict", self.member.name) < 2.0 - preference else 2.0
            drawn.append(
                Verdict(
                    preference,
                    reason=parsed.reason,
                    raw=result.text,
                    cost=cost,
                    latency=result.latency,
                    tokens=tokens,
                )
            )
        return drawn

    def list_request(
        self, instruction: str, input: str, candidates: Mapping[str, str], *, replicate: int, max_tokens: int
    ) -> Request:
        """Return the call that ranks candidates, given by letter.

        Raises:
            ConfigError: The member has no prompt for lists.
        """
        template = self.list_template
        if template is None:
            raise ConfigError(
                f"The annotator {self.member.name!r} has no prompt for lists. Set list_prompt for the member or the "
                'pool, or rank by pairs: how="pairs".'
            )
        values: Values = {
            **self.member.fill,
            **self._texts(instruction, input, template),
            "count": str(len(candidates)),
            "candidates": [{"letter": letter, "output": output} for letter, output in candidates.items()],
        }
        return self._request(
            template.render(values),
            replicate,
            max_tokens=max_tokens + self.spec.spare_tokens,
            top_logprobs=None,
            response_format=None,
            stop=(),
        )


def groups(pairs: Sequence[Presentation], size: int) -> Iterator[list[int]]:
    """Yield indices of pairs that share a prompt: in order, never one comparison twice, one replicate at a time."""
    if size == 1:
        yield from ([i] for i in range(len(pairs)))
        return
    waiting: list[tuple[list[int], set[tuple[object, int]]]] = []
    for i, pair in enumerate(pairs):
        content = (pair.comparison.key, pair.replicate)
        for members, contents in waiting:
            if content not in contents and pairs[members[0]].replicate == pair.replicate:
                break
        else:
            members, contents = [], set()
            waiting.append((members, contents))
        members.append(i)
        contents.add(content)
        if len(members) == size:
            waiting = [entry for entry in waiting if entry[0] is not members]
            yield members
    yield from (members for members, _ in waiting)


def read_template(path: Path, member: PromptedMember, *, slots: Sequence[str]) -> Template:
    """Read a prompt file and check that it fits the member.

    Raises:
        ConfigError: The file is missing or not valid, a slot that it needs is missing, or `fill` names one it lacks.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(
            f"The prompt {path} of the member {member.name!r} cannot be read: {error.strerror}."
        ) from error
    template = parse_template(text, str(path), (*slots, *member.fill))
    needed = {"output"} if slots is LIST_SLOTS else {"output_1", "output_2"}
    if missing := sorted(needed - template.slots):
        raise ConfigError(f"{path}: the slot {{{missing[0]}}} is missing; the judge would not see it.")
    block = "candidates" if slots is LIST_SLOTS else "each" if member.comparisons_per_prompt > 1 else None
    if block and not template.repeats(block):
        raise ConfigError(f"{path}: the block {{#{block}}}…{{/{block}}} is missing.")
    if unused := sorted(set(member.fill) - template.slots) if slots is PAIR_SLOTS else []:
        raise ConfigError(f"{path}: the member {member.name!r} fills {{{unused[0]}}}, which does not stand there.")
    return template
