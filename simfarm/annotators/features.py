"""What can be measured of a response to an instruction, offline, without asking anyone.

Text features come from the characters alone. Likelihood features come from two passes of a small language model over
the response: after the instruction (as a chat), and after an empty turn. The difference of the two log-likelihoods is
the pointwise mutual information of instruction and response: how much more likely the instruction made this response.

Some features stop at a cap. Humans do not reward text for being ever more predictable or ever closer to the
instruction's words (a bare copy would be best); but they do punish gibberish and answers to something else. A capped
feature says "not gibberish" and "not off topic", and no more. Words are runs of letters and digits, so the text
features say less about languages that are written without spaces.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simfarm.errors import require
from simfarm.evaluation.style import CODE_BLOCK, HEADER, LIST_ITEM
from simfarm.progress import track

if TYPE_CHECKING:
    from simfarm.policies.transformers import TransformersPolicy

Floats = NDArray[np.float64]

TEXT_FEATURES = {
    "length": "log(1 + words)",
    "new_words": "log(1 + different words, common ones aside, that the instruction does not have)",
    "coverage": "share of the instruction's different words, common ones aside, that the response has",
    "echo": "longest span of words copied from the instruction, as a share of the response's words",
    "repetition": "share of the response's three-word spans that stood in it before",
    "longest_repeat": "longest span of words that stands twice, as a share of the response's words",
    "structure": "log(1 + list items + headings)",
    "ends_cleanly": "1 if the last character closes a sentence, a quotation, a bracket or a code block",
    "code_as_asked": "where the instruction asks for code: 1 with code, -1 without; else 0",
    "refusal": "1 if the response declines, or speaks of itself as a language model",
    "foreign_script": "share of letters in a script that the instruction does not have, unless it is about languages",
}
LIKELIHOOD_FEATURES = {
    "information": "log(1 + nats the model needs to write the response down, given the instruction)",
    "fluency": "mean log-likelihood of a token given the instruction, at most -2 nats",
    "surprises": "share of tokens with a log-likelihood below -8 nats given the instruction",
    "relevance": "pointwise mutual information with the instruction, from -30 to at most 15 nats",
    "opening_relevance": "the same per token over the first 5 tokens, at most 1 nat",
    "ending": "log-likelihood of the end of turn after the last word, at most -5 nats; unknown past the limit",
}
FEATURES = {**TEXT_FEATURES, **LIKELIHOOD_FEATURES}

MEASURING_MODEL = "smollm2-135m"
MAX_TOKENS = 512
"""Tokens of a response that the model reads; what stands after them is measured by the text features only."""
MAX_PROMPT_TOKENS = 1024
"""Tokens of the instruction, and of the input, that the model reads."""
MAX_WORDS = 1000
"""Words of a response and of an instruction that are searched for spans (copied, repeated)."""

WORD = re.compile(r"\w+")
CODE_WANTED = re.compile(
    r"\b(code|python|javascript|typescript|java|sql|html|css|regex|bash|rust|golang)\b|\bc\+\+", re.I
)
CODE = re.compile(r"```|^\s*(def |class |import |function |return\b|SELECT |<\w+[^>]*>|#include)|[;{}]\s*$", re.M)
ABOUT_LANGUAGES = re.compile(r"translat|language", re.I)
REFUSAL = re.compile(
    r"\bI(?:'m| am|’m) (?:sorry|unable|not able)\b|\bI (?:can't|can’t|cannot) (?:help|assist|do|provide|answer|fulfil)"
    r"|\bas an? (?:AI|language model)\b|\bI (?:don't|don’t|do not) have (?:the ability|access|enough)\b",
    re.I,
)
COMMON = frozenset(
    WORD.findall(
        "a about all also an and any are as at be been but by can could do does for from had has have he her his "
        "how i if in into is it its just me more my no not of on one or our out she should so some such than that "
        "the their them then there these they this to up us was we were what when which who will with would you "
        "your"
    )
)


class Text(NamedTuple):
    """A response and what it responds to."""

    instruction: str
    input: str
    response: str


LogLikelihoods = Callable[[Sequence[Text]], list[tuple[Floats, Floats]]]
"""Two arrays per text, in nats: log-likelihoods of the response's tokens and, last, of the end of turn; given the
instruction, and without it. Where the response was cut at MAX_TOKENS, the last number is NaN."""


def words(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return WORD.findall(text.lower())


def text_features(text: Text) -> dict[str, float]:
    """Measure the characters; see `TEXT_FEATURES`."""
    asked = f"{text.instruction}\n\n{text.input}"
    theirs, ours = words(asked), words(text.response)
    topic, said = set(theirs) - COMMON, set(ours) - COMMON
    start, source = ours[:MAX_WORDS], theirs[:MAX_WORDS]
    n, triples = len(start), _spans(start, 3)
    prose = CODE_BLOCK.sub("", text.response)
    return {
        "length": float(np.log1p(len(ours))),
        "new_words": float(np.log1p(len(said - topic))),
        "coverage": len(said & topic) / len(topic) if topic else 0.0,
        "echo": _longest(n, lambda k: not set(_spans(start, k)).isdisjoint(_spans(source, k))) / max(n, 1),
        "repetition": 1 - len(set(triples)) / len(triples) if triples else 0.0,
        "longest_repeat": _longest(n, lambda k: len(set(spans := _spans(start, k))) < len(spans)) / max(n, 1),
        "structure": float(np.log1p(len(LIST_ITEM.findall(prose)) + len(HEADER.findall(prose)))),
        "ends_cleanly": float(_closes(text.response)),
        "code_as_asked": (1.0 if CODE.search(text.response) else -1.0) if CODE_WANTED.search(asked) else 0.0,
        "refusal": float(REFUSAL.search(text.response) is not None),
        "foreign_script": 0.0 if ABOUT_LANGUAGES.search(asked) else _foreign(asked, text.response),
    }


def _spans(of: list[str], k: int) -> list[tuple[str, ...]]:
    return list(zip(*(of[i:] for i in range(k)), strict=False))


def _longest(n: int, found: Callable[[int], bool]) -> int:
    """Return the largest k up to n for which a span of k words is found; a span's parts are found where it is."""
    low, high = 0, n
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if found(middle) else (low, middle - 1)
    return low


