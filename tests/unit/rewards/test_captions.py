"""What belongs to a box and stands before it, and values under names in ratios and sets."""

import time

import pytest

from siri.rewards import math_reward
from siri.rewards.answers import same_answer
from siri.rewards.grading.captions import captioned
from siri.rewards.grading.ratios import same_named_sets, same_ratio


@pytest.mark.parametrize(
    ("gaps", "contents"),
    [
        (["$a=$", "$, $b=$"], ["a=7", "b=2"]),
        (["so b is ", " and a is "], ["b=7", "a=2"]),
        (["(2) ", " (1) "], ["(1) 2", "(2) 7"]),
        (["Part B: $x=", "$ Part A: $y="], ["(1) y=2", "(2) x=7"]),
        (["$a+b=$", "$, $b=$"], ["7", "b=2"]),
        (["First root: ", " Second root: "], ["7", "2"]),
        (["1. ", " 2. "], ["7", "2"]),
    ],
)
def test_names_and_numbers_of_parts(gaps, contents):
    assert captioned(["7", "2"], gaps, "") == contents


def test_parts_behind_their_boxes():
    assert captioned(["7", "2"], ["", " for part (1) and "], " for part (2)") == ["(1) 7", "(2) 2"]


def test_ratios_and_sets_by_name():
    assert same_ratio(["a:b:c", "1:2:3"], ["c:b:a", "3:2:1"], same_answer)
    assert same_ratio(["a:b:c", "1:2:3"], ["a:c:b", "1:2:3"], same_answer) is False
    assert same_ratio(["x", "1:2:3"], ["x", "1:2:3"], same_answer) is None
    assert same_named_sets("A=(0,1),B=(2,3)", r"B=(2,3)\text{ and }A=(0,1)", same_answer)
    assert same_named_sets("A=(0,1),B=(2,3)", r"A=(2,3)\text{ and }B=(0,1)", same_answer) is False
    assert same_named_sets("x=1,y=2", "y=2,x=1", same_answer) is None


@pytest.mark.parametrize(
    "answer",
    [
        "8" + " " * 4000 + "4",
        "8" + "\n " * 2000 + "4",
        "{x|" + "{" * 4000,
        r"\sin A:\sin B:\sin C=5:4:3",
        "yes, " + "it's " * 1500,
    ],
)
def test_hostile_answers_end_soon(answer):
    start = time.monotonic()
    for gold in ("8", r"\sin C:\sin B:\sin A=5:4:3", r"\text{Yes}"):
        assert not same_answer(gold, answer)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("piece", ["b=", "$", " ", "(1) ", "and ", "m+n=", "is it "])
def test_hostile_words_before_boxes_end_soon(piece):
    start = time.monotonic()
    assert not math_reward(piece * (100_000 // len(piece)) + r"\boxed{2}, $a=\boxed{3}$", "a=2, b=3", think=False)
    assert time.monotonic() - start < 5
