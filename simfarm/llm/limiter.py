"""How many requests may be under way at one endpoint: a pure state machine, told what happened and when.

Slow start: every success admits one request more, so the limit doubles each round trip, until the first refusal. A
refusal (429) multiplies the limit by 0.7, once per episode: refusals of requests sent before the last cut belong to it.
After that the limit grows by one per round trip. Retry-After closes the gate until the time it names. Optional budgets
of requests and tokens per minute are token buckets. Times are seconds on any monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

CUT = 0.7
BURST_SECONDS = 1.0


@dataclass(slots=True)
class Bucket:
    """Admits `per_minute` units a minute, at most one second's worth at once (and at least one request)."""

    per_minute: float
    level: float = field(init=False)
    at: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.capacity

    @property
    def capacity(self) -> float:
        """Units that may be taken at once."""
        return max(1.0, self.per_minute / 60 * BURST_SECONDS)

    def wait(self, now: float, units: float) -> float:
        """Return the seconds until so many units may be taken."""
        self._refill(now)
        # a request larger than the bucket goes when the bucket is full, and leaves a debt
        missing = min(units, self.capacity) - self.level
        return max(0.0, missing / (self.per_minute / 60))

    def take(self, now: float, units: float) -> None:
        """Take units; the level may fall below zero."""
        self._refill(now)
        self.level -= units

    def _refill(self, now: float) -> None:
        self.level = min(self.capacity, self.level + (now - self.at) * self.per_minute / 60)
        self.at = now


@dataclass(slots=True)
class Limiter:
    """The gate of one endpoint. Ask `wait`, then tell `started` and one of `succeeded`, `refused`, `failed`."""

    most: int = 128
    """Never more than this many at once."""
    start: float = 64.0
    requests: Bucket | None = None
    tokens: Bucket | None = None
    limit: float = field(init=False)
    under_way: int = 0
    slow_start: bool = True
    closed_until: float = 0.0
    cut_at: float = -1.0
    held_back: bool = False
    """Whether the limit keeps requests waiting; only then may it grow."""

    def __post_init__(self) -> None:
        self.limit = min(self.start, float(self.most))

    def wait(self, now: float, tokens: int = 0) -> float | None:
        """Return the seconds until a request may start: 0 = now, None = not before another one ends."""
        if self.under_way >= int(self.limit):
            self.held_back = True
            return None
        if self.under_way < self.limit / 2:
            self.held_back = False
        pauses = [self.closed_until - now]
        if self.requests:
            pauses.append(self.requests.wait(now, 1))
        if self.tokens:
            pauses.append(self.tokens.wait(now, tokens))
        return max(0.0, *pauses)

    def started(self, now: float, tokens: int = 0) -> None:
        """Count a request in."""
        self.under_way += 1
        if self.requests:
            self.requests.take(now, 1)
        if self.tokens:
            self.tokens.take(now, tokens)

    def succeeded(self) -> None:
        """Count a request out; the limit grows if it was what held requests back."""
        if self.held_back:
            self.limit = min(self.most, self.limit + (1.0 if self.slow_start else 1.0 / self.limit))
        self.under_way -= 1

    def refused(self, now: float, sent_at: float, retry_after: float | None) -> None:
        """Count a request out that met a rate limit, sent at `sent_at`."""
        self.under_way -= 1
        if retry_after is not None:
            self.closed_until = max(self.closed_until, now + retry_after)
        if sent_at > self.cut_at:
            self.limit = max(1.0, self.limit * CUT)
            self.cut_at = now
            self.slow_start = False

    def failed(self) -> None:
        """Count a request out that failed for another reason: it says nothing about the limit, but growth pauses."""
        self.under_way -= 1
        self.slow_start = False
