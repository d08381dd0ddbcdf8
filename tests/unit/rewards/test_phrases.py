"""Propositions, quantified statements, phrases, parts and lengths: how each is read, and what is none."""

import time

import pytest

from siri.rewards.answers import same_answer
from siri.rewards.grading.compounds import same_compound
from siri.rewards.grading.lengths import feet_and_inches, has_needless_sign
from siri.rewards.grading.logic import Quantified, proposition, quantified, with_quantifiers
from siri.rewards.grading.parts import in_parts, numbered
from siri.rewards.grading.phrases import phrase, same_hour


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        (r"p\land q", ("and", ("p",), ("q",))),
        (r"(\neg p)\vee q_1", ("or", ("not", ("p",)), ("q_1",))),
        (r"\lnot(p\wedge q)", ("not", ("and", ("p",), ("q",)))),
        (r"(p\land q)\land r", ("and", ("p",), ("q",), ("r",))),
        (r"p\to q", ("to", ("p",), ("q",))),
        (r"p\land q\lor r", None),
        (r"p\to q\to r", None),
        (r"pq\land r", None),
        ("(p", None),
        ("p", None),
        (r"p\land", None),
        ("(" * 50 + r"\neg p" + ")" * 50, None),
    ],
)
def test_propositions(text, tree):
    assert proposition(text) == tree


def test_the_order_of_what_is_joined_matters_only_in_propositions():
    assert same_answer(r"p\land q", r"q\wedge p")
    assert not same_answer(r"a\land b", r"b\wedge a")  # a product of vectors turns its sign
    assert not same_answer(r"p\to q", r"q\to p")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (r"\exists x\in (0,1), x^2<x", Quantified("exists", "x", r"\in (0,1)", "x^2<x")),
        (r"\forall x_0>0: x_0=1", Quantified("forall", "x_0", ">0", "x_0=1")),
        (r"(\exists x>0), x<1", Quantified("exists", "x", ">0", "x<1")),
        (r"\exists x\in R\text{ such that }x<1", Quantified("exists", "x", r"\in R", "x<1")),
        (r"\exists x\in R", None),
        (r"\exists! x\in R, x<1", None),
        (r"\nexists x\in R, x<1", None),
        ("x<1", None),
    ],
)
def test_quantified(text, read):
    assert quantified(text) == read


@pytest.mark.parametrize(
    ("text", "signs"),
    [
        (r"\text{For all } x>0, x^2>0", r"\forall x >0, x^2>0"),
        ("存在x∈R，使得x<1", r"\exists x ∈R, x<1"),  # noqa: RUF001 - as it is written
        ("不存在x∈R，使得x<1", None),  # noqa: RUF001
        (r"\text{for all } x", None),
        ("for all integers x, x > 0", None),
    ],
)
def test_quantifiers_in_words(text, signs):
    assert " ".join(with_quantifiers(text).split()) == (signs or text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (r"\text{The function is odd}", "function odd"),
        (r"\text{odd number}", ""),
        (r"\text{The lines are not parallel}", ""),
        (r"\text{right-angled isosceles triangle}", "triangle isosceles right"),
        (r"\text{isosceles}", "triangle isosceles"),
        (r"\text{right}", ""),
        (r"\text{isosceles trapezoid}", ""),
        ("充分不必要条件", "condition sufficient only"),
        ("必要不充分", "condition necessary only"),
        ("充分条件", ""),
        (r"\text{neither sufficient nor necessary}", "condition neither"),
        (r"\text{It is a Tuesday}", "tue"),
        ("5", ""),
    ],
)
def test_phrases(text, said):
    assert phrase(text) == said


def test_noon_is_twelve_but_not_of_the_night():
    assert same_hour("12:00", "noon") and same_hour("noon", "12 p.m.")
    assert not same_hour("noon", "12:00 a.m.") and not same_hour("12:00", "12:00") and not same_hour("noon", "12")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a) 5; b) 6", ["5", "6"]),
        (r"(1)\ (0,1)\quad(2)\ 4", ["(0,1)", "4"]),
        (r"\text{(i) }3, \text{(ii) }5", ["3", "5"]),
        ("(2) 3; (1) 5", ["5", "3"]),
        ("(2) 3; (3) 5", []),
        ("(1) 3", []),
        ("(1)(2)", []),
        ("(1) 3 + (2) 5", []),
        ("f(1) = 3, f(2) = 5", []),
        ("(A) 3 (B) 5", []),
    ],
)
def test_numbered_parts(text, parts):
    assert numbered(text) == parts


def test_a_list_without_numbers_has_as_many_parts():
    assert in_parts("3 and 5", 2) == ["3", "5"] and in_parts("x=1, y=2; 5", 2) == ["x=1, y=2", "5"]
    assert not in_parts("3,500", 2) and not in_parts("(3, 5)", 2) and not in_parts("3", 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("16''", r"16\text{ inches}"),
        ("16\u2033", r"16\text{ inches}"),
        ("8' 4\"", r"8\text{ feet }4\text{ inches}"),
        (r"5^{\prime}", r"5\text{ feet}"),
        ("f'", "f'"),
        ("4\" 8'", "4\" 8'"),
    ],
)
def test_lengths_by_their_signs(text, words):
    assert feet_and_inches(text) == words


def test_a_sign_of_lengths_answers_only_what_has_one():
    assert has_needless_sign("5", "5'") and not has_needless_sign("5'", "5''")
    assert not has_needless_sign(r"5\text{ feet}", "5'") and not has_needless_sign("5", "5")


@pytest.mark.parametrize(
    "answer",
    [
        "8'" + " " * 380 + "4",
        r"\neg " * 1500,
        "(" * 8000,
        r"\exists x>0, " * 600,
        "(1) " * 2000,
        r"(1)\ 3;" * 1000,
        r"5(\mathrm{~cm}" * 500,
        r"\text{A" + ", " * 3900,
        r"\{x\mid x<\frac{1}{2}\}\cup" * 300,
        "the " * 2000,
        "['" * 4000,
    ],
)
def test_hostile_answers_end_soon(answer):
    start = time.monotonic()
    for gold in ("5", r"\exists x>0, x<1", "(1) 3; (2) 5", r"p\land q", r"\text{odd}"):
        assert not same_answer(gold, answer)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (r"\text{The series converges absolutely}", "converges absolutely"),
        ("divergent", "diverges"),
        ("The sequence is bounded", "quality bounded"),
        ("The sequence is bounded above", ""),
        ("obtuse", "triangle obtuse"),
        ("an obtuse angle", ""),
        ("There are no real roots.", "no real root"),
    ],
)
def test_adjectives_and_convergence(text, said):
    assert phrase(text) == said


def test_formulas_of_chemistry():
    assert same_compound(r"\text{H}_2\text{O}", "H2O") and same_compound(r"\text{Fe}^{3+}", r"\mathrm{Fe^{3+}}")
    assert not same_compound("H_2O", "HO_2") and not same_compound("A_2", "A2") and not same_compound("x_2y", "x2y")
