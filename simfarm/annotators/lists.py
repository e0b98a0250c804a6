"""Labels for lists of candidates: all pairs, the best and the worst, or a ranking of up to eight in one call."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from simfarm import draws
from simfarm.annotators.base import Annotator, Presentation
from simfarm.annotators.parsers import THINKING_ENDS, ranked_groups
from simfarm.annotators.pool import Pool
from simfarm.annotators.prompted import PromptedAnnotator
from simfarm.errors import ConfigError, DataError
from simfarm.llm.client import Client, Failure, Job, Outcome, Stream
from simfarm.llm.request import Request
from simfarm.llm.store import open_store
from simfarm.progress import Progress, no_progress
from simfarm.records import Comparison, Order
from simfarm.tables import require_columns, with_input

LETTERS = "ABCDEFGH"
How = Literal["pairs", "best_worst", "rank"]


@dataclass(frozen=True, slots=True)
class Candidates:
    """One request and its answers."""

    instruction: str
    input: str
    outputs: tuple[str, ...]
    generators: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str, tuple[str, ...]]:
        """Content for hash draws, whatever the order of the list."""
        return self.instruction, self.input, tuple(sorted(self.outputs))


@dataclass(slots=True)
class _Ranked:
    ranks: list[float] | None = None
    """Per candidate, 1 = best; equal ranks are ties."""
    reason: str = ""
    raw: str = ""
    cost: float | None = 0.0
    latency: float | None = 0.0
    tokens: int | None = 0
    shown: tuple[int, ...] = ()


def candidates(table: pd.DataFrame, name: str = "lists") -> list[Candidates]:
    """Turn rows into lists of candidates.

    Args:
        table: Columns instruction (or prompt) and outputs, a list of texts, with `generators` beside it; or Nectar's
            `answers`, a list of {answer, model}.
        name: What to call the table in errors.

    Raises:
        DataError: A column is missing, a list has fewer than two candidates, or a text is not a string.
    """
    if "instruction" not in table.columns and "prompt" in table.columns:
        table = table.rename(columns={"prompt": "instruction"})
    column = "answers" if "answers" in table.columns else "outputs"
    require_columns(table, ("instruction", column), name)
    lists = []
    for row, record in enumerate(with_input(table).to_dict("records")):
        given: list[Any] = list(record[column])
        texts: list[Any] = given
        models: list[str] = [""] * len(given)
        if column == "answers":
            texts = [item.get("answer") if isinstance(item, dict) else item for item in given]
            models = [str(item.get("model", "")) if isinstance(item, dict) else "" for item in given]
        elif record.get("generators") is not None:
            models = [str(name) for name in record["generators"]]
        if len(texts) < 2 or len(models) != len(texts):
            raise DataError(
                f"{name}, row {row}: {len(texts)} candidates and {len(models)} generators; a list needs at least two "
                "candidates, and a generator for each or none."
            )
        if not all(isinstance(text, str) for text in [record["instruction"], *texts]):
            raise DataError(f"{name}, row {row}: a text is not a string.")
        lists.append(Candidates(record["instruction"], record["input"], tuple(texts), tuple(models)))
    if not lists:
        raise DataError(f"{name} has no rows.")
    return lists


def lists_from_outputs(outputs: pd.DataFrame) -> pd.DataFrame:
    """Gather a table of outputs into one list of candidates per instruction.

    Returns:
        Columns instruction, input, outputs, generators.
    """
    grouped = with_input(outputs).groupby(["instruction", "input"], sort=False)
    return grouped.agg(outputs=("output", list), generators=("generator", list)).reset_index()


def all_pairs(lists: Sequence[Candidates]) -> pd.DataFrame:
    """Return every pair of every list as a table of comparisons; `list` is the row of the list."""
    return pd.DataFrame(
        {
            "instruction": item.instruction,
            "input": item.input,
            "output_1": item.outputs[i],
            "output_2": item.outputs[j],
            "generator_1": item.generators[i],
            "generator_2": item.generators[j],
            "list": row,
        }
        for row, item in enumerate(lists)
        for i, j in itertools.combinations(range(len(item.outputs)), 2)
    )


def rank_lists(
    pool: Pool,
    lists: Sequence[Candidates],
    *,
    seed: int = 0,
    replicates: int = 1,
    client: Client | None = None,
    progress: Progress = no_progress,
) -> pd.DataFrame:
    """Rank candidates, up to eight in one call.

    One member per list, drawn by weight. A prompted member sees all candidates at once, under letters in an order
    drawn for it; another annotator judges all pairs and ranks by wins.

    Args:
        pool: Who ranks.
        lists: Two to eight candidates each.
        seed: Draws the member and the order of the letters.
        replicates: How often each list is ranked.
        client: Asks language models; if None, through the store in the user's cache.
        progress: Called with the number of lists that were ranked.

    Returns:
        One row per list and replicate: prompt, input, `answers` (a list of {answer, model, rank}, Nectar's form; rank 1
        is best, ties share a rank, None if there is no ranking), annotator, replicate, `shown` (the candidates'
        indices in the order shown), reason, cost, latency, tokens, raw, pool, `list` (the row of the list).

    Raises:
        DataError: A list has more than eight candidates.
        ConfigError: A prompted member has no prompt for lists.
    """
    owed = _owed(pool, lists, seed, replicates)
    ranked = [_Ranked() for _ in owed]
    streams: dict[str, list[Job]] = {}
    for place, (_, item, r, name) in enumerate(owed):
        annotator = pool.annotators[name]
        if isinstance(annotator, PromptedAnnotator):
            request, shown = _request(annotator, item, seed, r)

            def read(outcome: Outcome, place: int = place, shown: tuple[int, ...] = shown) -> None:
                ranked[place] = _read_ranking(outcome, shown)
                progress(1)

            streams.setdefault(name, []).append(Job(request, read))
        else:
            ranked[place] = _by_wins(annotator, item, seed, r)
            progress(1)
    if streams:
        calls = [Stream(_prompted(pool, name).endpoint, jobs) for name, jobs in streams.items()]
        (client or Client(open_store())).run(calls)
    rows = [
        {
            "prompt": item.instruction,
            "input": item.input,
            "answers": [
                {"answer": output, "model": generator, "rank": None if result.ranks is None else result.ranks[i]}
                for i, (output, generator) in enumerate(zip(item.outputs, item.generators, strict=True))
            ],
            "annotator": name,
            "replicate": r,
            "shown": list(result.shown),
            "reason": result.reason,
            "cost": result.cost,
            "latency": result.latency,
            "tokens": result.tokens,
            "raw": result.raw,
            "pool": f"{pool.name}@{pool.content_hash[:12]}",
            "list": row,
        }
        for (row, item, r, name), result in zip(owed, ranked, strict=True)
    ]
    return pd.DataFrame(rows)


def annotate_lists(
    pool: Pool,
    table: pd.DataFrame,
    *,
    how: How,
    seed: int = 0,
    flip: float = 0.0,
    replicates: int = 1,
    client: Client | None = None,
    progress: Progress = no_progress,
    **options: Any,
) -> pd.DataFrame:
    """Label lists of candidates.

    Args:
        pool: Who judges.
        table: See `candidates`.
        how: "pairs" labels every pair with `Pool.annotate`; "best_worst" ranks each list in one call and gives the best
            against the worst as one comparison; "rank" gives the rankings (`rank_lists`).
        seed: See `Pool.annotate`.
        flip: Probability that the verdict on a pair is turned round; not for rankings.
        replicates: How often each is labelled.
        client: Asks language models.
        progress: Called with the number of judgments that were made.
        options: Further options of `Pool.annotate`, for "pairs".

    Raises:
        DataError: The table is not one of lists.
        ConfigError: An option does not go with `how`.
    """
    lists = candidates(table)
    if how == "pairs":
        common: dict[str, Any] = {"seed": seed, "replicates": replicates, "client": client, "progress": progress}
        return pool.annotate(all_pairs(lists), flip=flip, **common, **options)
    if not 0 <= flip <= 1:
        raise ConfigError(f"flip is {flip}; it is a probability, from 0 to 1.")
    if how == "rank" and flip:
        raise ConfigError("Flips are defined for pairs. Use --lists pairs or best_worst, or --flip 0.")
    ranking = rank_lists(pool, lists, seed=seed, replicates=replicates, client=client, progress=progress)
    return ranking if how == "rank" else _best_against_worst(ranking, lists, seed, flip)


def _prompted(pool: Pool, name: str) -> PromptedAnnotator:
    annotator = pool.annotators[name]
    assert isinstance(annotator, PromptedAnnotator)
    return annotator


def _owed(
    pool: Pool, lists: Sequence[Candidates], seed: int, replicates: int
) -> list[tuple[int, Candidates, int, str]]:
    """Draw who ranks each list and replicate: (row, list, replicate, name)."""
    for row, item in enumerate(lists):
        if len(item.outputs) > len(LETTERS):
            raise DataError(
                f"List {row} has {len(item.outputs)} candidates; one call ranks at most {len(LETTERS)}. Use all pairs "
                '(--lists pairs, how="pairs").'
            )
    if replicates < 1:
        raise ConfigError(f"replicates is {replicates}; give 1 or more.")
    members = pool.config.members
    weights = [member.weight for member in members]
    return [
        (row, item, r, members[draws.choice(weights, seed, "annotator", *item.key, r)].name)
        for row, item in enumerate(lists)
        for r in range(replicates)
    ]


def ranking_requests(
    pool: Pool, lists: Sequence[Candidates], *, seed: int = 0, replicates: int = 1
) -> Iterator[tuple[str, Request | None]]:
    """Yield who ranks each list and replicate, with the call it takes; None for who needs none. See `rank_lists`."""
    for _, item, r, name in _owed(pool, lists, seed, replicates):
        annotator = pool.annotators[name]
        yield name, _request(annotator, item, seed, r)[0] if isinstance(annotator, PromptedAnnotator) else None


def _request(
    annotator: PromptedAnnotator, item: Candidates, seed: int, replicate: int
) -> tuple[Request, tuple[int, ...]]:
    """Return the call that ranks a list, and its candidates' indices in the order shown."""
    # drawn for the sorted candidates: the same letters whatever the order of the list
    by_content = sorted(range(len(item.outputs)), key=lambda i: item.outputs[i])
    order = draws.permutation(len(item.outputs), seed, "letters", *item.key, annotator.member.name, replicate)
    shown = tuple(by_content[i] for i in order)
    letters = {LETTERS[position]: item.outputs[i] for position, i in enumerate(shown)}
    return annotator.list_request(item.instruction, item.input, letters, replicate=replicate, max_tokens=64), shown


