"""Pairs of gold answer and response with the score that they ought to have, and math-verify's verdict beside ours."""

import json
import re

import pytest

from siri.rewards import math_reward
from tests.field.table import FOLDER, TABLE, cell, pairs, rows

ROWS = rows()
PAIRS = [(row["score"], *pair) for row in ROWS for pair in pairs(row)]
RIGHT, WRONG = 400, 100
REPORTS = [json.loads(line) for line in (FOLDER / "reports.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("score", "gold", "response"), PAIRS)
def test_score(score, gold, response):
    assert math_reward(response, gold, think=False) == score
    assert math_reward(f"<think>\\boxed{{0}}</think>{response}", gold) == score


def test_the_corpus_is_large_enough_and_says_nothing_twice():
    assert len(ROWS) >= RIGHT and sum(not row["score"] for row in ROWS) >= WRONG
    assert len({(gold, response) for _, gold, response in PAIRS}) == len(PAIRS)


def test_the_table_holds_every_pair_and_we_are_nowhere_behind_the_library():
    """Not below it on a right answer, not above it on a wrong one; the table is written by `tests.field.table`."""
    lines = re.findall(r"^\| ([01]) \| ([01]) \| ([01]) \| (``.*``) \| (``.*``) \|$", TABLE.read_text(), re.MULTILINE)
    verdicts = {
        (gold, response): (int(score), int(ours), int(library)) for score, ours, library, gold, response in lines
    }
    assert len(verdicts) == len(PAIRS), "run python -m tests.field.table"
    for score, gold, response in PAIRS:
        expected, ours, library = verdicts[cell(gold), cell(response)]
        assert expected == ours == score, (gold, response)
        assert ours >= library if score else ours <= library


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report["report"])
def test_reports_of_the_field(report):
    """Inputs that users of other graders have reported, and that the README lists."""
    [(gold, response)] = pairs(report)
    assert math_reward(response, gold, think=False) == report["score"]
    assert (
        f"| {report['report']} | {cell(gold)} | {cell(response)} | {report['score']} |"
        in (FOLDER / "README.md").read_text()
    )


def test_twenty_reports():
    assert len({report["report"] for report in REPORTS}) >= 20
