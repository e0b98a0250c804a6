"""The call store, on SQLite and on a real PostgreSQL server."""

import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from simfarm.errors import ConfigError, RunError
from simfarm.llm.serve import free_port
from simfarm.llm.store import PostgresStore, SQLiteStore, Store, StoredCall, open_store


def call(i: int, text: str = "A") -> StoredCall:
    return StoredCall(f"{i:064x}", '{"model":"openai/m"}', {"choices": [{"message": {"content": text}}]}, 0.5)


def find_postgres() -> Path | None:
    found = [Path(p).parent for p in [shutil.which("initdb")] if p]
    return next(iter([*found, *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]), None)


@pytest.fixture(scope="module")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'simfarm[postgres]'")
    bin_dir = find_postgres()
    if bin_dir is None or not (bin_dir / "initdb").is_file():
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    data = tmp_path_factory.mktemp("postgres")
    user: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        if shutil.which("runuser") is None or subprocess.run(["id", "postgres"], capture_output=True).returncode:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres to run it as")
        user = ["runuser", "-u", "postgres", "--"]
        for folder in (data, *data.parents):
            if folder.stat().st_uid == 0 and folder != Path("/") and "pytest" in str(folder):
                folder.chmod(0o755)
        shutil.chown(data, "postgres")
    port = free_port()
    quiet = {"check": True, "capture_output": True, "cwd": "/"}
    subprocess.run([*user, bin_dir / "initdb", "-D", data / "db", "-U", "farm", "--auth=trust"], **quiet)
    options = f"-p {port} -k {data} -c listen_addresses=127.0.0.1 -c fsync=off"
    subprocess.run(
        [*user, bin_dir / "pg_ctl", "-D", data / "db", "-o", options, "-l", data / "log", "-w", "start"], **quiet
    )
    yield f"postgresql://farm@127.0.0.1:{port}/postgres"
    stop = [*user, bin_dir / "pg_ctl", "-D", data / "db", "-m", "immediate", "-t", "120", "stop"]
    subprocess.run(stop, capture_output=True, cwd="/", check=False)  # on a busy machine it may end after the wait


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "deep" / "calls.sqlite")
    address: str = request.getfixturevalue("postgres_url")
    store = open_store(address)
    assert isinstance(store, PostgresStore)
    store._db.execute("TRUNCATE simfarm_calls")
    store.close()
    return address


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = open_store(url)
    yield opened
    opened.close()


def test_gives_back_what_was_put(store: Store) -> None:
    odd = call(7, "\ud800 \x00 \u202e </s>")
    assert store.put([call(1), odd]) == {}
    found = store.get([call(1).key, call(2).key, odd.key])
    assert set(found) == {call(1).key, odd.key}
    assert found[odd.key].response == odd.response
    assert found[odd.key].latency == 0.5


def test_the_first_answer_stands(store: Store) -> None:
    store.put([call(1, "A")])
    standing = store.put([call(1, "B"), call(2, "B")])
    assert {key: kept.response for key, kept in standing.items()} == {call(1).key: call(1, "A").response}
    assert store.count() == 2
    assert store.get([call(1).key])[call(1).key].response == call(1, "A").response


def test_many_keys_at_once(store: Store) -> None:
    calls = [call(i) for i in range(1300)]
    store.put(calls)
    assert len(store.get([c.key for c in calls] + [call(9999).key])) == 1300


def write_some(url: str, offset: int) -> None:
    store = open_store(url)
    for i in range(60):
        store.put([call(offset + i, str(offset)), call(1000 + i, str(offset))])
    store.close()


def test_processes_share_it(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=write_some, args=(url, 100 * n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    store = open_store(url)
    assert store.count() == 3 * 60 + 60
    store.close()


def test_an_unusable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x" * 100)
    with pytest.raises(RunError, match="cannot be opened"):
        SQLiteStore(tmp_path / "file")
    with pytest.raises(ConfigError, match="mysql"):
        open_store("mysql://host/db")


def test_a_damaged_page_is_an_error_of_the_store(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    store = SQLiteStore(path)
    store.put([call(i) for i in range(500)])
    store.close()
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(RunError, match="cannot be read"):
        SQLiteStore(path).get([call(i).key for i in range(500)])


def test_a_password_never_reaches_an_error() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(RunError) as caught:
        open_store(f"postgresql://me:hunter2@127.0.0.1:{free_port()}/db")
    assert "hunter2" not in str(caught.value)
