"""Parts of the client's flow: the gate before a server, the writer behind it, and the loop they run in."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from simfarm.llm.limiter import Limiter
from simfarm.llm.store import Kept, Store, StoredCall


class Gate:
    """Lets requests through as the limiter allows, first come, first served."""

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self._queue: deque[tuple[asyncio.Future[None], int]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self, tokens: int) -> None:
        """Wait for one's turn; the request then counts as started."""
        future = asyncio.get_running_loop().create_future()
        self._queue.append((future, tokens))
        self.wake()
        await future

    def wake(self) -> None:
        """Let through who may go now. Call after every change of the limiter."""
        now = time.monotonic()
        while self._queue:
            future, tokens = self._queue[0]
            if future.done():
                self._queue.popleft()
                continue
            wait = self.limiter.wait(now, tokens)
            if wait is None:
                return
            if wait > 0:
                if self._timer is None or self._timer.cancelled():
                    self._timer = asyncio.get_running_loop().call_later(wait, self._alarm)
                return
            self._queue.popleft()
            self.limiter.started(now, tokens)
            future.set_result(None)

    def _alarm(self) -> None:
        self._timer = None
        self.wake()


class GroupWriter:
    """Commits answers in groups: what arrives while one commit is under way goes into the next."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pending: list[tuple[StoredCall, asyncio.Future[Kept | None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def save(self, call: StoredCall) -> Kept | None:
        """Store a call; return the answer that stands if another process was first."""
        future: asyncio.Future[Kept | None] = asyncio.get_running_loop().create_future()
        self._pending.append((call, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._flush())
        return await future

    async def _flush(self) -> None:
        while self._pending:
            # left in place until they are committed, so that a cancelled run can still write them
            batch = list(self._pending)
            try:
                standing = await asyncio.to_thread(self._store.put, [call for call, _ in batch])
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                del self._pending[: len(batch)]
                continue
            del self._pending[: len(batch)]
            for call, future in batch:
                if not future.done():
                    future.set_result(standing.get(call.key))

    def finish(self) -> None:
        """Write what is left; a cancelled run loses nothing it has received."""
        self._store.put([call for call, _ in self._pending])
        self._pending.clear()


@contextmanager
def lighter_collector() -> Iterator[None]:
    """Spare the garbage collector what was there before, for the time being.

    Calls make much garbage, and looking each time at the hundred thousands of objects of pandas and the like took a
    sixth of a run.
    """
    if gc.get_freeze_count():  # someone's own arrangement
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def run_async(main: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine to its end, also where an event loop runs already, as in a notebook."""

    async def start() -> None:
        await main()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(start())
        return
    raised: list[BaseException] = []

    def target() -> None:
        try:
            asyncio.run(start())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
