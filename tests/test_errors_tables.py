from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simfarm import tables
from simfarm.errors import DataError, MissingExtraError, SimfarmError, UnknownNameError, require, suggest

HOSTILE = ["plain", "", "line\nbreak", 'quote " comma ,', "\u2028 ‏rtl مرحبا", "NA", "<script>"]


def test_errors_survive_pickling_and_name_the_nearest() -> None:
    error = UnknownNameError("pool", "embeded", ["embedded", "fake-biased"], "Give a folder.")
    assert "Did you mean 'embedded'?" in str(error) and str(error).endswith("Give a folder.")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert isinstance(error, SimfarmError) and isinstance(error, LookupError)


@pytest.mark.parametrize(
    ("given", "nearest"), [("lrr", "learning_rate"), ("lr", "learning_rate"), ("step", "steps"), ("zzz", "")]
)
def test_suggestions(given: str, nearest: str) -> None:
    assert suggest(given, ["learning_rate", "steps", "clip"]) == (f" Did you mean {nearest!r}?" if nearest else "")


def test_a_missing_extra_names_the_command() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'simfarm\[local\]'"):
        require("no_such_module_here", "local", "A test")


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_tables_come_back_as_they_went(tmp_path, suffix: str) -> None:
    texts = HOSTILE
    table = pd.DataFrame({"instruction": texts, "n": range(len(texts)), "x": [np.nan, *np.arange(1.0, len(texts))]})
    back = tables.read_table(tables.write_table(table, tmp_path / f"t{suffix}"))
    assert list(back["instruction"]) == texts
    assert back["n"].tolist() == list(range(len(texts)))
    assert back["x"].isna().tolist() == [True] + [False] * (len(texts) - 1)
    assert [p.name for p in tmp_path.iterdir()] == [f"t{suffix}"]


def test_half_a_surrogate_pair_becomes_the_replacement_character(tmp_path) -> None:
    lines = ['{"instruction": "a \\ud83d b", "n": 1}', '{"instruction": "\\ud83d\\ude00", "n": 2}']
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    back = tables.read_table(tmp_path / "t.jsonl")
    assert list(back["instruction"]) == ["a \ufffd b", "\U0001f600"]
    assert list(back["n"]) == [1, 2]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_half_a_surrogate_pair_is_written_as_the_replacement_character(tmp_path, suffix: str) -> None:
    texts = pd.Series(["a \ud83d b", "\ud83d\ude00", "plain", None], dtype=object)
    back = tables.read_table(
        tables.write_table(pd.DataFrame({"output": texts, "n": range(4)}), tmp_path / f"t{suffix}")
    )
    assert list(back["output"][:3]) == ["a \ufffd b", "\U0001f600", "plain"]
    assert back["output"].isna().tolist() == [False, False, False, True]
    assert texts[0] == "a \ud83d b"


def test_broken_texts_inside_lists_and_mixed_columns_are_read_and_written(tmp_path) -> None:
    (tmp_path / "t.json").write_text('[{"o": [{"text": "\\ud83d"}], "m": 1}, {"o": [], "m": "\\ude00"}]')
    back = tables.read_table(tmp_path / "t.json")
    assert back["o"][0] == [{"text": "\ufffd"}] and list(back["m"]) == [1, "\ufffd"]
    nested = pd.DataFrame({"o": pd.Series([["\ud83d"], []], dtype=object)})
    assert list(tables.read_table(tables.write_table(nested, tmp_path / "n.parquet"))["o"][0]) == ["\ufffd"]


@given(st.text(st.characters(codec=None)))
def test_well_formed_changes_broken_texts_only(text: str) -> None:
    mended = tables.well_formed(text)
    mended.encode("utf-8")
    assert tables.well_formed(mended) == mended
    if not any("\ud800" <= letter <= "\udfff" for letter in text):
        assert mended == text


def test_csv_keeps_the_text_NA(tmp_path) -> None:
    back = tables.read_table(tables.write_table(pd.DataFrame({"instruction": ["NA", "null"]}), tmp_path / "t.csv"))
    assert list(back["instruction"]) == ["NA", "null"]


def test_texts_that_look_like_numbers_stay_texts_in_csv(tmp_path) -> None:
    table = pd.DataFrame(
        {
            "instruction": ["6 x 7?"], "output_1": ["42"], "output_2": ["042"], "preference": [1.0], "order": ["21"],
            "generator_1": ["1"], "generator_2": ["2"],
        }
    )  # fmt: skip
    back = tables.check_labels(tables.read_table(tables.write_table(table, tmp_path / "t.csv")))
    assert back[list(table)].equals(table)


def test_an_empty_output_survives_csv(tmp_path) -> None:
    back = tables.read_table(tables.write_table(labels(output_2=[""]), tmp_path / "t.csv"))
    assert list(tables.check_labels(back)["output_2"]) == [""]


