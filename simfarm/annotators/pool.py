"""A pool of annotators is an annotator: it assigns members at random by weight, draws the order, and adds noise.

A pool is a folder: `pool.toml` and what its members name. Its identity is the hash of that content.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from simfarm import draws, tables
from simfarm.annotators.base import Annotator, Presentation
from simfarm.annotators.embedded import EmbeddedAnnotator, EmbeddedMember, read_scales
from simfarm.annotators.fake import FakeAnnotator, FakeMember
from simfarm.annotators.features import measuring_model
from simfarm.annotators.pool_config import Member, PoolConfig, content_hash, pool_folder, pool_names, read_config
from simfarm.annotators.prompted import LIST_SLOTS, PAIR_SLOTS, AsksModels, PromptedAnnotator, read_template
from simfarm.errors import ConfigError, DataError
from simfarm.llm.client import Client
from simfarm.llm.store import open_store
from simfarm.progress import Progress, no_progress
from simfarm.records import ORDERS, Comparison, Order, Verdict, swap_preference, to_item

__all__ = ["Plan", "Pool", "flip_labels", "load_pool", "pool_names"]

TIE = Verdict(1.5, cost=0.0, latency=0.0, tokens=0)


@dataclass(frozen=True, slots=True)
class Task:
    """One label owed: a comparison, who judges it, and how it is shown."""

    row: int
    item: Comparison
    annotator: str
    replicate: int
    shown: tuple[Presentation, ...]
    noise: float | None
    """The preference where noise decides it and nobody is asked; None where the annotator decides."""

    @property
    def asked(self) -> bool:
        """Whether the annotator is asked."""
        return self.noise is None and self.item.output_1 != self.item.output_2


@dataclass(frozen=True, slots=True)
class Plan:
    """The labels owed for a table, before anyone is asked."""

    comparisons: pd.DataFrame
    tasks: list[Task]
    seed: int
    flip: float

    def by_member(self) -> dict[str, list[int]]:
        """Return the indices of the tasks that each annotator is asked."""
        owed: dict[str, list[int]] = defaultdict(list)
        for i, task in enumerate(self.tasks):
            if task.asked:
                owed[task.annotator].append(i)
        return owed

    def presentations(self, indices: Sequence[int]) -> tuple[list[Presentation], list[tuple[int, int]]]:
        """Return what the annotator of these tasks is shown, and for each which task and which place in it."""
        places = [(i, k) for i in indices for k in range(len(self.tasks[i].shown))]
        return [self.tasks[i].shown[k] for i, k in places], places


class Pool:
    """Annotators and their weights. See `annotate`."""

    def __init__(self, config: PoolConfig, annotators: dict[str, Annotator], content_hash: str) -> None:
        self.config = config
        self.annotators = annotators
        self.content_hash = content_hash
        """sha256 of the pool's files and of the models its roles are mapped to; a result names it."""

    @property
    def name(self) -> str:
        """The pool's name."""
        return self.config.name

    @property
    def offline(self) -> bool:
        """Whether every member judges on this machine, for nothing, and tells its probabilities."""
        return not any(isinstance(annotator, AsksModels) for annotator in self.annotators.values())

    def annotate(
        self,
        comparisons: pd.DataFrame,
        *,
        seed: int = 0,
        flip: float = 0.0,
        orders: Literal["random", "both"] = "random",
        assign: Literal["random", "all"] = "random",
        replicates: int = 1,
        soft: bool | None = None,
        noise_first: bool = False,
        client: Client | None = None,
        progress: Progress = no_progress,
    ) -> pd.DataFrame:
        """Label comparisons. Two identical outputs are a tie that no member is asked about.

        Args:
            comparisons: Columns instruction, output_1, output_2 and optionally input; others are kept.
            seed: Every draw is a hash of it and of the row's content. It does not enter calls to language models:
                what a model said of a pair once, it has said; `replicates` asks anew.
            flip: Probability that a verdict is turned round (AlpacaFarm: 0.25 for training labels, 0 for evaluation).
            orders: "random" shows each pair once, in an order drawn for it; "both" shows it in both orders and takes
                the mean of the two verdicts.
            assign: "random" gives each comparison to one member, drawn by weight (per replicate); "all" to each.
            replicates: How often each comparison is labelled.
            soft: Labels are expectations, 2 - P(first-named output is better), instead of drawn verdicts. Flips are
                drawn all the same. None: as the pool says.
            noise_first: Draw first which labels are noise: a share 2·flip of them are fair coins, and nobody is asked
                about those. The same distribution of labels as flipping with probability `flip` where verdicts are 1
                or 2, for less money (AlpacaFarm's own way), but without their clean verdicts.
            client: Asks language models; if None, through the store in the user's cache.
            progress: Called with the number of presentations that were judged.

        Returns:
            One row per comparison, member and replicate: the given columns, then `preference` (with noise, item
            coordinates), `preference_clean` (without), `flipped`, `annotator`, `order` ("12", "21" or "both"),
            `replicate`, `consistent` (with both orders: whether they agree on the better output), `reason` (why a
            preference is missing), `cost` (US dollars, null = unknown), `latency` (seconds), `tokens`, `raw` (what
            the model said), `pool` (name and hash).

        Raises:
            DataError: The table is not one of comparisons.
            ConfigError: `flip` is not a probability, `replicates` is not positive, or `soft` is asked of a member that
                has no probabilities.
            ProviderError: A server refuses every call in the same way.
        """
        plan = self.plan(
            comparisons,
            seed=seed,
            flip=flip,
            orders=orders,
            assign=assign,
            replicates=replicates,
            noise_first=noise_first,
        )
        verdicts = self._judge(plan, self.config.soft if soft is None else soft, client, progress)
        labels = [self._label(task, answers, plan) for task, answers in zip(plan.tasks, verdicts, strict=True)]
        rows = comparisons.iloc[[task.row for task in plan.tasks]].reset_index(drop=True)
        fresh = pd.DataFrame(labels)
        return pd.concat([rows.drop(columns=[c for c in fresh.columns if c in rows.columns]), fresh], axis=1)

    def plan(
        self,
        comparisons: pd.DataFrame,
        *,
        seed: int = 0,
        flip: float = 0.0,
        orders: Literal["random", "both"] = "random",
        assign: Literal["random", "all"] = "random",
        replicates: int = 1,
        noise_first: bool = False,
    ) -> Plan:
        """Draw who judges what, in which order, before anyone is asked; see `annotate`."""
        if not 0 <= flip <= 1:
            raise ConfigError(f"flip is {flip}; it is a probability, from 0 to 1.")
        if noise_first and flip > 0.5:
            raise ConfigError(f"flip is {flip}; with noise_first it is at most 0.5, which makes every label a coin.")
        if replicates < 1:
            raise ConfigError(f"replicates is {replicates}; give 1 or more.")
        if orders not in ("random", "both") or assign not in ("random", "all"):
            raise ConfigError(f"orders is {orders!r} (random or both), assign is {assign!r} (random or all).")
        if comparisons.empty:
            raise DataError("There are no comparisons to label.")
        tasks = []
        for row, item in enumerate(tables.comparisons(comparisons)):
            for replicate in range(replicates):
                shown = tuple(
                    Presentation(item, order, replicate, seed) for order in _orders(item, seed, replicate, orders)
                )
                names = [self._assign(item, seed, replicate)] if assign == "random" else list(self.annotators)
                for name in names:
                    noise = _noise(item, name, seed, replicate, flip) if noise_first else None
                    tasks.append(Task(row, item, name, replicate, shown, noise))
        return Plan(comparisons, tasks, seed, 0.0 if noise_first else flip)

    def _assign(self, item: Comparison, seed: int, replicate: int) -> str:
        members = self.config.members
        return members[draws.choice([m.weight for m in members], seed, "annotator", *item.key, replicate)].name

    def _judge(self, plan: Plan, soft: bool, client: Client | None, progress: Progress) -> list[list[Verdict]]:
        verdicts = [[TIE for _ in task.shown] for task in plan.tasks]
        streams = []
        for name, indices in plan.by_member().items():
            annotator = self.annotators[name]
            pairs, places = plan.presentations(indices)

            def deliver(index: int, verdict: Verdict, places: list[tuple[int, int]] = places) -> None:
                task, place = places[index]
                verdicts[task][place] = verdict
                progress(1)

            if isinstance(annotator, AsksModels):
                streams.append(annotator.stream(pairs, deliver, soft=soft))
            else:
                for index, verdict in enumerate(annotator.judge(pairs, soft=soft)):
                    # what this machine computes is not paid for
                    deliver(index, replace(verdict, cost=0.0) if verdict.cost is None else verdict)
        if streams:
            (client or Client(open_store())).run(streams)
        return verdicts

    def _label(self, task: Task, verdicts: Sequence[Verdict], plan: Plan) -> dict[str, object]:
        common = {
            "annotator": task.annotator,
            "order": task.shown[0].order if len(task.shown) == 1 else "both",
            "replicate": task.replicate,
        }
        pool = f"{self.name}@{self.content_hash[:12]}"
        if task.noise is not None:
            return {
                "preference": task.noise,
                "preference_clean": None,
                "flipped": None,
                **common,
                "consistent": None,
                "reason": "",
                "cost": 0.0,
                "latency": 0.0,
                "tokens": 0,
                "raw": "",
                "pool": pool,
            }
        values = [
            None if v.preference is None else to_item(v.preference, p.order)
            for v, p in zip(verdicts, task.shown, strict=True)
        ]
        known = [value for value in values if value is not None]
        clean = sum(known) / len(known) if len(known) == len(values) else None
        flipped = _flipped(task.item, task.annotator, task.replicate, plan.flip, plan.seed)
        return {
            "preference": swap_preference(clean) if flipped and clean is not None else clean,
            "preference_clean": clean,
            "flipped": flipped,
            **common,
            "consistent": len({np.sign(value - 1.5) for value in known}) == 1
            if len(values) > 1 and clean is not None
            else None,
            "reason": "; ".join(dict.fromkeys(v.reason for v in verdicts if v.reason)),
            "cost": _total([v.cost for v in verdicts]),
            "latency": _total([v.latency for v in verdicts]),
            "tokens": _total([v.tokens for v in verdicts]),
            "raw": "\n\n".join(v.raw for v in verdicts if v.raw),
            "pool": pool,
        }


