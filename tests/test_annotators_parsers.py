"""Parsers: what is a verdict, what is none, and that none is ever guessed."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simfarm.annotators.parsers import Choice, Json, Logprobs, Ranking, Scores, find_json, ranked_groups
from simfarm.llm.request import Answer, TokenProbability


def answer(text: str, *places: dict[str, float], finish_reason: str = "stop") -> Answer:
    positions = tuple(
        tuple(TokenProbability(token, math.log(p) if p else -9999.0) for token, p in place.items()) for place in places
    )
    return Answer(text, finish_reason, positions, 1, 0, 1, 0.0)


CHOICE, TIES = Choice(), Choice(tie="tie")
VERDICT = Choice(after="Verdict:")
NUMBERS = Choice(first="1", second="2")


@pytest.mark.parametrize(
    ("parser", "text", "expected"),
    [
        (CHOICE, "A", 1.0),
        (CHOICE, " b.\n", 2.0),
        (CHOICE, "[[B]]", 2.0),
        (CHOICE, "**A**", 1.0),
        (CHOICE, "Response B is better.", 2.0),
        (CHOICE, "I choose [[A]] over B", 1.0),
        (CHOICE, "A is good but B is better", None),
        (CHOICE, "Both are good", None),
        (CHOICE, "", None),
        (CHOICE, "About BAD", None),
        (CHOICE, "<think>A? no, [[A]]</think> B", 2.0),
        (TIES, "Tie", 1.5),
        (NUMBERS, "Output (2)", 2.0),
        (NUMBERS, "12", None),
        (VERDICT, "A is shorter, B is longer.\nVerdict: B", 2.0),
        (VERDICT, "Verdict: A would be wrong.\n**verdict:** nothing\nVerdict: B\nBecause A rambles.", 2.0),
        (VERDICT, "A is better", None),
        (VERDICT, "Verdict:", None),
        (Ranking(), "B > A", 2.0),
        (Ranking(), '["A", "B"]', 1.0),
        (Ranking(), "1. B\n2. A", 2.0),
        (Ranking(), "A = B", 1.5),
        (Ranking(), "A > A", None),
        (Ranking(), "B", None),
        (Scores(), "7 9", 2.0),
        (Scores(), "A: 8/10\nB: 6/10", 1.0),
        (Scores(), "Response A gets **7.5**, Response B gets **7.5**", 1.5),
        (Scores(), "A: 11, B: 3", None),
        (Scores(), "7", None),
        (Scores(), "7 8 9", None),
        (Scores(after="Scores:"), "1. Clear 2. Short\nScores: 4 3", 1.0),
        (Json(), '{"better": "B"}', 2.0),
        (Json(), 'Sure:\n```json\n{"reason": "x", "better": "a"}\n```', 1.0),
        (Json(), '{"better": "C"}', None),
        (Json(), '{"best": "A"}', None),
        (Json(), "A", None),
        (Json(), '{"better": ', None),
        (Json(), '[{"better": "A"}, {"better": "B"}]', None),
    ],
)
def test_one_verdict(parser: Choice, text: str, expected: float | None) -> None:
    (parsed,) = parser.parse(answer(text), 1)
    assert parsed.preference == expected
    assert bool(parsed.reason) == (expected is None)


def test_several_verdicts_are_told_apart_by_their_numbers() -> None:
    assert [p.preference for p in CHOICE.parse(answer("3: B\n1: A\n2) [[B]]"), 3)] == [1.0, 2.0, 2.0]
    parsed = CHOICE.parse(answer("1: A\n3: both A and B"), 3)
    assert [p.preference for p in parsed] == [1.0, None, None]
    assert "comparison 2" in parsed[1].reason
    # a number that stands twice decides nothing
    assert [p.preference for p in CHOICE.parse(answer("1: A\n1: B\n2: A"), 2)] == [None, 1.0]
    assert [p.preference for p in Scores().parse(answer("1: 7 9\n2: 9 7"), 2)] == [2.0, 1.0]
    assert [p.preference for p in Ranking().parse(answer("1: A > B\n2: B > A"), 2)] == [1.0, 2.0]


def test_a_json_list_must_have_the_right_length() -> None:
    text = '[{"better": "A"}, {"better": "B"}]'
    assert [p.preference for p in Json().parse(answer(text), 2)] == [1.0, 2.0]
    assert [p.preference for p in Json().parse(answer(f'{{"verdicts": {text}}}'), 2)] == [1.0, 2.0]
    assert [p.preference for p in Json().parse(answer(text), 3)] == [None] * 3


def test_a_cut_off_answer_says_so() -> None:
    (parsed,) = VERDICT.parse(answer("Let me think", finish_reason="length"), 1)
    assert parsed.reason.startswith("cut off")


def test_logprobs_are_a_soft_label() -> None:
    (parsed,) = Logprobs().parse(answer("A", {"A": 0.6, "B": 0.2, " B": 0.1, "C": 0.1}), 1)
    assert parsed.preference == pytest.approx(2 - 0.6 / 0.9)
    (only,) = Logprobs().parse(answer("B", {"B": 0.9}), 1)
    assert only.preference == 2.0
    (late,) = Logprobs(position="last").parse(answer("hm A", {"hm": 1.0}, {"B": 0.25, "A": 0.75}, {".": 1.0}), 1)
    assert late.preference == pytest.approx(1.25)
    (newline,) = Logprobs().parse(answer("\nA", {"\n": 0.9, "B": 0.1}, {"A": 0.8, "B": 0.2}), 1)
    assert newline.preference == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (answer("A"), "no logprobs"),
        (answer("I", {"I": 0.99, "A": 0.001}), "only 0.1%"),
        (answer("I", {"I": 1.0}), "only 0.0%"),
    ],
)
def test_logprobs_without_a_verdict(given: Answer, reason: str) -> None:
    (parsed,) = Logprobs().parse(given, 1)
    assert parsed.preference is None and reason in parsed.reason


PARSERS = [CHOICE, TIES, VERDICT, NUMBERS, Ranking(), Scores(), Json(), Logprobs()]


@settings(deadline=None)  # a busy machine is no failure
@given(st.text() | st.text(alphabet='AB12>=[]{}":,\n betr'), st.sampled_from(PARSERS), st.integers(1, 3))
def test_any_answer_gives_as_many_verdicts_as_asked_and_never_raises(text: str, parser: Choice, count: int) -> None:
    parsed = parser.parse(answer(text), count)
    assert len(parsed) == count
    for preference, reason in parsed:
        assert (preference is None and reason) or (preference is not None and 1 <= preference <= 2 and not reason)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "9" * 10_000, '{"x": ' + "9" * 10_000 + "}"])
def test_hostile_answers_are_read_quickly(text: str) -> None:
    for parser in PARSERS:
        assert parser.parse(answer(text), 1)[0].preference is None
    assert find_json(text) is None


def test_rankings_of_many_symbols() -> None:
    assert ranked_groups("C > A = B", "ABC") == [["C"], ["A", "B"]]
    assert ranked_groups("1. B\n2. C\n3. A", "ABC") == [["B"], ["C"], ["A"]]
    assert ranked_groups("C > A", "ABC") is None
    assert ranked_groups("C > A > B > A", "ABC") is None
    assert ranked_groups("A < B < C", "ABC") is None
