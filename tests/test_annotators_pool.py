"""The pool: assignment, order, noise, and members that are language models."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simfarm.annotators.base import Presentation
from simfarm.annotators.fake import quality
from simfarm.annotators.pool import Pool, flip_labels, load_pool
from simfarm.annotators.prompted import PromptedAnnotator, groups
from simfarm.errors import ConfigError, DataError
from simfarm.llm.client import Client
from simfarm.llm.fake import FakeServer, Reply
from simfarm.llm.request import Request
from simfarm.llm.store import SQLiteStore
from simfarm.records import Comparison

WORDS = [f"word{i}" for i in range(12)]


def pairs(n: int, *, seed: int = 0) -> pd.DataFrame:
    """Comparisons whose outputs share 0 to 12 words with the instruction, and differ in length."""
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        outputs = [
            " ".join([*draw.permutation(WORDS)[: draw.integers(0, 5)], *["pad"] * int(draw.integers(0, 30)), f"{i}{k}"])
            for k in "ab"
        ]
        rows.append({"instruction": " ".join(WORDS) + f" {i}", "output_1": outputs[0], "output_2": outputs[1], "id": i})
    return pd.DataFrame(rows)


PAIR_PROMPT = """[system]
You are {persona}.
[user]
{#each}
## {number}
Instruction: {instruction}
A: {output_1}
B: {output_2}
{/each}
Say A or B.
"""


def make_pool(folder: Path, members: str, *, prompt: str = PAIR_PROMPT, models: str = 'judge = "openai/m"') -> Pool:
    folder.mkdir(exist_ok=True)
    (folder / "p.txt").write_text(prompt)
    (folder / "pool.toml").write_text(f'name = "t"\ndescription = "d"\n[models]\n{models}\n{members}')
    return load_pool(folder)


def member(name: str = "m", parser: str = '{kind="choice"}', **options: object) -> str:
    lines = "".join(f"{key} = {value}\n" for key, value in options.items())
    return (
        f'[[members]]\nkind = "prompted"\nname = "{name}"\nmodel = "judge"\nprompt = "p.txt"\n'
        f'fill = {{persona = "{name}"}}\nparser = {parser}\n{lines}'
    )


class Judge:
    """A server that prefers the output whose text sorts later, and counts its calls."""

    def __init__(self, tmp_path: Path, reply: Reply | None = None) -> None:
        self.server = FakeServer(lambda request: reply or self.reply(request))
        self.client = Client(SQLiteStore(tmp_path / "calls.sqlite"), backends={"openai": self.server})

    @staticmethod
    def reply(request: Request) -> str:
        text = request.messages[-1].content
        shown = [(part.split("\nB: ")[0], part.split("\nB: ")[1].split("\n")[0]) for part in text.split("\nA: ")[1:]]
        verdicts = ["A" if first > second else "B" for first, second in shown]
        return verdicts[0] if len(verdicts) == 1 else "\n".join(f"{i}: {v}" for i, v in enumerate(verdicts, 1))

    @property
    def calls(self) -> int:
        return self.server.asked.total()


def expected(table: pd.DataFrame) -> list[float]:
    return [1.0 if a > b else 2.0 for a, b in zip(table["output_1"], table["output_2"], strict=True)]


def test_a_prompted_member_judges_in_item_coordinates_whatever_order_it_is_shown(tmp_path: Path) -> None:
    table, judge = pairs(60), Judge(tmp_path)
    pool = make_pool(tmp_path / "pool", member())
    for orders in ("random", "both"):
        labels = pool.annotate(table, orders=orders, client=judge.client)  # type: ignore[arg-type]
        assert labels["preference"].tolist() == expected(table)
    assert labels["consistent"].all()
    assert list(labels["id"]) == list(range(60))
    assert judge.calls == 120  # the order shown at random is found again


@pytest.mark.parametrize("size", [2, 3, 5])
def test_several_comparisons_in_one_prompt(tmp_path: Path, size: int) -> None:
    table, judge = pairs(31), Judge(tmp_path)
    pool = make_pool(tmp_path / "pool", member(comparisons_per_prompt=size))
    labels = pool.annotate(table, orders="both", client=judge.client)
    assert labels["preference"].tolist() == expected(table)
    assert judge.calls == 2 * math.ceil(31 / size)
    grown = pool.annotate(pd.concat([table, pairs(31 + size).iloc[31:]]), orders="both", client=judge.client)
    assert grown["preference"].notna().all()
    assert judge.calls <= 2 * math.ceil(31 / size) + 4, "full prompts are found again when rows are added"


def test_one_unreadable_verdict_of_several_is_null_with_its_raw_text(tmp_path: Path) -> None:
    judge = Judge(tmp_path, "1: A\n2: I cannot say")
    pool = make_pool(tmp_path / "pool", member(comparisons_per_prompt=2))
    labels = pool.annotate(pairs(2), client=judge.client)
    assert labels["preference"].isna().tolist() == [False, True]
    assert "no verdict" in labels["reason"][1]
    assert labels["raw"][1] == "1: A\n2: I cannot say"


def test_changing_anything_that_changes_the_answer_asks_anew_and_nothing_else_does(tmp_path: Path) -> None:
    table, judge, n = pairs(20), Judge(tmp_path), 20
    base = make_pool(tmp_path / "pool", member())
    base.annotate(table, client=judge.client)
    assert judge.calls == n
    changes = [
        {"members": member(temperature=0.5)},
        {"members": member(max_tokens=7)},
        {"members": member(), "prompt": PAIR_PROMPT + "Be strict."},
        {"members": member(), "models": 'judge = "openai/n"'},
        {"members": member(), "models": 'judge = {model = "openai/m", revision = "2"}'},
        {"members": member(), "models": 'judge = {model = "openai/m", base_url = "http://gpu.example/v1"}'},
        {"members": member("other")},
    ]
    for number, change in enumerate(changes, 2):
        pool = make_pool(tmp_path / "pool", **change)
        assert pool.content_hash != base.content_hash
        pool.annotate(table, client=judge.client)
        assert judge.calls == number * n, change
    base.annotate(table, client=judge.client, replicates=2)
    assert judge.calls == (len(changes) + 2) * n
    # another parser reads what is stored, without a call and without the old parser's verdict
    reread = make_pool(tmp_path / "pool", member(parser='{kind="choice", first="B", second="A"}'))
    labels = reread.annotate(table, client=judge.client)
    assert judge.calls == (len(changes) + 2) * n
    assert labels["preference"].tolist() == [3 - p for p in expected(table)]


def test_logprobs_give_soft_labels_and_draws_from_them(tmp_path: Path) -> None:
    judge = Judge(tmp_path, {"A": 0.6, "B": 0.2})
    pool = make_pool(tmp_path / "pool", member(parser='{kind="logprobs"}', max_tokens=1))
    table = pairs(400)
    soft = pool.annotate(table, soft=True, client=judge.client)
    shown_first = soft["order"] == "12"
    assert np.allclose(soft["preference"], np.where(shown_first, 1.25, 1.75))
    hard = pool.annotate(table, soft=False, client=judge.client)
    assert set(hard["preference"]) == {1.0, 2.0}
    first = (hard["preference"] == np.where(hard["order"] == "12", 1.0, 2.0)).mean()
    assert abs(first - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 400)
    both = pool.annotate(table.head(5), soft=True, orders="both", client=judge.client)
    assert np.allclose(both["preference"], 1.5) and not both["consistent"].any()


def test_soft_labels_of_a_member_without_probabilities_are_refused(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", member("blunt"))
    with pytest.raises(ConfigError, match="blunt"):
        pool.annotate(pairs(2), soft=True, client=Judge(tmp_path).client)


def test_replicates_are_asked_anew_and_identical_outputs_are_not_asked(tmp_path: Path) -> None:
    table, judge = pairs(4), Judge(tmp_path)
    table.loc[0, "output_2"] = table.loc[0, "output_1"]
    labels = make_pool(tmp_path / "pool", member()).annotate(table, replicates=3, client=judge.client)
    assert judge.calls == 9
    assert labels["preference"][:3].tolist() == [1.5] * 3
    assert labels["cost"][:3].tolist() == [0.0] * 3


def test_members_share_the_work_by_weight(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", member("a", weight=3.0) + member("b") + member("c", weight=0.0))
    labels = pool.annotate(pairs(800), client=Judge(tmp_path).client)
    shares = labels["annotator"].value_counts(normalize=True)
    assert set(shares.index) == {"a", "b"}
    assert abs(shares["a"] - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 800)
    every = pool.annotate(pairs(3), assign="all", client=Judge(tmp_path).client)
    assert every["annotator"].tolist() == ["a", "b", "c"] * 3


def test_noise_first_saves_half_the_calls_and_flips_as_often(tmp_path: Path) -> None:
    n, judge = 3000, Judge(tmp_path)
    table, pool = pairs(n), make_pool(tmp_path / "pool", member())
    labels = pool.annotate(table, flip=0.25, noise_first=True, client=judge.client)
    assert abs(judge.calls / n - 0.5) < 4 * 0.5 / math.sqrt(n)
    wrong = (labels["preference"] != expected(table)).mean()
    assert abs(wrong - 0.25) < 4 * math.sqrt(0.25 * 0.75 / n)
    assert labels["preference_clean"].notna().sum() == judge.calls
    assert labels["preference"].notna().all()
    swapped = table.rename(columns={"output_1": "output_2", "output_2": "output_1"})
    again = pool.annotate(swapped, flip=0.25, noise_first=True, client=judge.client)
    assert (again["preference"] == 3 - labels["preference"]).all()
    with pytest.raises(ConfigError, match=r"0\.5"):
        pool.annotate(table, flip=0.6, noise_first=True)


def test_flips_turn_a_share_of_the_verdicts_and_keep_the_clean_ones(tmp_path: Path) -> None:
    n = 2000
    labels = load_pool("fake-biased").annotate(pairs(n), flip=0.25)
    assert abs(labels["flipped"].mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / n)
    turned = labels["flipped"].astype(bool)
    assert (labels["preference"][turned] == 3 - labels["preference_clean"][turned]).all()
    assert (labels["preference"][~turned] == labels["preference_clean"][~turned]).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.permutations(range(12)), st.integers(0, 11))
def test_draws_depend_on_content_alone(seed: int, order: list[int], dropped: int) -> None:
    """Rows shuffled, one dropped, all swapped: the labels are the same, turned round."""
    table, pool = pairs(12), load_pool("fake-biased")
    labels = pool.annotate(table, seed=seed, flip=0.3).set_index("id")
    rows = [i for i in order if i != dropped]
    swapped = table.iloc[rows].rename(columns={"output_1": "output_2", "output_2": "output_1"})
    again = pool.annotate(swapped, seed=seed, flip=0.3).set_index("id")
    for i in rows:
        assert again.loc[i, "preference"] == 3 - labels.loc[i, "preference"]
        assert again.loc[i, "annotator"] == labels.loc[i, "annotator"]
        assert again.loc[i, "order"] != labels.loc[i, "order"]


def test_planted_position_bias_noise_and_length_taste_are_recovered() -> None:
    """A logistic fit to the labels finds each fake's settings within four standard errors."""
    pool, table = load_pool("fake-biased"), pairs(4000, seed=1)
    labels = pool.annotate(table, assign="all", seed=3)
    planted = {"noisy": (2.0, 0.0, 0.0), "first-taker": (1.0, 1.0, 0.0), "long-lover": (1.0, 0.0, 0.5)}
    for name, (temperature, position, length) in planted.items():
        rows = labels[labels["annotator"] == name]
        sign = np.where(rows["order"] == "12", 1.0, -1.0)
        gap = [
            quality(i, a) - quality(i, b)
            for i, a, b in zip(rows["instruction"], rows["output_1"], rows["output_2"], strict=True)
        ]
        longer = (rows["output_1"].str.len() - rows["output_2"].str.len()) / 100
        x = np.column_stack([sign * gap, np.ones(len(rows)), sign * longer])
        y = (rows["preference"] == np.where(rows["order"] == "12", 1.0, 2.0)).to_numpy(float)
        estimate, error = logistic_fit(x, y)
        truth = np.array([1.0, position, length]) / temperature
        assert (np.abs(estimate - truth) < 4 * error).all(), (name, estimate, truth, error)
    oracle = labels[labels["annotator"] == "oracle"]
    assert set(oracle["preference"]) <= {1.0, 1.5, 2.0}


def logistic_fit(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maximum likelihood by Newton's method; estimates and standard errors."""
    beta = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ beta))
        information = (x * (p * (1 - p))[:, None]).T @ x
        beta += np.linalg.solve(information, x.T @ (y - p))
    return beta, np.sqrt(np.diag(np.linalg.inv(information)))