def flip_labels(labels: pd.DataFrame, *, flip: float, seed: int) -> pd.DataFrame:
    """Turn round clean verdicts that were already given, by the draws that `Pool.annotate` makes: nobody is asked.

    Args:
        labels: From `Pool.annotate`, with `preference_clean`.
        flip: Probability that a verdict is turned round.
        seed: That of the labels.

    Returns:
        The labels with `preference` and `flipped` as `annotate` would have given them with this `flip`.
    """
    items = tables.comparisons(labels, "labels")
    content = zip(items, labels["annotator"], labels["replicate"], strict=True)
    turned = [_flipped(item, str(annotator), int(replicate), flip, seed) for item, annotator, replicate in content]
    clean = labels["preference_clean"].astype(float)
    preference = clean.mask(pd.Series(turned, index=labels.index), clean.map(swap_preference))
    return labels.assign(preference=preference, flipped=turned)


def _flipped(item: Comparison, annotator: str, replicate: int, flip: float, seed: int) -> bool:
    return draws.coin(flip, seed, "flip", *item.key, annotator, replicate)


def _orders(item: Comparison, seed: int, replicate: int, orders: str) -> Sequence[Order]:
    if orders == "both":
        return ORDERS
    # drawn for the key, so that a swapped comparison is shown the same way
    sorted_first = draws.coin(0.5, seed, "order", *item.key, replicate)
    return ["12" if sorted_first == item.is_sorted else "21"]


