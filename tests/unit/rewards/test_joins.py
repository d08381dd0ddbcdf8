"""What joins the parts of an answer: "or" is the same list as "and" for values and solutions only."""

import pytest

from siri.rewards import math_reward
from siri.rewards.answers import given_answers, same_answer
from siri.rewards.grading.joins import joined_otherwise


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("Alice and Bob", "Alice or Bob"),
        ("x<2, y>3", "x<2 or y>3"),
        (r"3\mid n and 5\mid n", r"3\mid n or 5\mid n"),
        ("AB=AC and AB=BC", "AB=AC or AB=BC"),
        (r"x\in A, x\in B", r"x\in A or x\in B"),
        (r"\alpha>0, \beta>0", r"\alpha>0 \lor \beta>0"),
        ("(1), (3)", "(1) or (3)"),
        ("p, q", "p or q"),
        ("甲, 乙", "甲 or 乙"),
        ("n=1, n is even", "n=1 or n is even"),
    ],
)
def test_or_leaves_a_choice(gold, answer):
    assert joined_otherwise(gold, answer) and joined_otherwise(answer, gold)
    assert not same_answer(gold, answer) and not same_answer(answer, gold)
    assert same_answer(answer, answer + " ") and not joined_otherwise(answer, answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("3, 5", "3 or 5"),
        ("x=2, x=3", "x=2 or x=3"),
        ("x<1, x>3", "x<1 or x>3"),
        ("x=a, x=b", "x=a or x=b"),
        (r"the roots are 2 and \sqrt3", r"the roots are 2 or \sqrt3"),
        (r"x\in(0,1), x\in(2,3)", r"x\in(0,1) or x\in(2,3)"),
    ],
)
def test_solutions_for_one_unknown_are_a_list_by_either(gold, answer):
    assert not joined_otherwise(gold, answer) and not joined_otherwise(answer, gold)


@pytest.mark.parametrize(
    ("response", "join"),
    [
        (r"\boxed{a>0} or \boxed{b<0}", r"\text{ or }"),
        (r"\boxed{a>0} 或 \boxed{b<0}", r"\text{ or }"),
        (r"\boxed{a>0} and \boxed{b<0}", ", "),
        (r"\boxed{a>0}", ", "),
        ("Answer: a>0\nor\nAnswer: b<0", r"\text{ or }"),
        ("Answer: a>0\nAnswer: b<0", ", "),
    ],
)
def test_what_stands_between_boxes_joins_them(response, join):
    assert given_answers(response)[1] == join
    assert math_reward(response, "a>0, b<0", think=False) == (join == ", " and "<" in response)


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("red and blue or green", "green or blue and red", True),
        ("red and blue or green", "red or blue and green", False),
        ("red, blue, or green", "green, blue, or red", True),
        ("x>0 and y>0 or z>0", "x>0 and z>0 or y>0", False),
        ("x=1 and y=2 or x=3 and y=4", "x=3 and y=4 or x=1 and y=2", True),
    ],
)
def test_and_beside_or_joins_the_same_parts(gold, answer, same):
    assert same_answer(gold, answer) == same == same_answer(answer, gold)