def test_verdicts_already_given_are_flipped_as_if_asked_with_noise() -> None:
    pool = load_pool("fake-biased")
    clean = pool.annotate(pairs(50), seed=3, replicates=2, orders="both")
    noisy = pool.annotate(pairs(50), seed=3, replicates=2, orders="both", flip=0.25)
    pd.testing.assert_frame_equal(flip_labels(clean, flip=0.25, seed=3), noisy)
    lost = clean.assign(preference_clean=None)
    assert flip_labels(lost, flip=0.25, seed=3)["preference"].isna().all()


def test_the_flip_rate_is_recovered() -> None:
    table = pairs(4000, seed=2)
    labels = load_pool("fake-biased").annotate(table, assign="all", flip=0.25, seed=5)
    oracle = labels[(labels["annotator"] == "oracle") & (labels["preference_clean"] != 1.5)]
    rate, n = (oracle["preference"] != oracle["preference_clean"]).mean(), len(oracle)
    assert abs(rate - 0.25) < 1.96 * 1.5 * math.sqrt(0.25 * 0.75 / n)


def test_groups_never_show_one_comparison_twice_in_a_prompt() -> None:
    items = [Comparison(f"i{k}", "a", "b") for k in range(7)]
    shown = [Presentation(item, order, r, 0) for item in items for order in ("12", "21") for r in (0, 1)]  # type: ignore[arg-type]
    found = list(groups(shown, 3))
    assert sorted(i for group in found for i in group) == list(range(28))
    for group in found:
        assert len({shown[i].comparison.key for i in group}) == len(group)
        assert len({shown[i].replicate for i in group}) == 1