def _noise(item: Comparison, annotator: str, seed: int, replicate: int, flip: float) -> float | None:
    """Return a fair coin's preference for a share 2·flip of the labels, None for the others; identical outputs tie."""
    content = (*item.key, annotator, replicate)
    if item.output_1 == item.output_2 or not draws.coin(2 * flip, seed, "noise", *content):
        return None
    # drawn for the key and turned to item coordinates, so that it is symmetric under swap
    return 1.0 if draws.coin(0.5, seed, "noise verdict", *content) == item.is_sorted else 2.0


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def load_pool(name: str | Path, *, models: Mapping[str, str] | None = None, base_url: str | None = None) -> Pool:
    """Load a pool by the name of one that ships with simfarm, or by the path of its folder.

    Args:
        name: Name or path.
        models: `provider/model` for roles of the pool, instead of its own; `fake/oracle` and the other fakes play a
            role without any model.
        base_url: An OpenAI-compatible server for the roles whose server the pool does not name.

    Raises:
        UnknownNameError: There is no such pool or folder.
        ConfigError: `pool.toml` or a prompt is not valid, or a role is unknown; the message names the key.
    """
    folder = pool_folder(name)
    config = read_config(folder).with_models(models or {}, base_url)
    annotators = {member.name: _annotator(member, config, folder) for member in config.members}
    return Pool(config, annotators, content_hash(folder, config))


def _annotator(member: Member, config: PoolConfig, folder: Path) -> Annotator:
    if isinstance(member, FakeMember):
        return FakeAnnotator(member)
    if isinstance(member, EmbeddedMember):
        return EmbeddedAnnotator(member, read_scales(folder), measuring_model())
    spec = config.spec(member)
    if spec.endpoint.provider == "fake":
        return FakeAnnotator(FakeMember.model_validate({"name": member.name, "model": spec.model}))
    list_prompt = member.list_prompt or config.list_prompt
    return PromptedAnnotator(
        member,
        spec,
        read_template(folder / member.prompt, member, slots=PAIR_SLOTS),
        read_template(folder / list_prompt, member, slots=LIST_SLOTS) if list_prompt else None,
    )
