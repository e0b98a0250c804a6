"""The client: what is kept, what is asked again, what stops it."""

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from llm_helpers import answered, ask, name_in_log, read_log, stream, stub_server

from simfarm.errors import ConfigError, ModelError, ProviderError, RunError
from simfarm.llm import client as client_module
from simfarm.llm.backend import CallFailed, Endpoint, RateLimited, Rejected, Transient, Unreachable
from simfarm.llm.client import Client, Failure, Job, Options, Outcome, Stream
from simfarm.llm.fake import FakeServer
from simfarm.llm.prices import Price, Prices
from simfarm.llm.request import Answer, Request, completion
from simfarm.llm.store import Kept, SQLiteStore, StoredCall


@pytest.fixture
def store(tmp_path: Path) -> SQLiteStore:
    return SQLiteStore(tmp_path / "calls.sqlite")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simfarm.llm.client._Run._pause", staticmethod(lambda key, tries: 0.001))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-0123456789")


def run(store: SQLiteStore, server: FakeServer, requests: list[Request], **options: Any) -> list[Outcome]:
    outcomes: list[Outcome] = []
    Client(store, backends={"fake": server}, options=Options(**options)).run([stream(requests, outcomes.append)])
    return outcomes


def texts(outcomes: list[Outcome]) -> list[str]:
    return [o.result.text if isinstance(o.result, Answer) else f"! {o.result.reason}" for o in outcomes]


def test_an_answer_is_asked_once_and_found_ever_after(store: SQLiteStore) -> None:
    server = FakeServer(lambda request: request.messages[0].content.upper())
    requests = [ask(f"q{i}") for i in range(300)]
    assert sorted(texts(run(store, server, requests))) == sorted(f"Q{i}" for i in range(300))
    again = run(store, server, requests, concurrency=3, timeout=5)
    assert sorted(texts(again)) == sorted(f"Q{i}" for i in range(300))
    assert all(isinstance(o.result, Answer) and o.result.stored for o in again)
    assert set(server.asked.values()) == {1}


class FullStore(SQLiteStore):
    def put(self, calls: Sequence[StoredCall]) -> dict[str, Kept]:
        raise RunError("the disk is full")


def test_whatever_stops_a_run_is_an_error_of_simfarm_and_no_group_of_errors(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the disk is full"):
        run(FullStore(tmp_path / "full.sqlite"), FakeServer(lambda request: "A"), [ask("q")])
    nowhere = Stream(Endpoint("hf/no/such/folder", None, None), [Job(ask("q", model="hf/no/such/folder"), print)])
    with pytest.raises(ModelError, match="no model 'no/such/folder'"):
        Client(SQLiteStore(tmp_path / "calls.sqlite")).run([nowhere])


def test_identical_requests_share_one_call_but_replicates_do_not(store: SQLiteStore) -> None:
    server = FakeServer(lambda request: "A", latency=0.01)
    outcomes = run(store, server, [ask("q")] * 50 + [ask("q", replicate=1)])
    assert len(outcomes) == 51
    assert sum(server.asked.values()) == 2


@pytest.mark.parametrize("fault", [Transient("500"), RateLimited("429", 0.001), RateLimited("429")])
def test_retries_until_there_is_an_answer(store: SQLiteStore, fault: CallFailed) -> None:
    left = {"q": 3}

    def reply(request: Request) -> str:
        if left["q"]:
            left["q"] -= 1
            raise fault
        return "A"

    assert texts(run(store, FakeServer(reply), [ask("q")])) == ["A"]


def test_a_failure_is_not_stored_and_is_asked_again(store: SQLiteStore) -> None:
    down = FakeServer(lambda request: (_ for _ in ()).throw(Transient("server down")))
    assert texts(run(store, down, [ask("q")])) == [f"! server down ({client_module.FIRST_TRIES} times)"]
    assert store.count() == 0
    assert texts(run(store, FakeServer(lambda request: "A"), [ask("q")])) == ["A"]


class Raw:
    """Answers with given responses."""

    def __init__(self, *responses: dict[str, Any]) -> None:
        self.responses = list(responses)

    async def complete(self, request: Request) -> dict[str, Any]:
        return self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]

    async def close(self) -> None:
        pass