def test_what_parquet_holds_can_be_written_as_json(tmp_path) -> None:
    table = pd.DataFrame({"n": [[1, 2]], "o": [{"k": [1.5, None]}], "at": [pd.Timestamp("2024-01-02")]})
    held = tables.read_table(tables.write_table(table, tmp_path / "t.parquet"))
    back = tables.read_table(tables.write_table(held, tmp_path / "t.jsonl")).iloc[0]
    assert back["n"] == [1, 2] and back["o"] == {"k": [1.5, None]} and back["at"] == "2024-01-02T00:00:00"


@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "t.csv"])
def test_a_byte_order_mark_is_no_text(tmp_path, name: str) -> None:
    content = {"t.json": '[{"a": 1}]', "t.jsonl": '{"a": 1}', "t.csv": "a\n1\n"}[name]
    (tmp_path / name).write_text(content, "utf-8-sig")
    assert tables.read_table(tmp_path / name).to_dict("list") == {"a": [1]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"instruction": 1}', "list of objects"),
        ("a.jsonl", '{"a": 1}\n{oops\n', "line 2"),
        ("a.txt", "", "ends in '.txt'"),
        ("a.parquet", "not parquet", "cannot be read as PARQUET"),
    ],
)
def test_broken_files_say_what_is_wrong(tmp_path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        tables.read_table(tmp_path / name)


def test_a_missing_file_names_its_neighbour(tmp_path) -> None:
    (tmp_path / "labels.jsonl").write_text("")
    with pytest.raises(DataError, match=r"Did you mean 'labels\.jsonl'"):
        tables.read_table(tmp_path / "label.jsonl")


def labels(**columns: object) -> pd.DataFrame:
    return pd.DataFrame({"instruction": ["q"], "output_1": ["a"], "output_2": ["b"], "preference": [1.0], **columns})


@pytest.mark.parametrize("value", [3, 0.5, "one", float("inf")])
def test_a_preference_outside_1_to_2_is_refused(value: object) -> None:
    with pytest.raises(DataError, match=r"row 0.*number from 1"):
        tables.check_labels(labels(preference=[value]))


def test_a_missing_preference_is_allowed_and_a_missing_column_is_not() -> None:
    assert tables.check_labels(labels(preference=[None]))["preference"].isna().all()
    with pytest.raises(DataError, match="Did you mean 'prefrence'"):
        tables.check_labels(labels().rename(columns={"preference": "prefrence"}))


def test_texts_must_be_texts() -> None:
    with pytest.raises(DataError, match="row 0: output_1 is True"):
        tables.comparisons(labels(output_1=[True]))


@given(st.permutations(range(6)))
def test_head_to_head_pairs_by_instruction_not_by_row(order: list[int]) -> None:
    def outputs(who: str, rows: list[int]) -> pd.DataFrame:
        return pd.DataFrame(
            {"instruction": [f"q{i}" for i in rows], "output": [f"{who}{i}" for i in rows], "generator": who}
        )

    pairs = tables.head_to_head(outputs("m", list(range(6))), outputs("b", list(order)))
    assert list(pairs["output_1"]) == [f"b{i}" for i in range(6)]
    assert list(pairs["output_2"]) == [f"m{i}" for i in range(6)]


def test_head_to_head_refuses_other_instructions() -> None:
    one = pd.DataFrame({"instruction": ["q"], "output": ["a"], "generator": ["m"]})
    with pytest.raises(DataError, match="1 of 2 instructions"):
        tables.head_to_head(one, pd.DataFrame({"instruction": ["q", "r"], "output": ["a", "b"], "generator": "base"}))


def test_head_to_head_refuses_two_generators_as_one() -> None:
    one = pd.DataFrame({"instruction": ["q"], "output": ["a"], "generator": ["m"]})
    two = pd.DataFrame({"instruction": ["q", "q"], "output": ["a", "b"], "generator": ["x", "y"]})
    with pytest.raises(DataError, match="table of the baseline has more than one row"):
        tables.head_to_head(one, two)


@pytest.mark.parametrize(("column", "message"), [("output", "an empty cell of CSV"), ("generator", "1 of 2 rows")])
def test_rows_without_an_output_or_a_generator_are_not_lost_in_silence(tmp_path, column: str, message: str) -> None:
    table = pd.DataFrame({"instruction": ["q", "r"], "output": ["a", "b"], "generator": ["m", "m"]})
    table.loc[1, column] = None
    with pytest.raises(DataError, match=f"row 1: {column} is missing.*{message}"):
        tables.read_outputs(tables.write_table(table, tmp_path / "o.csv"))


def test_two_outputs_of_one_generator_are_refused(tmp_path) -> None:
    (tmp_path / "o.json").write_text('[{"instruction":"q","output":"a"},{"instruction":"q","output":"b"}]')
    with pytest.raises(DataError, match="more than one output"):
        tables.read_outputs(tmp_path / "o.json")