def _read_ranking(outcome: Outcome, shown: tuple[int, ...]) -> _Ranked:
    result = outcome.result
    if isinstance(result, Failure):
        return _Ranked(None, result.reason, cost=outcome.cost, shown=shown)
    text = result.text.rpartition(THINKING_ENDS)[2]
    groups = ranked_groups(text, LETTERS[: len(shown)])
    tokens = None
    if result.input_tokens is not None and result.output_tokens is not None:
        tokens = result.input_tokens + result.output_tokens
    ranks: list[float] | None = None
    if groups is not None:
        ranks, best = [0.0] * len(shown), 1
        for group in groups:
            for letter in group:
                ranks[shown[LETTERS.index(letter)]] = float(best)
            best += len(group)
    reason = "" if ranks else "the answer does not rank every candidate once"
    return _Ranked(ranks, reason, result.text, outcome.cost, result.latency, tokens, shown)


def _by_wins(annotator: Annotator, item: Candidates, seed: int, replicate: int) -> _Ranked:
    """Rank by the wins over all pairs, each shown in an order drawn for it."""
    pairs, places = [], []
    for i, j in itertools.combinations(range(len(item.outputs)), 2):
        comparison = Comparison(item.instruction, item.outputs[i], item.outputs[j], item.input)
        first = draws.coin(0.5, seed, "order", *comparison.key, replicate) == comparison.is_sorted
        order: Order = "12" if first else "21"
        pairs.append(Presentation(comparison, order, replicate, seed))
        places.append((i, j) if first else (j, i))
    points = [0.0] * len(item.outputs)
    for (first_shown, second_shown), verdict in zip(places, annotator.judge(pairs), strict=True):
        if verdict.preference is None:
            return _Ranked(None, verdict.reason, verdict.raw)
        points[first_shown] += 2.0 - verdict.preference
        points[second_shown] += verdict.preference - 1.0
    return _Ranked([1.0 + sum(other > mine for other in points) for mine in points])