def said(text: str, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    raw = completion(text, finish_reason=finish_reason, input_tokens=10, output_tokens=1)
    raw["choices"][0]["message"] |= message
    return raw


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (said("", "content_filter"), "withheld"),
        (said("", refusal="I cannot judge this"), "I cannot judge this"),
        (said("", "length"), "tokens for reasoning"),
        (said(""), "empty"),
        ({"choices": []}, "no choices"),
        ({"choices": "A"}, "no choices"),
        ({"choices": [{"message": {"content": [{"type": "text"}]}}]}, "no text"),
        ({"choices": [{"message": {"content": "A"}, "logprobs": {"content": [{"token": 1}]}}]}, "no chat completion"),
    ],
)
def test_what_is_no_answer_is_never_stored(store: SQLiteStore, raw: dict[str, Any], reason: str) -> None:
    outcomes: list[Outcome] = []
    Client(store, backends={"fake": Raw(raw)}).run([stream([ask("q")], outcomes.append)])
    assert isinstance(outcomes[0].result, Failure) and reason in outcomes[0].result.reason
    assert store.count() == 0


def test_a_cut_off_answer_with_text_is_an_answer(store: SQLiteStore) -> None:
    outcomes: list[Outcome] = []
    Client(store, backends={"fake": Raw(said("A", "length"))}).run([stream([ask("q")], outcomes.append)])
    assert texts(outcomes) == ["A"]


def test_one_bad_request_does_not_stop_the_others(store: SQLiteStore) -> None:
    def reply(request: Request) -> str:
        if "7" in request.messages[0].content:
            raise Rejected("too long", kind="400 context", whole_endpoint=False)
        return "A"

    outcomes = run(store, FakeServer(reply), [ask(f"q{i}") for i in range(100)])
    assert texts(outcomes).count("! too long") == 19
    assert texts(outcomes).count("A") == 81


def test_a_wrong_model_stops_early_even_with_few_rows(store: SQLiteStore) -> None:
    def reply(request: Request) -> str:
        raise Rejected("the model `m` does not exist", kind="404 model_not_found", whole_endpoint=True)

    for rows in (2, 500):
        server = FakeServer(reply)
        with pytest.raises(ProviderError, match="the model `m` does not exist"):
            run(store, server, [ask(f"q{i}") for i in range(rows)])
        assert sum(server.asked.values()) <= 64


def test_a_bad_key_stops_early_with_the_providers_words_and_without_the_key(store: SQLiteStore) -> None:
    words = "401:invalid_api_key:Incorrect API key provided: sk-secret-0123456789. Find yours in the console."
    with stub_server("--refuse", words, "--latency", "0.005") as base_url:
        client = Client(store)
        with pytest.raises(ProviderError, match="Incorrect API key provided") as caught:
            client.run([stream([ask(f"q{i}", "openai/m") for i in range(500)], lambda outcome: None, base_url)])
    assert "0123456789" not in str(caught.value)
    assert "0123456789" not in "".join(map(str, (client.__dict__, caught.value.__context__)))
    assert store.count() == 0


def test_a_server_that_is_not_there_stops_the_run(store: SQLiteStore) -> None:
    for rows in (1, 200):
        with pytest.raises(ProviderError, match=r"127\.0\.0\.1:9/v1 failed: .*Refused.*Check that the server runs"):
            Client(store).run(
                [stream([ask(f"q{i}", "openai/m") for i in range(rows)], lambda outcome: None, "http://127.0.0.1:9/v1")]
            )


def test_a_server_that_is_lost_stops_the_run_and_keeps_what_it_answered(store: SQLiteStore) -> None:
    def reply(request: Request) -> str:
        if int(request.messages[0].content[1:]) >= 50:
            raise Unreachable("connection lost")
        return "A"

    with pytest.raises(ProviderError, match=f"connection lost .{client_module.TRIES} times.*Finished answers are kept"):
        run(store, FakeServer(reply), [ask(f"q{i}") for i in range(200)], concurrency=8)
    assert store.count() == 50


