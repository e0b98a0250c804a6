"""The nouns, and the one mapping between presented and item coordinates.

*Item coordinates*: outputs 1 and 2 as the table names them. *Presented coordinates*: first and second as a judge saw
them. `order` says which output was shown first: "12" or "21". A `preference` is a float in [1, 2]: 1 = the first-named
output is better, 2 = the second, 1.5 = a tie; any value between is a soft label, 2 - P(first-named is better).
A verdict that could not be had is None, with a reason; it is never a tie and never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

Order = Literal["12", "21"]
ORDERS: tuple[Order, Order] = ("12", "21")


class ComparisonKey(NamedTuple):
    """What a comparison is about, whichever of its outputs is called output_1."""

    instruction: str
    input: str
    outputs: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two responses to one instruction."""

    instruction: str
    output_1: str
    output_2: str
    input: str = ""

    @property
    def key(self) -> ComparisonKey:
        """Content for hash draws; the same for a comparison and its swap."""
        first, second = sorted((self.output_1, self.output_2))
        return ComparisonKey(self.instruction, self.input, (first, second))

    @property
    def is_sorted(self) -> bool:
        """Whether output_1 comes first in `key`. A decision drawn for the key is turned by this to item coordinates."""
        return self.output_1 <= self.output_2

    def swap(self) -> Comparison:
        """Return the same comparison with the outputs' names exchanged."""
        return replace(self, output_1=self.output_2, output_2=self.output_1)

    def presented(self, order: Order) -> tuple[str, str]:
        """Return the two outputs as a judge sees them: (first, second)."""
        return (self.output_1, self.output_2) if order == "12" else (self.output_2, self.output_1)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one annotator said of one presented pair, in presented coordinates.

    `preference` is None where no verdict could be had, and `reason` says why.
    """

    preference: float | None
    reason: str = ""
    raw: str = ""
    cost: float | None = None
    """US dollars; None if the price is unknown."""
    latency: float | None = None
    """Seconds."""
    tokens: int | None = None


def swap_preference(preference: float) -> float:
    """Exchange the two outputs' names in a preference: 3 - preference."""
    return 3.0 - preference


def to_item(presented: float, order: Order) -> float:
    """Turn a preference from presented to item coordinates. Its own inverse: see `to_presented`."""
    return presented if order == "12" else swap_preference(presented)


def to_presented(preference: float, order: Order) -> float:
    """Turn a preference from item to presented coordinates."""
    return preference if order == "12" else swap_preference(preference)


def preference_from_probability(p_first: float) -> float:
    """Return the soft preference of P(first-named output is better)."""
    return 2.0 - p_first


def probability_from_preference(preference: float) -> float:
    """Return P(first-named output is better) of a preference."""
    return 2.0 - preference
