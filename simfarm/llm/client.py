"""One client for all models: looks answers up, asks what is owed, keeps what comes before anyone reads it.

Every endpoint has its own limiter and its own pump, so that a slow or refusing one never holds up the others. There are
no batches of remote calls and so no waiting for the slowest of a batch. Identical requests share one call.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from simfarm import draws
from simfarm.errors import ConfigError, ProviderError, SimfarmError
from simfarm.llm.backend import (
    Backend,
    BatchBackend,
    CallFailed,
    Endpoint,
    RateLimited,
    Rejected,
    Transient,
    Unreachable,
    checked,
)
from simfarm.llm.flow import Gate, GroupWriter, lighter_collector, run_async
from simfarm.llm.limiter import Bucket, Limiter
from simfarm.llm.prices import FREE, Price, Prices, cost, cost_at_most, load_prices, tokens_at_most
from simfarm.llm.request import Answer, Request
from simfarm.llm.store import Store, StoredCall

CHUNK = 128
"""Requests that are looked up in the store at once."""
LOCAL_CHUNK = {"hf": 64, "vllm": 1024}
"""Requests that an in-process model gets at once; what a killed run loses at most."""
TRIES = 8
FIRST_TRIES = 5
"""As long as a server has never answered: it may not be there at all."""
SAME_REJECTIONS = 10
PATIENCE = 1800.0
"""Seconds that one request may go on meeting rate limits."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no answer."""

    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request: an answer with its cost (US dollars, None = unknown), or a failure."""

    result: Answer | Failure
    cost: float | None


@dataclass(frozen=True, slots=True)
class Job:
    """A request, and who reads its outcome."""

    request: Request
    read: Callable[[Outcome], None]


@dataclass(frozen=True, slots=True)
class Stream:
    """Jobs for one endpoint; taken one by one, as there is room."""

    endpoint: Endpoint
    jobs: Iterable[Job]


@dataclass(slots=True)
class Usage:
    """What a run did."""

    asked: int = 0
    """Calls that brought an answer."""
    found: int = 0
    """Answers found in the store."""
    shared: int = 0
    """Requests that shared the call of an identical one."""
    failed: int = 0
    retried: int = 0
    spent: float = 0.0
    """US dollars, of the calls whose price is known."""
    unpriced: int = 0
    """Calls whose price is unknown."""
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Options:
    """How to ask. None of it can change an answer."""

    concurrency: int = 128
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_cost: float | None = None
    """US dollars this run may spend."""
    timeout: float = 600.0
    """Seconds to wait for one answer."""

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ConfigError(f"concurrency is {self.concurrency}; give 1 or more.")
        if self.max_cost is not None and not self.max_cost >= 0:
            raise ConfigError(f"max_cost is {self.max_cost}; give US dollars, 0 or more.")
        for name in ("requests_per_minute", "tokens_per_minute", "timeout"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(f"{name} is {value}; it must be above 0.")


class Client:
    """Asks language models through a store.

    Args:
        store: Where answers are kept.
        options: How to ask.
        prices: What tokens cost; the package's table if None.
        backends: Backends to use for a provider instead of its own, for tests and for one's own servers.
    """

    def __init__(
        self,
        store: Store,
        *,
        options: Options | None = None,
        prices: Prices | None = None,
        backends: Mapping[str, Backend | BatchBackend] | None = None,
    ) -> None:
        self.store = store
        self.options = options or Options()
        self.prices = prices or load_prices()
        self.backends = dict(backends or {})
        self.usage = Usage()

    def run(self, streams: Iterable[Stream]) -> Usage:
        """Find or ask every job's answer and have it read, in whatever order answers come.

        Returns:
            What this run did; also `self.usage`, which is up to date while it goes on.

        Raises:
            ProviderError: A server refuses everything in the same way (bad key, no such model): its words.
            ConfigError: A limit on cost is set and a model's price is unknown, or an API key is not set.
            RunError: The store cannot be read or written.
            ModelError: A model of this process cannot be loaded.
        """
        self.usage = Usage()
        self._run = _Run(self, list(streams))
        begun = time.monotonic()
        try:
            with lighter_collector():
                run_async(self._run.main)
        finally:
            self.usage.seconds = time.monotonic() - begun
        return self.usage


@dataclass(slots=True)
class _Place:
    """One endpoint in a run."""

    endpoint: Endpoint
    price: Price | None
    gate: Gate
    backend: Backend | None = None
    answered: bool = False
    scale: float = 1.0
    """The most that a call cost in relation to its estimate: a server that counts more tokens is believed."""
    rejections: list[Rejected] = field(default_factory=list)
    """The last refusals, as long as they are of one kind and no answer came between."""

    @property
    def hopeless(self) -> bool:
        """Whether it makes no sense to ask on."""
        error = self.rejections[-1] if len(self.rejections) >= SAME_REJECTIONS else None
        # a 400 may be about one request alone, unless the endpoint has never answered anything
        return error is not None and (error.whole_endpoint or not self.answered)


class _Run:
    def __init__(self, client: Client, streams: list[Stream]) -> None:
        self.client, self.options, self.usage = client, client.options, client.usage
        self.streams: dict[Endpoint, list[Iterable[Job]]] = defaultdict(list)
        for stream in streams:
            self.streams[stream.endpoint].append(stream.jobs)
        self.waiting: dict[str, list[Job]] = {}
        self.wasted: dict[str, float] = defaultdict(float)
        """US dollars of responses that are no answer, by the key of the request."""
        self.reserved = 0.0
        self.settled = asyncio.Event()
        self.local = asyncio.Lock()
        self.servers: dict[tuple[str | None, str | None], Backend] = {}
        for endpoint in self.streams:
            if self.options.max_cost is not None and client.prices.of(endpoint) is None:
                raise ConfigError(
                    f"The price of {endpoint.model} is unknown, so a limit on cost cannot be kept. Give its price in a "
                    "file with --prices (see simfarm/llm/prices.toml for the form), or drop --max-cost."
                )

    async def main(self) -> None:
        self.writer = GroupWriter(self.client.store)
        try:
            async with asyncio.TaskGroup() as group:
                for endpoint, jobs in self.streams.items():
                    group.create_task(self._pump(endpoint, _round_robin(jobs)))
        except* SimfarmError as errors:
            raise _first(errors) from None
        finally:
            self.writer.finish()
            for backend in self.servers.values():
                await backend.close()

    async def _pump(self, endpoint: Endpoint, jobs: Iterator[Job]) -> None:
        given = self.client.backends.get(endpoint.provider)
        if endpoint.in_process or isinstance(given, BatchBackend):
            async with self.local:  # one model in memory at a time
                await self._pump_local(endpoint, jobs, given if isinstance(given, BatchBackend) else None)
            return
        place = self._place(endpoint, given)
        room = asyncio.Semaphore(2 * self.options.concurrency)
        async with asyncio.TaskGroup() as group:
            while chunk := list(islice(jobs, CHUNK)):
                for key, request in await self._owed(chunk, place.price):
                    await room.acquire()
                    task = group.create_task(self._call(place, request, key))
                    task.add_done_callback(lambda _: room.release())
        if place.rejections and not place.answered and place.rejections[-1].whole_endpoint:
            raise _hopeless(place)

    def _place(self, endpoint: Endpoint, given: Backend | None) -> _Place:
        options = self.options
        limiter = Limiter(
            most=options.concurrency,
            requests=Bucket(options.requests_per_minute) if options.requests_per_minute else None,
            tokens=Bucket(options.tokens_per_minute) if options.tokens_per_minute else None,
        )
        return _Place(endpoint, self.client.prices.of(endpoint), Gate(limiter), given)

    def _server(self, place: _Place) -> Backend:
        # opened at the first call that is owed: a run whose answers are all stored needs no key
        if place.backend is None:
            endpoint = place.endpoint
            if endpoint.provider == "fake":
                raise ConfigError(
                    f"The model {endpoint.model} cannot be prompted; a member of a pool that is given a fake/ model is "
                    "played by a fake annotator."
                )
            where = (endpoint.base_url, endpoint.api_key_env)
            if where not in self.servers:
                from simfarm.llm.openai_server import connect

                self.servers[where] = connect(endpoint, timeout=self.options.timeout)
            place.backend = self.servers[where]
        return place.backend

    async def _owed(self, chunk: list[Job], price: Price | None) -> list[tuple[str, Request]]:
        """Read what is stored; return the requests that must be asked, each once, with their keys."""
        unknown = []
        for job in chunk:
            # shared before the lookup: a call that ends while the lookup is under way would be missed by both
            if not self._share(key := job.request.key, job):
                unknown.append((key, job))
        kept = await asyncio.to_thread(self.client.store.get, list(dict.fromkeys(key for key, _ in unknown)))
        owed = []
        for key, job in unknown:
            if key in kept:
                answer = Answer.read(kept[key].response, latency=kept[key].latency, stored=True, key=key)
                self.usage.found += 1
                job.read(Outcome(answer, cost(price, answer)))
            elif not self._share(key, job):
                self.waiting[key] = [job]
                owed.append((key, job.request))
        return owed

    def _share(self, key: str, job: Job) -> bool:
        """Let a job wait for the call of an identical one, if there is one under way."""
        if key not in self.waiting:
            return False
        self.usage.shared += 1
        self.waiting[key].append(job)
        return True

    def _deliver(self, key: str, outcome: Outcome) -> None:
        for job in self.waiting.pop(key):
            job.read(outcome)

    async def _call(self, place: _Place, request: Request, key: str) -> None:
        tokens = tokens_at_most(request) + (request.max_tokens or 0)
        estimate = cost_at_most(place.price, request) if place.price else 0.0
        reserve = estimate * place.scale
        if not await self._afford(reserve):
            self.usage.failed += 1
            self._deliver(key, Outcome(Failure(f"not asked: max_cost of ${self.options.max_cost:g} reached"), 0.0))
            return
        spent: float | None = 0.0
        try:
            result = await self._ask(place, request, key, tokens)
            if isinstance(result, Answer):
                spent = cost(place.price, result)
                self._count(result, spent)
                if spent and estimate:
                    place.scale = max(place.scale, spent / estimate)
            else:
                self.usage.failed += 1
        finally:
            self.reserved -= reserve
            self.settled.set()
        wasted = self.wasted.pop(key, 0.0)
        self._deliver(key, Outcome(result, None if spent is None else spent + wasted))

    async def _afford(self, reserve: float) -> bool:
        most = self.options.max_cost
        while most is not None and self.usage.spent + self.reserved + reserve > most:
            if self.reserved <= 1e-12:
                return False
            # calls under way cost less than is set aside for them: see what they leave
            self.settled.clear()
            await self.settled.wait()
        self.reserved += reserve
        return True

    def _count(self, answer: Answer, spent: float | None) -> None:
        self.usage.asked += 1
        self.usage.input_tokens += answer.input_tokens or 0
        self.usage.output_tokens += answer.output_tokens or 0
        if spent is None:
            self.usage.unpriced += 1
        else:
            self.usage.spent += spent

    async def _ask(self, place: _Place, request: Request, key: str, tokens: int) -> Answer | Failure:
        """Ask until there is an answer that is stored, or no hope."""
        backend, limiter = self._server(place), place.gate.limiter
        tries, refusals, begun = 0, 0, time.monotonic()
        while True:
            await place.gate.enter(tokens)
            if place.hopeless:
                raise _hopeless(place)
            sent, raw = time.monotonic(), None
            try:
                raw = await backend.complete(request)
                answer = checked(raw, time.monotonic() - sent, key, request)
            except RateLimited as error:
                now = time.monotonic()
                refusals += 1
                wait = error.retry_after if error.retry_after is not None else self._pause(key, refusals)
                limiter.refused(now, sent, wait)
                place.gate.wake()
                if now + wait - begun > PATIENCE:
                    return Failure(f"{error} (for {PATIENCE / 60:.0f} minutes)")
                self.usage.retried += 1
                continue
            except Transient as error:
                limiter.failed()
                place.gate.wake()
                self._charge(place, key, raw)
                tries += 1
                if tries >= (TRIES if place.answered else FIRST_TRIES):
                    reason = f"{error} ({tries} times)"
                    lost = isinstance(error, Unreachable)
                    self._note(place, Rejected(reason, kind="unreachable" if lost else "errors", whole_endpoint=lost))
                    return Failure(reason)
                self.usage.retried += 1
                await asyncio.sleep(self._pause(key, tries))
                continue
            except Rejected as error:
                limiter.failed()
                place.gate.wake()
                self._charge(place, key, raw)
                self._note(place, error)
                return Failure(str(error))
            except BaseException:
                limiter.failed()
                raise
            limiter.succeeded()
            place.gate.wake()
            place.answered = True
            place.rejections.clear()
            standing = await self.writer.save(StoredCall(key, request.to_json(), raw, answer.latency))
            if standing is None:
                return answer
            return Answer.read(standing.response, latency=standing.latency, key=key)

    def _charge(self, place: _Place, key: str, raw: dict[str, Any] | None) -> None:
        """Count what a response cost that is no answer: withheld, or cut off before it began."""
        usage = (raw or {}).get("usage")
        if place.price is not None and isinstance(usage, dict):
            sizes = [usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0]
            self.wasted[key] += (amount := (sizes[0] * place.price.input + sizes[1] * place.price.output) / 1e6)
            self.usage.spent += amount

    @staticmethod
    def _pause(key: str, tries: int) -> float:
        jitter = 0.5 + draws.uniform(0, "backoff", key, tries)
        return float(min(30.0, 0.25 * 2**tries) * jitter)

    @staticmethod
    def _note(place: _Place, error: Rejected) -> None:
        if place.rejections and place.rejections[-1].kind != error.kind:
            place.rejections.clear()
        place.rejections.append(error)
        if place.hopeless:
            raise _hopeless(place)

    async def _pump_local(self, endpoint: Endpoint, jobs: Iterator[Job], backend: BatchBackend | None) -> None:
        loaded = backend
        try:
            while chunk := list(islice(jobs, LOCAL_CHUNK.get(endpoint.provider, CHUNK))):
                owed = [request for _, request in await self._owed(chunk, FREE)]
                if not owed:
                    continue
                if loaded is None:
                    loaded = await asyncio.to_thread(load_local, endpoint)
                begun = time.monotonic()
                raws = await asyncio.to_thread(loaded.complete_many, owed)
                latency = (time.monotonic() - begun) / len(owed)
                await self._keep_local(owed, raws, latency)
        finally:
            if loaded is not None:
                loaded.unload()

    async def _keep_local(
        self, requests: list[Request], raws: list[dict[str, Any] | CallFailed], latency: float
    ) -> None:
        results: dict[str, Answer | Failure] = {}
        calls = []
        for request, raw in zip(requests, raws, strict=True):
            key = request.key
            try:
                if isinstance(raw, CallFailed):
                    raise raw
                results[key] = checked(raw, latency, key, request)
                calls.append(StoredCall(key, request.to_json(), raw, latency))
            except CallFailed as error:
                results[key] = Failure(str(error))
        for key, kept in (await asyncio.to_thread(self.client.store.put, calls)).items():
            results[key] = Answer.read(kept.response, latency=kept.latency, key=key)
        for key, result in results.items():
            if isinstance(result, Answer):
                self._count(result, 0.0)
            else:
                self.usage.failed += 1
            self._deliver(key, Outcome(result, 0.0))


def load_local(endpoint: Endpoint) -> BatchBackend:
    """Load a model into this process.

    Raises:
        MissingExtraError: What runs it is not installed.
        ModelError: There is no such model.
    """
    if endpoint.provider == "vllm":
        from simfarm.llm.vllm_engine import VLLMEngine

        return VLLMEngine(endpoint.model.split("/", 1)[1])
    from simfarm.llm.hf_engine import HFEngine

    return HFEngine(endpoint.model.split("/", 1)[1])


def _hopeless(place: _Place) -> ProviderError:
    error = place.rejections[-1]
    if error.kind.startswith(("401", "403")):
        mend = "Check the API key in its environment variable"
    elif error.kind in ("unreachable", "errors"):
        mend = "Check that the server runs, and --base-url"
    else:
        mend = "Check the model's name (--model ROLE=PROVIDER/MODEL) and --base-url"
    return ProviderError(
        f"Every call to {place.endpoint.model} fails in the same way, so simfarm stopped: {error}. {mend}; "
        "simfarm pool check NAME --live tries one call per member. Finished answers are kept."
    )


def _round_robin(streams: list[Iterable[Job]]) -> Iterator[Job]:
    queue = deque(iter(jobs) for jobs in streams)
    while queue:
        jobs = queue.popleft()
        if (job := next(jobs, None)) is not None:
            yield job
            queue.append(jobs)


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