def _best_against_worst(ranking: pd.DataFrame, lists: Sequence[Candidates], seed: int, flip: float) -> pd.DataFrame:
    """Turn rankings into one comparison each: the first of the best against the first of the worst."""
    rows = []
    for record in ranking.to_dict("records"):
        item = lists[record["list"]]
        ranks = [answer["rank"] for answer in record["answers"]]
        known = None not in ranks
        # without a ranking, the pair is the first two, and its preference is missing
        i, j = (ranks.index(min(ranks)), len(ranks) - 1 - ranks[::-1].index(max(ranks))) if known else (0, 1)
        # which of the two is called output_1 must not tell which is better
        pair = Comparison(item.instruction, item.outputs[i], item.outputs[j], item.input)
        content = (*pair.key, record["annotator"], record["replicate"])
        if draws.coin(0.5, seed, "name", *content) != pair.is_sorted:
            i, j = j, i
        clean = None
        if known:
            clean = 1.5 if ranks[i] == ranks[j] else 1.0 if ranks[i] < ranks[j] else 2.0
        flipped = draws.coin(flip, seed, "flip", *content)
        rows.append(
            {
                "instruction": item.instruction,
                "input": item.input,
                "output_1": item.outputs[i],
                "output_2": item.outputs[j],
                "generator_1": item.generators[i],
                "generator_2": item.generators[j],
                "preference": 3.0 - clean if flipped and clean is not None else clean,
                "preference_clean": clean,
                "flipped": flipped,
                **{k: record[k] for k in ("annotator", "replicate", "reason", "cost", "latency", "tokens", "raw")},
                **{k: record[k] for k in ("pool", "list")},
            }
        )
    return pd.DataFrame(rows)