def test_roles_are_mapped_in_one_place(tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    make_pool(folder, member("a") + member("b"))
    pool = load_pool(folder, models={"judge": "vllm/Qwen/Qwen3.5-9B"}, base_url="http://127.0.0.1:8000/v1")
    for annotator in pool.annotators.values():
        assert isinstance(annotator, PromptedAnnotator)
        assert annotator.endpoint.model == "vllm/Qwen/Qwen3.5-9B"
        assert annotator.endpoint.base_url == "http://127.0.0.1:8000/v1"
    other_port = load_pool(folder, models={"judge": "vllm/Qwen/Qwen3.5-9B"}, base_url="http://127.0.0.1:8001/v1")
    assert other_port.content_hash == pool.content_hash
    played = load_pool(folder, models={"judge": "fake/oracle"})
    assert played.offline and played.annotate(pairs(5))["preference"].notna().all()
    with pytest.raises(ConfigError, match=r"no role 'jugde'\. Did you mean 'judge'"):
        load_pool(folder, models={"jugde": "openai/m"})
    with pytest.raises(ConfigError, match="provider/model"):
        load_pool(folder, models={"judge": "gpt-5"})
    with pytest.raises(ConfigError, match="fake/orakel"):
        load_pool(folder, models={"judge": "fake/orakel"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": member(parser='{kind="regex"}')}, "regex"),
        ({"members": member(parser='{kind="choice", frist="A"}')}, "Did you mean 'first'"),
        ({"members": member(tempreature=1)}, "Did you mean 'temperature'"),
        ({"members": member(parser='{kind="choice", first="x", second="X"}')}, "different"),
        ({"members": member(parser='{kind="logprobs"}', comparisons_per_prompt=2)}, "must be 1"),
        ({"members": member().replace('"judge"', '"jugde"')}, "Did you mean 'judge'"),
        ({"members": member().replace("p.txt", "q.txt")}, "q.txt"),
        ({"members": member(), "prompt": "{output_1} {persona}"}, "{output_2} is missing"),
        ({"members": member(), "prompt": "{output_1} {output_2}"}, "fills {persona}"),
        ({"members": member(comparisons_per_prompt=2), "prompt": "{output_1}{output_2}{persona}"}, "{#each}"),
        ({"members": member() + member()}, "twice"),
        ({"members": member(weight=0)}, "weight"),
    ],
)
def test_a_wrong_pool_is_explained(tmp_path: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_pool(tmp_path / "pool", **change)
    assert message in str(caught.value)


def test_wrong_tables_and_options_are_refused(tmp_path: Path) -> None:
    pool = load_pool("fake-biased")
    with pytest.raises(DataError, match="output_2"):
        pool.annotate(pairs(2).drop(columns="output_2"))
    with pytest.raises(DataError):
        pool.annotate(pairs(2).head(0))
    for options in ({"flip": 1.5}, {"replicates": 0}, {"orders": "12"}, {"assign": "best"}):
        with pytest.raises(ConfigError):
            pool.annotate(pairs(2), **options)  # type: ignore[arg-type]


def test_the_hash_names_the_content(tmp_path: Path) -> None:
    one = make_pool(tmp_path / "a", member())
    assert one.content_hash == make_pool(tmp_path / "b", member()).content_hash
    labels = one.annotate(pairs(1), client=Judge(tmp_path).client)
    assert labels["pool"][0] == f"t@{one.content_hash[:12]}"


def test_presentations_are_values() -> None:
    shown = Presentation(Comparison("i", "a", "b"), "12", 0, 0)
    assert dataclasses.replace(shown) == shown and hash(dataclasses.replace(shown)) == hash(shown)
