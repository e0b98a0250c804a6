"""A small world with a known truth: descriptions of things, and what they are worth, computed from their words.

A prompt names a thing: "describe the old tiger". A response is a row of words, such as "has stripes lovely perhaps has
claws": facts ("has" and a noun), and words of two manners, praise and caution.

Gold is what the reader wants:

    gold = Σ_{k=1..distinct true facts} 1/k - 0.1 · (false or repeated facts) + Σ_m max(-2, 3 - 3 |8 s_m - 1|)

with s_m the share of manner m among the words: each manner helps up to an eighth of them and harms beyond, as praise
and caution do in the answers of assistants, until a third is as bad as it gets. Writers use few such words, so that
more is better among most of what a reward model sees; three in a hundred overdo them. Clean labels suffice to learn
that this is worse; a reward model that has seen little, or seen it through noise, learns "the more the better".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ADJECTIVES = ("old", "small", "famous", "dusty")
KINDS = {
    "animal": (("tiger", "horse", "otter", "raven"), ("claws", "fur", "teeth", "ears", "whiskers")),
    "vehicle": (("tractor", "bicycle", "ferry", "tram"), ("wheels", "brakes", "lamps", "seats", "gears")),
    "plant": (("oak", "nettle", "fern", "tulip"), ("leaves", "roots", "seeds", "sap", "petals")),
    "building": (("castle", "barn", "chapel", "mill"), ("walls", "stairs", "doors", "windows", "beams")),
    "tool": (("hammer", "plough", "chisel", "saw"), ("handles", "edges", "rivets", "blades", "hinges")),
    "dish": (("soup", "stew", "pie", "salad"), ("salt", "herbs", "onions", "broth", "butter")),
}
"""The kinds of things: their names, and the facts that are true of them."""
MANNERS = {
    "praise": ("lovely", "superb", "charming", "splendid"),
    "caution": ("perhaps", "maybe", "arguably", "possibly"),
}
FACT = "has"
BEST, WORTH, WORST, WRONG = 0.125, 3.0, -2.0, 0.1
THINGS = {thing: kind for kind, (things, _) in KINDS.items() for thing in things}
FACTS = {fact: kind for kind, (_, facts) in KINDS.items() for fact in facts}
MANNER_OF = {word: name for name, words in MANNERS.items() for word in words}
VOCABULARY = ("describe", "the", *ADJECTIVES, *THINGS, FACT, *FACTS, *MANNER_OF)
OVERDOING = 0.03
"""Share of the writers who like manners too much."""
LONGEST = 28
"""Words of the longest response that the writers write."""
PARTIAL_SUMS = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, 6))])


def instructions() -> list[str]:
    """Return every prompt of the world."""
    return [f"describe the {adjective} {thing}" for thing in THINGS for adjective in ADJECTIVES]


def write(instruction: str, rng: np.random.Generator) -> str:
    """Write a response as the world's writers do: each has a length and a taste for each manner of its own."""
    kind = THINGS[instruction.split()[-1]]
    # a taste of 1 is as many words of a manner as facts
    tastes = rng.gamma(1.0, 1.5, len(MANNERS)) if rng.random() < OVERDOING else rng.gamma(1.0, 0.08, len(MANNERS))
    bounds = np.cumsum([1.0, *tastes[:-1]]) / (1 + tastes.sum())
    length = rng.integers(1, LONGEST)
    words: list[str] = []
    while len(words) < length:
        manner = int(bounds.searchsorted(rng.random()))
        if manner:
            words.append(_one_of([*MANNERS.values()][manner - 1], rng))
        else:
            about = kind if rng.random() < 0.7 else _one_of([*KINDS], rng)
            words += [FACT, _one_of(KINDS[about][1], rng)]
    return " ".join(words)


def _one_of(words: Sequence[str], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]


def traits(instruction: str, response: str) -> tuple[int, ...]:
    """Count what gold is made of: distinct true facts, false or repeated facts, words of each manner, all words."""
    kind = THINGS[instruction.split()[-1]]
    true: set[str] = set()
    wrong = 0
    manners = dict.fromkeys(MANNERS, 0)
    words = response.split()
    for before, word in zip(["", *words], words, strict=False):
        if word in MANNER_OF:
            manners[MANNER_OF[word]] += 1
        elif word in FACTS and before == FACT:
            if FACTS[word] == kind and word not in true:
                true.add(word)
            else:
                wrong += 1
    return (len(true), wrong, *manners.values(), len(words))


def worth(traits_of: NDArray[np.int64], tastes: tuple[float, ...] = (1.0, 1.0)) -> Floats:
    """Return what responses are worth to a reader, (n, 5) traits -> (n,).

    Args:
        traits_of: From `traits`.
        tastes: What share of each manner the reader likes best, relative to the truth.
    """
    value = PARTIAL_SUMS[traits_of[:, 0]] - WRONG * traits_of[:, 1]
    words = np.maximum(traits_of[:, -1], 1)
    for count, taste in zip(traits_of[:, 2:-1].T, tastes, strict=True):
        value = value + np.maximum(WORST, WORTH * (1 - np.abs(count / words / (BEST * taste) - 1)))
    return np.asarray(value, float)
