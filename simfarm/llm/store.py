"""Every answer of a language model, kept raw under its request's key before anything reads it.

One row per key: the first answer stands. SQLite in WAL mode for one machine (any number of processes), PostgreSQL by
URL for a team. A committed row survives kill -9; failures and refusals are never stored.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from simfarm.errors import ConfigError, RunError, require
from simfarm.resources import cache_dir

if TYPE_CHECKING:
    import psycopg

CHUNK = 500


class StoredCall(NamedTuple):
    """A finished call."""

    key: str
    request: str
    """`Request.to_json`."""
    response: dict[str, Any]
    """As the server sent it."""
    latency: float
    """Seconds."""


class Kept(NamedTuple):
    """What the store gives back of a call."""

    response: dict[str, Any]
    latency: float


class Store(Protocol):
    """Keeps calls. All methods may be called from any thread."""

    def get(self, keys: Sequence[str]) -> dict[str, Kept]:
        """Return what is stored under these keys; unknown keys are left out."""
        ...

    def put(self, calls: Sequence[StoredCall]) -> dict[str, Kept]:
        """Store calls, durably when this returns. Returns the answers that were there before and stand."""
        ...

    def count(self) -> int:
        """Return the number of calls stored."""
        ...

    def close(self) -> None:
        """Let go of the database."""
        ...


def pack(value: str) -> bytes:
    """Compress a text; prompts shrink to about a third."""
    return zlib.compress(value.encode("ascii"), 1)


def unpack(value: bytes) -> Any:
    """Read the JSON that was packed."""
    return json.loads(zlib.decompress(value))


def default_store() -> Path:
    """Return where calls are kept if nobody says otherwise."""
    return cache_dir() / "calls.sqlite"


def open_store(where: str | Path | None = None) -> Store:
    """Open a store, creating it if need be.

    Args:
        where: A file, `postgresql://user@host/database`, or None for `calls.sqlite` in the user's cache.

    Raises:
        ConfigError: The URL is of an unknown kind.
        RunError: The database cannot be opened.
        MissingExtraError: PostgreSQL is asked for and psycopg is not installed.
    """
    text = str(where) if where is not None else ""
    if "://" in text:
        scheme = urlsplit(text).scheme
        if scheme not in ("postgresql", "postgres"):
            raise ConfigError(
                f"The store {scheme}://… is of an unknown kind; give a file or postgresql://host/database."
            )
        return PostgresStore(text)
    return SQLiteStore(Path(text).expanduser() if text else default_store())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class SQLiteStore:
    """Calls in one SQLite file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            # in WAL mode NORMAL keeps every commit through a killed process; only a power cut may lose the last ones
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(
                # the request comes last: looking an answer up then never reads it
                "CREATE TABLE IF NOT EXISTS calls (key BLOB PRIMARY KEY, latency REAL NOT NULL, created TEXT NOT NULL,"
                " response BLOB NOT NULL, request BLOB NOT NULL)"
            )
        except (OSError, sqlite3.Error) as error:
            raise RunError(
                f"The call store {path} cannot be opened: {error}. Give another file (--store) or set SIMFARM_CACHE."
            ) from error

    def get(self, keys: Sequence[str]) -> dict[str, Kept]:
        """Return what is stored under these keys."""
        found: dict[str, Kept] = {}
        for start in range(0, len(keys), CHUNK):
            part = [bytes.fromhex(key) for key in keys[start : start + CHUNK]]
            marks = ",".join("?" * len(part))
            try:
                with self._lock:
                    rows = self._db.execute(
                        f"SELECT key, response, latency FROM calls WHERE key IN ({marks})", part
                    ).fetchall()
                found |= {key.hex(): Kept(unpack(response), latency) for key, response, latency in rows}
            except (sqlite3.Error, zlib.error) as error:
                raise RunError(
                    f"The call store {self.path} cannot be read: {error}. Give another file (--store), or mend "
                    "this one with sqlite3's .recover."
                ) from error
        return found

    def put(self, calls: Sequence[StoredCall]) -> dict[str, Kept]:
        """Store calls in one transaction; an answer that is there stands."""
        created, late = _now(), []
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                for call in calls:
                    if not self._db.execute(
                        "INSERT OR IGNORE INTO calls VALUES (?,?,?,?,?)", _row(call, created)
                    ).rowcount:
                        late.append(call.key)
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise RunError(f"The call store {self.path} cannot be written: {error}.") from error
        return self.get(late) if late else {}

    def count(self) -> int:
        """Return the number of calls stored."""
        with self._lock:
            return int(self._db.execute("SELECT COUNT(*) FROM calls").fetchone()[0])

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._db.close()


