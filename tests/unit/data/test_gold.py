"""What the value of an answer column means: numbers in plain digits, placeholders, what is left out and why."""

import datetime
import json
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siri.data.gold import LOST, MISSING, NOT_FINITE, PLACEHOLDER, NoAnswer, gold_answer
from siri.data.problems import load_problems
from siri.errors import InputError


def answers_of(path) -> list[str]:
    return [problem.answer for problem in load_problems(path).problems]


def parquet(tmp_path, column, name="answer"):
    path = tmp_path / "set.parquet"
    pq.write_table(pa.table({"problem": [f"Q{i}" for i in range(len(column))], name: column}), path)
    return path


# ---------------------------------------------------------------- numbers

NUMBERS = [
    ("0.00002", "0.00002"),
    ("2e-05", "0.00002"),
    ("-1.5E-7", "-0.00000015"),
    ("1e22", "10000000000000000000000"),
    ("1E+22", "10000000000000000000000"),
    ("5.0", "5"),
    ("-0.0", "0"),
    ("0.50", "0.5"),
    ("100.0", "100"),
    ("0.14285714285714285", "0.14285714285714285"),
    ("9007199254740993", "9007199254740993"),
    ("123456789012345678901234567890", "123456789012345678901234567890"),
    ("12345678901234567890.0", "12345678901234567890"),
    ("3.14159265358979323846", "3.14159265358979323846"),
    ("0.10000000000000001", "0.1"),
    ("0.1000000000000000055511151231257827", "0.1"),
    ("4.9999999999999996", "5"),
    ("1.2345678901234567e-320", f"0.{319 * '0'}12345678901234567"),
    ("true", "True"),
]


@pytest.mark.parametrize(("literal", "answer"), NUMBERS)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_numbers_of_json_keep_their_digits_and_are_written_plainly(tmp_path, literal, answer, suffix):
    row = f'{{"problem": "Q", "answer": {literal}}}'
    path = tmp_path / f"set.{suffix}"
    path.write_text(f"[{row}]" if suffix == "json" else row)
    assert answers_of(path) == [answer]


@pytest.mark.parametrize(
    ("column", "answers"),
    [
        (pa.array([0.00002, 1e22, 5.0, 1 / 7, None]), ["0.00002", "1" + 22 * "0", "5", "0.14285714285714285"]),
        (pa.array([0.1, 5.0, 16777216.0], pa.float32()), ["0.1", "5", None]),
        (pa.array([0.1, 2.0, 2047.0], pa.float16()), ["0.1", "2", "2047"]),
        (pa.array([2**63 - 1, None]), [str(2**63 - 1)]),
        (pa.array([2**64 - 1], pa.uint64()), [str(2**64 - 1)]),
        (pa.array([Decimal("5.00"), Decimal("2.50"), None, Decimal("-0.00")], pa.decimal128(10, 2)), ["5", "2.5", "0"]),
        (pa.array([Decimal("123456789012345678901234567890.5")], pa.decimal256(60, 4)), [f"{'1234567890' * 3}.5"]),
        (pa.array(["5", None], pa.large_utf8()), ["5"]),
        (pa.array(["5", None], pa.string_view()), ["5"]),
        (pa.array(["5", "6", "5", None]).dictionary_encode(), ["5", "6", "5"]),
        (pa.array([5, 6, None]).dictionary_encode(), ["5", "6"]),
        (pa.array([True, False, None]), ["True", "False"]),
        (pa.array([b"5", "é".encode(), None]), ["5", "é"]),
        (pa.array([["1/2", "0.5"], ["7"], [], None]), ['["1/2", "0.5"]', "7"]),
        (pa.array([[Decimal("1.50")], [None]], pa.list_(pa.decimal128(10, 2))), ["1.5"]),
        (pa.array([["7", "8"], None], pa.list_(pa.string(), 2)), ['["7", "8"]']),
    ],
)
def test_arrow_types_are_read_as_meant(tmp_path, column, answers):
    path = parquet(tmp_path, column)
    try:
        pq.read_table(path)
    except pa.ArrowInvalid:  # lists of a fixed size with a null among them, before pyarrow 26
        with pytest.raises(InputError, match=r"unreadable parquet"):
            answers_of(path)
        return
    assert answers_of(path) == [answer for answer in answers if answer is not None]


