"""Columns of the data that a reward function asks for by name."""

import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siri import cli
from siri.data.columns import Gold, Wanted, plain_value
from siri.data.content import digests
from siri.data.prompts import load_prompts
from siri.errors import InputError
from siri.rewards.pool import RewardPool, wanted_columns
from siri.rewards.worker import parameters
from tests.support.tiny import word_tokenizer

MODULE = """
def graded(response, answer, difficulty, *, tags=(), unused=5):
    return difficulty / 10 + len(tags) + (unused == 5)

def plain(response, answer):
    return 1.0

def anything(*args, **more):
    return float(len(more))
"""
ROWS = [
    {"problem": "w3", "answer": "7", "difficulty": 2, "tags": ["a", "b"]},
    {"problem": "w4", "answer": "8", "difficulty": 0.5, "tags": []},
    {"problem": "w4", "answer": "8", "difficulty": 0.75, "tags": None},
]


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "my_columns.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)


def prompts(path: Path, wanted: Wanted):
    settings = SimpleNamespace(
        reward="my:own", prompt_key="", answer_key="", template="plain", instruction="", max_prompt_tokens=9,
        template_variables=dict,
    )  # fmt: skip
    return load_prompts(path, word_tokenizer(), settings, wanted=wanted)


def write(path: Path, rows) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_function_says_what_it_asks_for():
    assert wanted_columns("my_columns:graded") == Wanted(("difficulty",), ("tags", "unused"))
    assert wanted_columns("my_columns:plain") == wanted_columns("my_columns:anything") == Wanted()
    assert wanted_columns("math") == wanted_columns("exact") == Wanted()
    assert parameters(float) == [[], []]
    assert parameters(lambda response, answer, /, level=1, **more: 1.0) == [[], ["level"]]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_the_columns_reach_the_function(tmp_path, name):
    rows = ROWS[:2] if name.endswith("parquet") else [ROWS[0], {**ROWS[1], "tags": []}]
    wanted = wanted_columns("my_columns:graded")
    read = prompts(write(tmp_path / name, rows), wanted)
    with RewardPool("my_columns:graded", workers=1) as pool:
        pool.try_gold(read.answers)
        graded = pool.score(["x", "y"], read.answers)
    assert graded.rewards == [0.2 + 2 + 1, 0.05 + 0 + 1] and not graded.errors
    assert read.answers == ["7", "8"] and isinstance(read.answers[0], Gold)


def test_problems_that_differ_in_a_column_are_no_duplicates(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS[1:])
    with_columns, without = prompts(path, Wanted(("difficulty",))), prompts(path, Wanted())
    assert with_columns.told == () and without.told == ("1 of 2 problems repeat another",)
    assert len(set(digests(with_columns))) == 2 and len(set(digests(without))) == 1


def test_a_column_that_is_missing_is_named_before_anything_is_written(tmp_path, capsys):
    first = write(tmp_path / "one.jsonl", ROWS[:1])
    second = write(tmp_path / "two.jsonl", [{"problem": "w4", "answer": "8", "level": 3}])
    command = ["train", "demo", "--reward", "my_columns:graded", "--data", str(first), str(second), "--run-dir", "run"]
    assert cli.main(command) == 2
    line = capsys.readouterr().err
    assert f"{second}: no column 'difficulty', which the reward function asks for; columns found: answer, level" in line
    assert line.count("\n") == 1 and not Path("run").exists()


def test_values_that_cannot_be_handed_on(tmp_path):
    import datetime

    table = {"problem": ["w3"], "answer": ["7"], "difficulty": [datetime.date(2026, 1, 1)]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"row 0: the value is of type date32.* \(column 'difficulty'\)"):
        prompts(tmp_path / "a.parquet", Wanted(("difficulty",)))


def test_values_become_json():
    from decimal import Decimal

    import numpy as np

    value = {"a": [Decimal("1.50"), Decimal(3), np.float32(0.5)], "b": None, "c": True}
    assert plain_value(value) == {"a": [1.5, 3, 0.5], "b": None, "c": True}
    with pytest.raises(TypeError, match="of type set"):
        plain_value({1, 2})