class PostgresStore:
    """Calls in a PostgreSQL table `simfarm_calls`, shared by a team."""

    def __init__(self, url: str) -> None:
        self._psycopg: Any = require("psycopg", "postgres", "A call store on PostgreSQL")
        self._lock = threading.Lock()
        self._where = f"{urlsplit(url).hostname or 'localhost'}{urlsplit(url).path}"
        try:
            self._db: psycopg.Connection[tuple[Any, ...]] = self._psycopg.connect(url, autocommit=True)
            with self._db.transaction():
                # two processes that create one table at once would collide
                self._db.execute("SELECT pg_advisory_xact_lock(72067206720)")
                self._db.execute(
                    "CREATE TABLE IF NOT EXISTS simfarm_calls (key BYTEA PRIMARY KEY, latency DOUBLE PRECISION"
                    " NOT NULL, created TEXT NOT NULL, response BYTEA NOT NULL, request BYTEA NOT NULL)"
                )
        except self._psycopg.Error as error:
            raise RunError(f"The call store on PostgreSQL at {self._where} cannot be opened: {error}") from None

    def get(self, keys: Sequence[str]) -> dict[str, Kept]:
        """Return what is stored under these keys."""
        found: dict[str, Kept] = {}
        for start in range(0, len(keys), CHUNK):
            part = [bytes.fromhex(key) for key in keys[start : start + CHUNK]]
            try:
                with self._lock:
                    rows = self._db.execute(
                        "SELECT key, response, latency FROM simfarm_calls WHERE key = ANY(%s)", (part,)
                    ).fetchall()
            except self._psycopg.Error as error:
                raise RunError(f"The call store on PostgreSQL at {self._where} cannot be read: {error}") from None
            found |= {bytes(key).hex(): Kept(unpack(response), latency) for key, response, latency in rows}
        return found

    def put(self, calls: Sequence[StoredCall]) -> dict[str, Kept]:
        """Store calls in one transaction; an answer that is there stands."""
        created = _now()
        try:
            with self._lock, self._db.transaction(), self._db.cursor() as cursor:
                # one order for all writers, so that two that share keys never wait for each other in a ring
                cursor.executemany(
                    "INSERT INTO simfarm_calls VALUES (%s,%s,%s,%s,%s) ON CONFLICT (key) DO NOTHING",
                    [_row(call, created) for call in sorted(calls, key=lambda call: call.key)],
                )
            kept = self.get([call.key for call in calls])
        except self._psycopg.Error as error:
            raise RunError(f"The call store on PostgreSQL at {self._where} cannot be written: {error}") from None
        return {call.key: kept[call.key] for call in calls if kept[call.key].response != call.response}

    def count(self) -> int:
        """Return the number of calls stored."""
        with self._lock:
            row = self._db.execute("SELECT COUNT(*) FROM simfarm_calls").fetchone()
        return int(row[0]) if row else 0

    def close(self) -> None:
        """End the connection."""
        self._db.close()


def _row(call: StoredCall, created: str) -> tuple[bytes, float, str, bytes, bytes]:
    return bytes.fromhex(call.key), call.latency, created, pack(json.dumps(call.response)), pack(call.request)