@pytest.mark.parametrize(
    ("column", "named"),
    [
        (pa.array([datetime.date(2020, 3, 4)]), "date32"),
        (pa.array([datetime.datetime(2020, 3, 4)]), "timestamp"),
        (pa.array([datetime.time(3, 4)]), "time64"),
        (pa.array([datetime.timedelta(3)]), "duration"),
        (pa.array([[("a", "b")]], pa.map_(pa.string(), pa.string())), "map"),
        (pa.array([[{"a": 1}]]), "dict"),
        (pa.array([b"\xff\xfe"]), "binary"),
        (pa.array([b"abcd"], pa.binary(4)), "fixed_size_binary"),
    ],
)
def test_other_arrow_types_are_refused_by_column_and_type(tmp_path, column, named):
    with pytest.raises(InputError, match=rf"set\.parquet: row 0: .*{named}.*column 'answer'"):
        load_problems(parquet(tmp_path, column))


def test_columns_that_are_not_needed_are_not_read(tmp_path):
    path = tmp_path / "set.parquet"
    table = {"problem": ["Q"], "answer": ["7"], "image": [b"\xff"], "when": [datetime.datetime(2020, 1, 1)]}
    pq.write_table(pa.table(table), path)
    assert answers_of(path) == ["7"]


def test_nested_columns_keep_their_nulls(tmp_path):
    gold = [{"ground_truth": "4", "style": "rule"}, None, {"ground_truth": None, "style": "r"}, {"ground_truth": "5"}]
    path = tmp_path / "set.parquet"
    pq.write_table(pa.table({"prompt": list("abcd"), "reward_model": gold}), path)
    assert [(problem.prompt, problem.answer) for problem in load_problems(path).problems] == [("a", "4"), ("d", "5")]


def test_a_float_of_32_bits_is_what_it_stood_for():
    assert json.loads(gold_answer(np.float32(1 / 7))) == ["0.14285715", "0.142857", "1/7"]
    assert gold_answer(np.float32(0.1)) == "0.1"
    assert gold_answer(np.array([2.5], np.float32)) == "2.5" and gold_answer(np.float16(0.1)) == "0.1"
    with pytest.raises(TypeError, match="datetime64"):
        gold_answer(np.datetime64("2020-03-04", "ns"))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (float("nan"), MISSING),
        (Decimal("NaN"), MISSING),
        (float("inf"), NOT_FINITE),
        (float("-inf"), NOT_FINITE),
        (2.0**60, LOST),
        (Decimal("1.152921504606847E+18"), LOST),
        (np.float32(123456789), LOST),
        (np.float16(2049), LOST),
        (np.float16(3000), LOST),
        ([None, float("inf")], NOT_FINITE),
    ],
)
def test_numbers_that_are_no_answers(value, why):
    with pytest.raises(NoAnswer) as caught:
        gold_answer(value)
    assert caught.value.why == why


@pytest.mark.parametrize("number", ["1e999999999", "1e9999999999999999999999", "-1.5e-9999999999999999999999"])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_number_of_endless_digits_is_refused(tmp_path, number, suffix):
    path = tmp_path / f"set.{suffix}"
    row = f'{{"problem": "Q", "answer": {number}}}'
    path.write_text(f"[{row}]" if suffix == "json" else row)
    with pytest.raises(InputError, match="a number of more than 4000 digits"):
        load_problems(path)


# ---------------------------------------------------------------- placeholders

