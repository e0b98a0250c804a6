"""Reading verdicts from answers. What cannot be read is None with a reason; nothing is ever guessed or evaluated.

Every parser reads `count` verdicts, one per comparison of the prompt, in presented coordinates: 1 = the first shown is
better, 2 = the second, 1.5 = a tie, values between where the parser knows a probability.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from simfarm.llm.request import Answer
from simfarm.records import preference_from_probability

THINKING_ENDS = "</think>"
NUMBERED = r"^\W*(?:comparison|pair|question|case)?\W*{number}\s*[\])>.:\-–—=]+"
FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
MOST_STARTS = 200
"""Brackets tried as the beginning of JSON; more means that an answer is hostile, not that it is long."""
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w])(?!\.\d)")


class Parsed(NamedTuple):
    """One verdict read."""

    preference: float | None
    reason: str = ""


class _Parser(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def parse(self, answer: Answer, count: int) -> list[Parsed]:
        """Read `count` verdicts from an answer."""
        # models that think aloud do so before this tag, if their server does not take it away
        text = answer.text.rpartition(THINKING_ENDS)[2].strip()
        parsed = self._read(text, count)
        if answer.finish_reason == "length" and any(p.preference is None for p in parsed):
            return [p if p.preference is not None else Parsed(None, f"cut off: {p.reason}") for p in parsed]
        return parsed

    def _read(self, text: str, count: int) -> list[Parsed]:
        raise AssertionError("every parser reads")


class _Symbols(_Parser):
    first: str = "A"
    """What stands for the output shown first."""
    second: str = "B"
    tie: str | None = None
    """What stands for a tie; None: the judge must choose."""
    after: str | None = None
    """Read only what stands behind the last of these words, as in a reasoned answer that ends with `Verdict: A`."""

    @model_validator(mode="after")
    def _check(self) -> _Symbols:
        symbols = [s for s in (self.first, self.second, self.tie) if s is not None]
        if len({s.lower() for s in symbols}) < len(symbols) or not all(symbols):
            raise ValueError("first, second and tie need different, non-empty symbols")
        return self

    @property
    def _values(self) -> dict[str, float]:
        values = {self.first: 1.0, self.second: 2.0}
        return values if self.tie is None else values | {self.tie: 1.5}

    def _behind(self, text: str) -> str | None:
        """Return what stands behind the marker; None if it is missing."""
        if self.after is None:
            return text
        head, found, tail = text.lower().rpartition(self.after.lower())
        return text[len(head) + len(found) :] if found and len(head + found + tail) == len(text) else None

    def _missing(self) -> Parsed:
        return Parsed(None, f"the answer has no {self.after!r}")

    def _one(self, text: str) -> Parsed:
        """Read one symbol from a text that should hold little else."""
        values = self._values
        bare = text.strip().strip("*_`\"'()[]{}<>.:,;! \n")
        for symbol, value in values.items():
            if bare.lower() == symbol.lower():
                return Parsed(value)
        for form in (r"\[\[\s*{}\s*\]\]", r"\*\*\s*{}\s*\*\*", r"(?<!\w){}(?!\w)"):
            named = {s for s in values if re.search(form.format(re.escape(s)), text)}
            if len(named) == 1:
                return Parsed(values[named.pop()])
            if named:
                return Parsed(None, f"the answer names {' and '.join(sorted(named))}")
        return Parsed(None, "no verdict in the answer" if text.strip() else "the answer ends before the verdict")


def _lines_by_number(text: str, count: int) -> list[str | None]:
    """Return for each number from 1 the rest of the line that begins with it; None if no line or more than one does."""
    found: list[str | None] = []
    for number in range(1, count + 1):
        lines = [
            line[match.end() :]
            for line in text.splitlines()
            if (match := re.match(NUMBERED.format(number=number), line, re.IGNORECASE))
        ]
        found.append(lines[0] if len(lines) == 1 else None)
    return found


class Choice(_Symbols):
    """A letter, a number or a word: `A`. Several comparisons: one numbered line each, `1: A`."""

    kind: Literal["choice"] = "choice"

    def _read(self, text: str, count: int) -> list[Parsed]:
        tail = self._behind(text)
        if tail is None:
            return [self._missing()] * count
        if count == 1:
            # behind a marker the verdict is what comes next; the model may go on to explain it
            if self.after is not None and (line := next((x for x in tail.splitlines() if x.strip(" *_#")), None)):
                tail = line
            return [self._one(tail)]
        return [
            Parsed(None, f"no line for comparison {i}") if line is None else self._one(line)
            for i, line in enumerate(_lines_by_number(tail, count), 1)
        ]


class Ranking(_Symbols):
    """The two symbols, better first: `B > A`, `["B", "A"]`, or one a line; `A = B` is a tie."""

    kind: Literal["ranking"] = "ranking"

    def _read(self, text: str, count: int) -> list[Parsed]:
        tail = self._behind(text)
        if tail is None:
            return [self._missing()] * count
        lines: list[str | None] = [tail] if count == 1 else _lines_by_number(tail, count)
        return [
            Parsed(None, f"no line for comparison {i}") if line is None else self._ranked(line)
            for i, line in enumerate(lines, 1)
        ]

    def _ranked(self, text: str) -> Parsed:
        groups = ranked_groups(text, (self.first, self.second))
        if groups is None:
            return Parsed(None, "the answer does not rank both")
        return Parsed(1.5 if len(groups) == 1 else self._values[groups[0][0]])


def ranked_groups(text: str, symbols: Sequence[str]) -> list[list[str]] | None:
    """Read a ranking of symbols.

    Returns:
        The symbols in groups, best first; symbols with an equals sign between them share a group. None if a symbol is
        missing or stands twice, or "<" stands between two of them.
    """
    pattern = "|".join(re.escape(s) for s in sorted(symbols, key=len, reverse=True))
    found = list(re.finditer(rf"(?<!\w)(?:{pattern})(?!\w)", text))
    if sorted(match[0] for match in found) != sorted(symbols):
        return None
    groups = [[found[0][0]]]
    for before, after in itertools.pairwise(found):
        between = text[before.end() : after.start()]
        if "<" in between:
            # "A < B" puts the better one last, "A</b> B" does not: it is not guessed which is meant
            return None
        if "=" in between:
            groups[-1].append(after[0])
        else:
            groups.append([after[0]])
    return groups


class Scores(_Parser):
    """Two scores, for the first and the second shown: `7 9`, or a line `A: 7` and a line `B: 9`."""

    kind: Literal["scores"] = "scores"
    first: str = "A"
    second: str = "B"
    low: float = 1
    high: float = 10
    after: str | None = None

    def _read(self, text: str, count: int) -> list[Parsed]:
        if self.after is not None:
            _, found, text = text.rpartition(self.after)
            if not found:
                return [Parsed(None, f"the answer has no {self.after!r}")] * count
        lines: list[str | None] = [text] if count == 1 else _lines_by_number(text, count)
        return [
            Parsed(None, f"no line for comparison {i}") if line is None else self._scored(line)
            for i, line in enumerate(lines, 1)
        ]

    def _scored(self, text: str) -> Parsed:
        number = r"\W*(\d+(?:\.\d+)?)(?:\s*/\s*10)?(?![\w.]*\d)"
        named = [
            re.findall(rf"(?<!\w){re.escape(symbol)}(?!\w)\W{{0,12}}{number}", text)
            for symbol in (self.first, self.second)
        ]
        if all(len(found) == 1 for found in named):
            scores = [float(found[0]) for found in named]
        else:
            scores = [float(found) for found in NUMBER.findall(text)]
            if len(scores) != 2:
                return Parsed(None, f"{len(scores)} scores where two belong")
        if not all(self.low <= score <= self.high for score in scores):
            return Parsed(None, f"a score is not from {self.low:g} to {self.high:g}")
        return Parsed(1.5 if scores[0] == scores[1] else 1.0 if scores[0] > scores[1] else 2.0)


class Json(_Symbols):
    """A JSON object with the verdict under `key`; several comparisons: a list of objects, in order."""

    kind: Literal["json"] = "json"
    key: str = "better"

    def _read(self, text: str, count: int) -> list[Parsed]:
        value = find_json(text)
        if value is None:
            return [Parsed(None, "no JSON in the answer")] * count
        if isinstance(value, dict) and count > 1:
            # servers that force an object wrap the list in one
            value = next((inner for inner in value.values() if isinstance(inner, list)), value)
        items = value if isinstance(value, list) else [value]
        if len(items) != count:
            return [Parsed(None, f"{len(items)} verdicts where {count} belong")] * count
        return [self._item(item) for item in items]

    def _item(self, item: Any) -> Parsed:
        if not isinstance(item, dict) or self.key not in item:
            return Parsed(None, f"the JSON has no key {self.key!r}")
        said = str(item[self.key]).strip().lower()
        for symbol, value in self._values.items():
            if said == symbol.lower():
                return Parsed(value)
        return Parsed(None, f"{self.key!r} is none of {', '.join(self._values)}")


def find_json(text: str) -> Any:
    """Return the last JSON object or list of a text, fenced or not; None if there is none."""
    decoder = json.JSONDecoder()
    for part in [*reversed(FENCE.findall(text)), text]:
        found, at = None, 0
        for _ in range(MOST_STARTS):
            start = min((i for i in (part.find("{", at), part.find("[", at)) if i >= 0), default=-1)
            if start < 0:
                break
            try:
                found, at = decoder.raw_decode(part, start)
            except (ValueError, RecursionError):
                at = start + 1
        if found is not None:
            return found
    return None


class Logprobs(_Parser):
    """Probabilities of the choice tokens: P(first) = p(A) / (p(A) + p(B)), a soft label."""

    kind: Literal["logprobs"] = "logprobs"
    first: str = "A"
    second: str = "B"
    position: Literal["first", "last"] = "first"
    """Which generated token: the first, or the last that is one of the two (after reasoning)."""
    top: int = Field(5, ge=2, le=20)
    """How many tokens' probabilities to ask for."""
    least_mass: float = Field(0.01, ge=0, le=1)
    """No verdict if the two tokens together are less probable than this: the model was about to say something else."""

    def parse(self, answer: Answer, count: int) -> list[Parsed]:
        """Read one verdict from the probabilities."""
        if count != 1:
            return [Parsed(None, "logprobs hold one verdict")] * count
        if not answer.positions:
            return [Parsed(None, "the server sent no logprobs; use another parser or another server")]
        symbols = (self.first, self.second)
        if self.position == "first":
            places = [place for place in answer.positions if place[0].token.strip()]
        else:
            places = [place for place in reversed(answer.positions) if place[0].token.strip() in symbols]
        if not places:
            return [Parsed(None, "no verdict in the answer")]
        mass = [math.fsum(math.exp(t.logprob) for t in places[0] if t.token.strip() == symbol) for symbol in symbols]
        total = sum(mass)
        if not total >= max(self.least_mass, 1e-12):
            return [Parsed(None, f"the tokens {self.first} and {self.second} have only {total:.1%} of the probability")]
        return [Parsed(preference_from_probability(mass[0] / total))]


Parser = Annotated[Choice | Ranking | Scores | Json | Logprobs, Field(discriminator="kind")]
