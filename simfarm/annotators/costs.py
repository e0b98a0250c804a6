"""What labelling will cost and what it did cost, per member."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import pandas as pd

from simfarm.annotators.base import Presentation
from simfarm.annotators.pool import Plan, Pool
from simfarm.annotators.prompted import AsksModels, PromptedAnnotator
from simfarm.llm.backend import Endpoint
from simfarm.llm.client import CHUNK, Usage
from simfarm.llm.prices import FREE, Prices, cost_at_most, tokens_at_most
from simfarm.llm.request import Request
from simfarm.llm.store import Store
from simfarm.records import Comparison, Verdict

FREE_HERE = "free (this machine)"
SAMPLE = Presentation(
    Comparison(
        "Explain to a new colleague how our shared calendar works and what to do when two meetings collide.",
        "Open the calendar from the start page. Everyone in the team sees the same entries. " * 5,
        "It is a calendar. If two meetings are at the same time, talk to the people who planned them. " * 4,
    ),
    "12",
    0,
    0,
)
"""A pair of the usual size, about 400 characters an answer."""


@dataclass(slots=True)
class MemberEstimate:
    """What one member will do."""

    annotator: str
    model: str
    labels: int = 0
    calls: int = 0
    stored: int = 0
    """Calls whose answers are in the store: they cost nothing."""
    input_tokens: int = 0
    output_tokens: int = 0
    """Both of the calls that are owed, at most."""
    cost: float | None = 0.0
    """US dollars, at most; None if the price is unknown."""


def requests(pool: Pool, plan: Plan, *, soft: bool = False) -> Iterator[tuple[str, Request]]:
    """Yield every call that a plan needs, with the member who makes it."""
    for name, indices in plan.by_member().items():
        annotator = pool.annotators[name]
        if isinstance(annotator, AsksModels):
            pairs, _ = plan.presentations(indices)
            for job in annotator.stream(pairs, _nobody, soft=soft).jobs:
                yield name, job.request


def judgments(plan: Plan) -> int:
    """Count the presentations that annotators are asked about: what a progress bar of the plan ends at."""
    return sum(len(task.shown) for task in plan.tasks if task.asked)


def _nobody(_: int, __: Verdict) -> None:
    """Nobody reads: the call is only counted."""


def estimate(pool: Pool, plan: Plan, *, store: Store, prices: Prices, soft: bool = False) -> list[MemberEstimate]:
    """Count calls, tokens and dollars of a plan, per member, before any is spent; see `estimate_calls`."""
    labels = {name: len(indices) for name, indices in plan.by_member().items()}
    return estimate_calls(pool, labels, requests(pool, plan, soft=soft), store=store, prices=prices)


def estimate_calls(
    pool: Pool, labels: Mapping[str, int], calls: Iterator[tuple[str, Request]], *, store: Store, prices: Prices
) -> list[MemberEstimate]:
    """Count calls, tokens and dollars, per member, before any is spent.

    Tokens are estimated from above, one per three bytes, and answers are taken to use all of max_tokens, so that the
    real cost is usually well below.

    Args:
        pool: Who judges.
        labels: How many labels each member is to give.
        calls: The calls that this takes, with the member who makes each.
        store: What is stored there costs nothing.
        prices: What tokens cost.
    """
    found = {name: MemberEstimate(name, model_of(pool, name), labels=count) for name, count in labels.items()}
    seen: set[str] = set()
    while chunk := list(islice(calls, CHUNK)):
        fresh = {request.key: (name, request) for name, request in chunk if request.key not in seen}
        seen |= set(fresh)
        stored = store.get(list(fresh))
        for key, (name, request) in fresh.items():
            one = found[name]
            one.calls += 1
            if key in stored:
                one.stored += 1
                continue
            one.input_tokens += tokens_at_most(request)
            one.output_tokens += request.max_tokens or 0
            price = prices.of(_prompted(pool, name).endpoint)
            one.cost = None if price is None or one.cost is None else one.cost + cost_at_most(price, request)
    return [found[name] for name in pool.annotators if name in found]


def model_of(pool: Pool, name: str) -> str:
    """Return the model that plays a member."""
    annotator = pool.annotators[name]
    if isinstance(annotator, PromptedAnnotator):
        return annotator.endpoint.model
    return str(getattr(getattr(annotator, "member", None), "model", "this machine"))


def _prompted(pool: Pool, name: str) -> PromptedAnnotator:
    annotator = pool.annotators[name]
    assert isinstance(annotator, PromptedAnnotator)
    return annotator


def sample_request(annotator: PromptedAnnotator) -> Request:
    """Return a call of the usual size: full prompts, for members that take several comparisons."""
    shown: Sequence[Presentation] = [SAMPLE] * annotator.member.comparisons_per_prompt
    return annotator.request(shown)


def per_thousand(annotator: PromptedAnnotator, prices: Prices) -> float | None:
    """Estimate the US dollars of 1,000 labels on pairs of the usual size, at most; None if the price is unknown."""
    price = prices.of(annotator.endpoint)
    if price is None:
        return None
    return 1000 * cost_at_most(price, sample_request(annotator)) / annotator.member.comparisons_per_prompt


def amount(dollars: float) -> str:
    """Write an amount of US dollars without its sign; a small one does not read as nothing."""
    return f"{dollars:.2f}" if dollars >= 0.1 or dollars == 0 else f"{dollars:.2g}"


def spent(usage: Usage) -> str:
    """Say what a run has spent so far: "$0.42 spent", or that a price is unknown; answers from the store are free."""
    known = f"${amount(usage.spent)} spent"
    if not usage.unpriced:
        return known
    return f"{known}, more at an unknown price" if usage.spent else "unknown price"


def unit_prices(pool: Pool, prices: Prices) -> dict[str, str]:
    """Say what the models of a pool cost, as its report shows it.

    Returns:
        By model (with its server, where that is not the provider's own): US dollars per million tokens in and out and
        the date of the price, "free (this machine)", "free (own server)" or "unknown". Members that ask no model stand
        under the pool's name.
    """
    found = {}
    for member in pool.config.members:
        annotator = pool.annotators[member.name]
        if isinstance(annotator, PromptedAnnotator):
            endpoint = annotator.endpoint
            name = endpoint.model if endpoint.server is None else f"{endpoint.model} at {endpoint.server}"
            found[name] = _unit_price(endpoint, prices)
        else:
            found[f"pool {pool.name}"] = FREE_HERE
    return found


def _unit_price(endpoint: Endpoint, prices: Prices) -> str:
    price = prices.of(endpoint)
    if price is None:
        return "unknown"
    if price is FREE:
        return FREE_HERE if endpoint.in_process else "free (own server)"
    date = f", price of {price.date}" if price.date else ""
    return f"US$ {price.input:g} in, {price.output:g} out per million tokens{date}"


def summary(labels: pd.DataFrame) -> pd.DataFrame:
    """Summarise labels per annotator.

    Returns:
        One row per annotator and a last one, "all": labels, `null_share`, the most frequent reason, the share of hard
        verdicts for the first shown (one order only), the share of pairs whose two orders agree, `cost` (US dollars,
        null = unknown), `cost_per_1000`, mean latency in seconds, tokens per label.
    """
    groups = [*labels.groupby("annotator", sort=True), ("all", labels)]
    return pd.DataFrame([_summarised(str(name), rows) for name, rows in groups])


def _summarised(name: str, rows: pd.DataFrame) -> dict[str, object]:
    missing = rows["preference"].isna()
    reasons = rows.loc[missing, "reason"].value_counts()
    clean = rows["preference_clean"].astype(float) if "preference_clean" in rows else rows["preference"].astype(float)
    one_order = rows["order"].isin(["12", "21"]) & clean.notna() if "order" in rows else missing & False
    towards = clean.where(rows["order"] == "12", 3 - clean)[one_order] if "order" in rows else clean[one_order]
    consistent = rows["consistent"].dropna().astype(float) if "consistent" in rows else pd.Series(dtype=float)
    priced = rows["cost"].notna().all()
    total = float(rows["cost"].astype(float).sum()) if priced else None
    return {
        "annotator": name,
        "labels": len(rows),
        "null_share": float(missing.mean()),
        "reason": str(reasons.index[0]) if len(reasons) else "",
        "first_share": float((2 - towards).mean()) if len(towards) else None,
        "consistent_share": float(consistent.mean()) if len(consistent) else None,
        "cost": total,
        "cost_per_1000": None if total is None else 1000 * total / len(rows),
        "latency": float(rows["latency"].astype(float).mean()) if rows["latency"].notna().any() else None,
        "tokens_per_label": float(rows["tokens"].astype(float).mean()) if rows["tokens"].notna().any() else None,
    }