PLACEHOLDERS = ["proof", "Proof.", "notfound", "Not Found", "not_found", "none", "None", "NaN", "nan", "n/a", "N/A"]
PLACEHOLDERS += ["null", "NULL", "<NA>", "#N/A", "unknown", "-", "--", "\u2014", "?", "???", "...", "[]", "no answer"]
PLACEHOLDERS += ["$-$", "$?$", "N\\A", "NaN%", "error", "Pending", "Answer:", "Solution below", "Answer: N/A"]
PLACEHOLDERS += ["The answer is not provided", "The final answer is missing.", "See answer"]
PLACEHOLDERS += ["\\text{proof}", "\\boxed{notfound}", "$\\text{N/A}$", "**proof**", "[none]", "See solution", "NA"]
PLACEHOLDERS += [
    "#NAME?",
    "#NUM!",
    "#NULL!",
    "#SPILL!",
    "#CALC!",
    "#GETTING_DATA",
    "\u7565\u3002",
    "\u7b54\u6848\u7565",
]
PLACEHOLDERS += ["\u672a\u77e5", "\u6682\u65e0", "answer unknown", "The answer is unknown.", "[deleted]", "[removed]"]
PLACEHOLDERS += ["Not specified", "not stated"]
ANSWERS = [
    "\\text{None}",
    "name",
    "the answer is unknown only if n = 2",
    "removed 3",
    "5!",
    "Na",
    "undefined",
    "no solution",
    "\\infty",
    "\\emptyset",
    "\\{\\}",
    "0",
    "A",
    "-5",
    "None of",
]
ANSWERS += ["DNE", "empty set", "proof by induction", "\\text{unknown angle}", "False", "x - ?"]


@pytest.mark.parametrize("text", PLACEHOLDERS)
def test_placeholders_are_no_answers(text):
    for value in (text, f"  {text}\n", [text], [None, text], f"the solution #### {text}"):
        with pytest.raises(NoAnswer) as caught:
            gold_answer(value)
        assert caught.value.why == PLACEHOLDER
    assert gold_answer([text, "7"]) == "7"


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_that_look_like_placeholders_are_kept(text):
    assert gold_answer(text) == text


def test_what_is_left_out_is_counted_by_reason(tmp_path):
    values = ["7", "proof", "proof", "n/a", None, float("nan"), float("inf"), 2.0**60, ""]
    path = tmp_path / "set.json"
    path.write_text(json.dumps([{"problem": "Q", "answer": value} for value in values]))
    problem_set = load_problems(path)
    assert len(problem_set.problems) == 1 and problem_set.dropped == 8
    assert problem_set.left_out == {f"{PLACEHOLDER} (proof 2, n/a 1)": 3, MISSING: 3, NOT_FINITE: 1, LOST: 1}


def test_a_set_of_placeholders_is_empty_and_says_why(tmp_path):
    path = tmp_path / "set.json"
    path.write_text(json.dumps([{"problem": "Q", "answer": "proof"}] * 3))
    with pytest.raises(InputError, match=r"empty: none of 3 rows .*; 3 with a placeholder for an answer \(proof 3\)"):
        load_problems(path)


@pytest.mark.parametrize(
    "text", ["Not given", "no answer provided", "see above.", "#DIV/0!", "略", "无答案", "To be proved"]
)
def test_further_placeholders(text):
    with pytest.raises(NoAnswer):
        gold_answer(text)


@pytest.mark.parametrize("text", ["$$", "$ $", "\\boxed{}", "\\(\\)", "\\text{ }", "$\\boxed{ }$"])
def test_decoration_of_nothing_is_no_answer(text):
    """No response could give it."""
    with pytest.raises(NoAnswer) as left_out:
        gold_answer(text)
    assert left_out.value.why == PLACEHOLDER


@pytest.mark.parametrize("text", ["{}", "\\{\\}", "$\\{\\}$", "\\emptyset", "\\boxed{\\{\\}}", "()"])
def test_the_empty_set_is_an_answer(text):
    assert gold_answer(text) == text