def _closes(text: str) -> bool:
    last = text.rstrip()[-1:]
    return bool(last) and last not in ",:;،؛、" and (last in "\"'`" or unicodedata.category(last) in ("Po", "Pe", "Pf"))


@functools.cache
def _script(letter: str) -> str:
    return unicodedata.name(letter, "?").split()[0]


def _foreign(asked: str, response: str) -> float:
    home = {_script(c) for c in asked if c.isalpha()}
    letters = [_script(c) for c in response if c.isalpha()]
    return sum(script not in home for script in letters) / len(letters) if home and letters else 0.0


def likelihood_features(given: Floats, alone: Floats) -> dict[str, float]:
    """Turn log-likelihoods into features; see `LIKELIHOOD_FEATURES`. What cannot be known is NaN.

    Args:
        given: (t + 1,) of the response's tokens and the end of turn given the instruction, in nats; the last is NaN
            if the response was cut.
        alone: (t + 1,) of the same without the instruction.
    """
    tokens, gain = given[:-1], (given - alone)[:-1]
    if not len(tokens):
        return dict.fromkeys(LIKELIHOOD_FEATURES, float("nan"))
    return {
        "information": float(np.log1p(-tokens.sum())),
        "fluency": min(float(tokens.mean()), -2.0),
        "surprises": float((tokens < -8).mean()),
        "relevance": float(np.clip(gain.sum(), -30, 15)),
        "opening_relevance": min(float(gain[:5].mean()), 1.0),
        "ending": float(np.minimum(given[-1], -5.0)),
    }


class Meter:
    """Measures each text once and remembers it."""

    def __init__(self, log_likelihoods: LogLikelihoods) -> None:
        self._log_likelihoods = log_likelihoods
        self._text: dict[Text, dict[str, float]] = {}
        self._likelihood: dict[Text, dict[str, float]] = {}

    def measure(self, texts: Sequence[Text], names: Sequence[str]) -> Floats:
        """Measure features.

        Args:
            texts: n texts.
            names: k names of `FEATURES`. If none is of the likelihood, the language model is not asked.

        Returns:
            (n, k) in the features' own units, NaN where a value cannot be known (an empty response has no likelihood).
        """
        for text in texts:
            if text not in self._text:
                self._text[text] = text_features(text)
        if any(name in LIKELIHOOD_FEATURES for name in names):
            new = [text for text in dict.fromkeys(texts) if text not in self._likelihood]
            if new:
                for text, (given, alone) in zip(new, self._log_likelihoods(new), strict=True):
                    self._likelihood[text] = likelihood_features(given, alone)
        known = [{**self._text[text], **self._likelihood.get(text, {})} for text in texts]
        return np.array([[values[name] for name in names] for values in known], float).reshape(len(texts), len(names))


@functools.cache
def measuring_model() -> Meter:
    """Return the one meter of this process that uses the built-in model, loaded when a likelihood is asked for.

    Its `measure` then raises MissingExtraError if torch or transformers is not installed, and ModelError if the model
    is neither in the cache nor to be fetched.
    """
    return Meter(_log_likelihoods)


@functools.cache
def _policy() -> TransformersPolicy:
    for package in ("torch", "transformers"):
        require(package, "local", "Measuring likelihoods")
    from simfarm.policies.transformers import TransformersPolicy

    return TransformersPolicy.load(MEASURING_MODEL)


def _log_likelihoods(texts: Sequence[Text]) -> list[tuple[Floats, Floats]]:
    policy = _policy()

    def cut(text: str) -> str:
        tokens = policy.encode(text)
        return text if len(tokens) <= MAX_PROMPT_TOKENS else policy.decode(tokens[:MAX_PROMPT_TOKENS])

    encoded = [policy.encode_response(text.response.strip()) for text in texts]
    read = [tokens[: MAX_TOKENS + 1] for tokens in encoded]
    prompts = [policy.render(cut(text.instruction), cut(text.input)) for text in texts]
    full = policy.render("")
    # the model's own opening of an answer, as it stands at the end of a rendered prompt
    empty = full[full.rindex("<|im_start|>") :]
    with track("measuring likelihoods", len(texts), "responses") as progress:
        measured = policy.log_probabilities_in_contexts([(p, empty) for p in prompts], read, progress=progress)
    given, alone = ([both[k] for both in measured] for k in (0, 1))
    for whole, scores in zip(encoded, given, strict=True):
        if len(whole) > MAX_TOKENS + 1:
            scores[-1] = np.nan
    return list(zip(given, alone, strict=True))