def test_a_few_lost_connections_among_answers_are_nulls(store: SQLiteStore) -> None:
    def reply(request: Request) -> str:
        if request.messages[0].content.endswith("7"):
            raise Unreachable("connection lost")
        return "A"

    outcomes = run(store, FakeServer(reply, latency=0.001), [ask(f"q{i}") for i in range(100)], concurrency=4)
    assert texts(outcomes).count("A") == 90


def test_no_key_and_no_server_is_a_clear_error(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        Client(store).run([stream([ask("q", "openai/m")], lambda outcome: None)])


def test_stored_answers_need_no_key_and_no_server(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    request = ask("q", "openai/m")
    Client(store, backends={"openai": FakeServer(lambda r: "A")}).run([stream([request], lambda outcome: None)])
    monkeypatch.delenv("OPENAI_API_KEY")
    outcomes: list[Outcome] = []
    Client(store).run([stream([request], outcomes.append)])
    assert texts(outcomes) == ["A"]


PRICES = Prices([Price(model="openai/m", input=1000.0, output=1000.0)])


def test_responses_that_are_no_answer_are_paid_for_by_their_label(store: SQLiteStore) -> None:
    client = Client(store, prices=PRICES, backends={"openai": Raw(said(""), said("A"))})
    outcomes: list[Outcome] = []
    client.run([stream([ask("q", "openai/m")], outcomes.append)])
    withheld = Client(store, prices=PRICES, backends={"openai": Raw(said("", "content_filter"))})
    withheld.run([stream([ask("another", "openai/m")], outcomes.append)])
    once = 11 * 1000 / 1e6  # 10 tokens in, 1 out
    assert [o.cost for o in outcomes] == pytest.approx([2 * once, once])
    assert [client.usage.spent, withheld.usage.spent] == pytest.approx([2 * once, once])


@pytest.mark.parametrize("most", [0.0, 0.3, 1.0])
def test_max_cost_is_never_exceeded_and_nearly_used(store: SQLiteStore, most: float) -> None:
    server = FakeServer(lambda request: "A", latency=0.001)
    client = Client(store, prices=PRICES, backends={"openai": server}, options=Options(max_cost=most))
    outcomes: list[Outcome] = []
    client.run([stream([ask(f"q{i:03}", "openai/m", max_tokens=20) for i in range(200)], outcomes.append)])
    spent = sum(o.cost or 0 for o in outcomes)
    assert client.usage.spent == pytest.approx(spent)
    assert most - 0.04 <= spent <= most
    assert len(outcomes) == 200
    assert any("max_cost" in text for text in texts(outcomes))


def test_a_limit_on_cost_needs_a_price(store: SQLiteStore) -> None:
    client = Client(store, backends={"openai": FakeServer(lambda r: "A")}, options=Options(max_cost=1.0))
    with pytest.raises(ConfigError, match="price of openai/unheard-of is unknown"):
        client.run([stream([ask("q", "openai/unheard-of")], lambda outcome: None)])


def test_an_unknown_price_is_unknown_not_zero(store: SQLiteStore) -> None:
    outcomes: list[Outcome] = []
    client = Client(store, backends={"openai": FakeServer(lambda r: "A")})
    client.run([stream([ask("q", "openai/unheard-of")], outcomes.append)])
    assert outcomes[0].cost is None
    assert client.usage.unpriced == 1


def test_works_inside_a_running_event_loop(store: SQLiteStore) -> None:
    async def notebook() -> list[Outcome]:
        return run(store, FakeServer(lambda request: "A"), [ask("q")])

    assert texts(asyncio.run(notebook())) == ["A"]


def test_a_slow_endpoint_does_not_hold_up_another(store: SQLiteStore) -> None:
    """The slow endpoint answers nothing before the quick one has answered everything."""
    done: list[str] = []
    all_quick = asyncio.Event()

    class Server(FakeServer):
        async def complete(self, request: Request) -> dict[str, Any]:
            if request.model == "fake/slow":
                await asyncio.wait_for(all_quick.wait(), 60)
            return await super().complete(request)

    def quick(outcome: Outcome) -> None:
        done.append("quick")
        if len(done) == 60:
            all_quick.set()

    Client(store, backends={"fake": Server(lambda r: "A")}, options=Options(concurrency=4)).run(
        [
            stream([ask(f"q{i}", "fake/slow") for i in range(40)], lambda o: done.append("slow")),
            stream([ask(f"q{i}", "fake/quick") for i in range(60)], quick),
        ]
    )
    assert done == ["quick"] * 60 + ["slow"] * 40


def test_an_identical_request_is_never_asked_twice_however_calls_and_lookups_interleave(store: SQLiteStore) -> None:
    """Repeats come in later chunks, whose lookups run while the first calls end."""

    class Slow(SQLiteStore):
        def get(self, keys: Sequence[str]) -> dict[str, Kept]:
            found = super().get(keys)
            time.sleep(0.02)  # an answer that is stored now is not in `found`
            return found

    server = FakeServer(lambda r: "A", latency=0.005)
    requests = [ask(f"q{i % 300}") for i in range(1500)]
    outcomes: list[Outcome] = []
    Client(Slow(store.path), backends={"fake": server}).run([stream(requests, outcomes.append)])
    assert len(outcomes) == 1500
    assert set(server.asked.values()) == {1}


def test_in_process_models_get_batches_and_share_the_store(store: SQLiteStore) -> None:
    class Local:
        sizes: list[int] = []  # noqa: RUF012

        def complete_many(self, requests: Sequence[Request]) -> list[dict[str, Any] | CallFailed]:
            self.sizes.append(len(requests))
            return [
                Rejected("does not fit", kind="request", whole_endpoint=False)
                if request.messages[0].content == "q3"
                else completion("A", finish_reason="stop", input_tokens=1, output_tokens=1)
                for request in requests
            ]

        def unload(self) -> None:
            self.sizes.append(-1)

    local = Local()
    requests = [ask(f"q{i}", "hf/m") for i in range(10)]
    for _ in range(2):
        outcomes: list[Outcome] = []
        Client(store, backends={"hf": local}).run([stream([*requests, requests[0]], outcomes.append)])
        assert sorted(texts(outcomes)) == ["! does not fit", *["A"] * 10]
    assert local.sizes == [10, -1, 1, -1]


def test_two_processes_that_ask_the_same_end_with_the_same_answer(store: SQLiteStore) -> None:
    begun = threading.Barrier(2)
    results: dict[str, list[Outcome]] = {"one": [], "two": []}

    def work(name: str) -> None:
        class Server(FakeServer):
            async def complete(self, request: Request) -> dict[str, Any]:
                begun.wait(5)
                return await super().complete(request)

        Client(SQLiteStore(store.path), backends={"fake": Server(lambda r: name)}).run(
            [stream([ask("q")], results[name].append)]
        )

    threads = [threading.Thread(target=work, args=(name,)) for name in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts(results["one"]) == texts(results["two"])


ROWS = 160


def test_a_faulty_server_alone_costs_no_answer_and_no_second_call(store: SQLiteStore, tmp_path: Path) -> None:
    outcomes: list[Outcome] = []
    requests = [ask(f"q{i}", "openai/m", server="localhost/v1") for i in range(ROWS)]
    with stub_server(
        "--faults", "0.2", "--latency", "0.01", "--slow", "0.2", "--log", str(tmp_path / "log")
    ) as base_url:
        Client(store).run([stream(requests, outcomes.append, base_url)])
    assert texts(outcomes) == ["A"] * ROWS
    assert answered(tmp_path / "log") == {name_in_log(request): 1 for request in requests}
    faults = {what for _, what in read_log(tmp_path / "log")}
    assert faults == {"answered", "429", "500", "dropped", "garbage", "slow"}
