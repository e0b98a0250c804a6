"""Labelled pairs of responses as tokens: what methods learn from that use no reward model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simfarm.errors import DataError


@dataclass(frozen=True, slots=True)
class Preferences:
    """n labelled pairs."""

    prompts: Sequence[str]
    """Rendered."""
    responses_1: Sequence[Sequence[int]]
    """As tokens; one that was cut off has no end of turn, and none is taught."""
    responses_2: Sequence[Sequence[int]]
    p_first: NDArray[np.float64]
    """(n,) P(the first is better): 2 - preference."""

    def __post_init__(self) -> None:
        """Check the pairs.

        Raises:
            DataError: There is none, a label is missing, or a response is empty.
        """
        wrong = int((~np.isfinite(np.asarray(self.p_first, dtype=float))).sum())
        if not len(self.p_first) or wrong:
            raise DataError(
                f"Labels without missing ones are needed; {wrong} of {len(self.p_first)} are missing. Leave those "
                "rows out."
            )
        empty = [i for i, pair in enumerate(zip(self.responses_1, self.responses_2, strict=True)) if not all(pair)]
        if empty:
            raise DataError(f"{len(empty)} pairs have an empty response, the first in row {empty[0]}. Leave them out.")

    def better_and_worse(self) -> tuple[list[Sequence[int]], list[Sequence[int]], list[str]]:
        """Return the preferred responses, the rejected ones, and their prompts; ties are left out.

        Raises:
            DataError: Every label is a tie.
        """
        decided = [i for i, p in enumerate(self.p_first) if p != 0.5]
        if not decided:
            raise DataError(f"All {len(self.p_first)} labels are ties: no response is preferred to learn from.")
        sides = (self.responses_1, self.responses_2)
        first = {i: 0 if self.p_first[i] > 0.5 else 1 for i in decided}
        better = [sides[first[i]][i] for i in decided]
        worse = [sides[1 - first[i]][i] for i in decided]
        return better, worse, [self.prompts[i] for i in decided]
