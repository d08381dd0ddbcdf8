"""What the grader is made of: boxes, the grammar, exact comparison, sets of numbers; and that nothing takes long."""

import time

import pytest

from siri.rewards import math_reward
from siri.rewards.answers import doubts, same_answer
from siri.rewards.grading.boxes import final_boxes, last_boxed
from siri.rewards.grading.grammar import MAX_DEPTH, NotRead, read
from siri.rewards.grading.numbers import Undecided
from siri.rewards.grading.sets import NotASet, read_set, same_pieces
from siri.rewards.grading.values import rational, rounds_to, same_value, same_zeros
from tests.support.mutants import BOMBS


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        (r"\boxed{3} and \boxed{4}", ["3", "4"]),
        (r"$x = \boxed{3}$ or $x = \boxed{4}$", ["x=3", "x=4"]),
        (r"$x = \boxed{3}$ or $\boxed{4}$", ["x=3", "4"]),
        (r"\(f(2) = 1 + 2 = \boxed{3}\), and $\angle A$ is \boxed{4}", ["f(2)=3", r"\angle A=4"]),
        (r"(b) \boxed{3}; (a) $b=\boxed{4}$", ["(1) b=4", "(2) 3"]),
        (r"First root: \boxed{3}. Second root: \boxed{4}", ["3", "4"]),
        (r"\boxed{3}, \boxed{4}, \boxed{3}", ["3", "4"]),
        (r"\boxed{3}. No: \boxed{4}", ["4"]),
        (r"\boxed{3}" + " " * 50 + r"\boxed{4}", ["3", "4"]),
        (r"\boxed 12, or \boxed\frac12", ["12", r"\frac12"]),
        (r"\boxed{\boxed{1} and \boxed{2}}", ["1", "2"]),
        ("so\nAnswer: 34\n", ["34"]),
        ("so\n**Final Answer:** $34$", ["$34$"]),
        ("Answer: 34\nso", []),
        ("the Answer: is Answer: 34", ["is Answer: 34"]),
        ("Answer:", []),
        ("it is 34", []),
    ],
)
def test_final_boxes(text, boxes):
    assert final_boxes(text) == boxes


def test_boxes_side_by_side_are_no_second_guess():
    assert math_reward(r"\boxed{3} and \boxed{4}", "4", think=False) == 0.0
    assert math_reward(r"\boxed{4} = \boxed{4.0}", "4", think=False) == 1.0, "each of them is the answer"


@pytest.mark.parametrize("piece", ["\\", "\\\\boxed", "\\boxed ", "\\boxed{", "}{", "\\boxed{1} and "])
def test_boxes_are_found_in_linear_time(piece):
    def seconds(length):
        text = piece * (length // len(piece))
        began = time.thread_time()  # of this thread alone, on whatever machine
        last_boxed(text)
        final_boxes(text)
        return time.thread_time() - began

    seconds(1000)
    assert min(seconds(200_000) for _ in range(2)) < 20 * min(seconds(40_000) for _ in range(3)) + 0.05
    assert seconds(40_000) < 1.0, "40,000 backslashes took 4.4 s"


@pytest.mark.parametrize("text", ["", "1 5", "single", "2 +", "(1", "1)", "5!!", "\\frac{d}{dx}x^2", "1..2", "a;b"])
def test_what_is_no_value_is_not_read(text):
    with pytest.raises(NotRead):
        read(text)


def test_nesting_has_an_end():
    read("(" * (MAX_DEPTH - 1) + "1" + ")" * (MAX_DEPTH - 1))
    for opened in ("(", "{", "\\sqrt{", "\\sin "):
        with pytest.raises(NotRead):
            read(opened * 2000 + "1")


def test_exact_values():
    assert rational(read("2\\frac{1}{3}")) == rational(read("\\frac{7}{3}")) == rational(read("2.\\overline{3}"))
    assert rational(read("\\frac{1}{10^{400}}")).denominator == 10**400
    assert rational(read("9^{9^{9}}")) is None and rational(read("\\sqrt{2}")) is None
    assert rational(read("\\sqrt{\\frac{4}{9}}")) * 3 == 2


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("e^{500}\\cdot e^{500}", "e^{1000}", True),
        ("e^{500}\\cdot e^{500}", "e^{1000}+1", False),
        ("\\sqrt{10^{60}+1}", "10^{30}", False),
        ("\\tan(\\sin(10^{-50}))", "\\sin(\\tan(10^{-50}))", False),
        ("\\sqrt{a^2}", "a", False),
        ("\\sqrt{b^2-4ac}", "\\sqrt{-4ac+b^2}", True),
        ("\\sqrt{x}\\sqrt{y}", "\\sqrt{xy}", False),  # both negative: only the second is real
        ("(x+1)^{50}", "(1+x)^{50}", True),
        ("x^{50}", "x^{51}", False),
        ("\\sin^2 x+\\cos^2 x", "1", True),
        ("f(x+1)", "f(1+x)", True),
        ("f(2x)", "2f(x)", False),
        ("\\frac{1}{0}", "\\frac{2}{0}", False),
    ],
)
def test_same_value(a, b, same):
    assert same_value(read(a), read(b)) is same
    assert same_value(read(b), read(a)) is same


def test_the_undecided_score_0_and_are_counted():
    with pytest.raises(Undecided):
        same_value(read("10^{10^{10}}"), read("10^{10^{10}}+1"))
    before = doubts.count
    assert not same_answer("10^{10^{10}}", "10^{10^{10}}+1")
    assert doubts.count == before + 1
    assert not same_answer("10^{10^{10}}", "10^{10^{11}}") and not same_answer("7", "8")
    assert doubts.count == before + 1, "those are plainly different"


def test_decimals_round_what_has_no_end():
    third, half = read("\\frac{1}{3}"), read("\\frac{1}{2}")
    assert rounds_to(third, rational(read("0.333333")), 6) and not rounds_to(third, rational(read("0.33333")), 5)
    assert not rounds_to(third, rational(read("0.333334")), 6)
    assert not rounds_to(half, rational(read("0.5000001")), 7)
    assert not rounds_to(read("\\frac{1}{3200000}"), rational(read("0.0000003")), 7), "one digit says nothing"


def test_equations_are_the_same_up_to_a_factor():
    assert same_zeros(read("2x+4y-3"), read("y+\\frac{x}{2}-\\frac{3}{4}"))
    assert not same_zeros(read("x-3"), read("3-x"), signed=True) and same_zeros(read("x-3"), read("3-x"))
    assert not same_zeros(read("x-3"), read("y-3")) and not same_zeros(read("x"), read("x^2"))


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("(0,2)\\setminus\\{1\\}", "(0,1)\\cup(1,2)", True),
        ("[0,1)\\cup[1,2]", "[0,2]", True),
        ("[0,1)\\cup(1,2]", "[0,2]", False),
        ("x<1 or x>3", "\\mathbb{R}\\setminus[1,3]", True),
        ("x>1 and x<3", "(1,3)", True),
        ("x>1, x<3", "(1,3)", True),
        ("x<1, x>3", "(-\\infty,1)\\cup(3,\\infty)", True),
        ("|x|\\ge 2", "(-\\infty,-2]\\cup[2,\\infty)", True),
        ("[1,2]\\cap[3,4]", "\\emptyset", True),
        ("(0,10^{-400})", "(0,10^{-401})", False),
        ("\\mathbb{R}\\setminus{2}", "x\\ne 2", True),
        ("\\mathbb{R}^+", "x>0", True),
        ("\\mathbb{R}_{\\ge 0}", "\\mathbb{R}^+\\cup\\{0\\}", True),
        ("\\text{all nonzero real numbers}", "\\mathbb{R}^*", True),
        ("\\{x<1\\}\\cup\\{x>3\\}", "(-\\infty,1) and (3,\\infty)", True),
        ("[1,2), [3,4)", "[3,4)\\cup[1,2)", True),
    ],
)
def test_sets(a, b, same):
    assert same_pieces(read_set(a)[0], read_set(b)[0]) is same


NO_SETS = [
    "5",
    "(1,2,3)",
    "x<y",
    "x<1 or y>2",
    "(x,2)",
    "[1,2",
    "x<",
    "\\mathbb{Z}",
    "&&",
    "(1,2), (3,4)",
    "[1,3) and [2,4)",
]


@pytest.mark.parametrize("text", NO_SETS)
def test_what_is_no_set_of_numbers(text):
    with pytest.raises(NotASet):
        read_set(text)


def test_no_bomb_takes_long_even_without_a_pool():
    """Powers of powers and deep nesting used to run until the worker was killed."""
    math_reward("\\boxed{\\int_0^1 x dx}", "\\frac12", think=False)  # imports all that is needed
    pieces = ("(", "[", "C(", "|", "-", "\\{", "\\\\", "{", "C_", "\\text{", "0.", "\\sin ", "°", "x^", "\\frac{")
    for bad in [*BOMBS, *(piece * (8000 // len(piece)) for piece in pieces), *(piece * 150 for piece in pieces)]:
        began = time.thread_time()  # of this thread alone: a machine that is busy elsewhere is no bomb
        assert math_reward(f"\\boxed{{{bad}}}", "5", think=False) == 0.0, bad
        assert time.thread_time() - began < 3.0, bad[:40]


@pytest.mark.parametrize("power", ["x^{2024}", "2^{2^n}+x"])
def test_no_number_is_zero_where_values_are_too_large(power):
    """Such formulas are compared modulo a prime: multiples of primes that are well known are no zero."""
    assert math_reward(f"\\boxed{{0+{power}}}", power, think=False) == 1.0
    for number in ((1 << 127) - 1, (1 << 61) - 1, (1 << 120) + 451, "2^{127}-1", "2^{521}-1"):
        for other in (f"{power}+{number}", f"{power}-({number})\\cdot y", f"({power})({number}+1)"):
            assert math_reward(f"\\boxed{{{other}}}", power, think=False) == 0.0, other


@pytest.mark.parametrize(
    "word", ["permutations", "two hundred and", "(1,2) and permutations of", "\\text{five", "x", "12,"]
)
@pytest.mark.parametrize("blank", [" ", "~", "\\ ", "\t", "\\,", "-"])
def test_blanks_within_an_answer_take_no_time(word, blank):
    """Words, 500 blanks and a tuple took a minute: every division of the blanks was tried."""
    math_reward("\\boxed{5 apples}", "5", think=False)
    began = time.thread_time()
    math_reward(f"\\boxed{{{word}{blank * 500}(1,2,3)}}", "5", think=False)
    assert time.thread_time() - began < 2.0


@pytest.mark.parametrize(
    "response",
    [
        r"It is \boxed{12}. Let me double-check that. 3 * 5 = 15. \boxed{15}",
        r"\boxed{12}. Hold on, that counts each twice. \boxed{15}",
        r"Each row has \boxed{5} squares. With three rows we have \boxed{15}.",
        r"One day takes \boxed{5} hours. In three days we find \boxed{15} of them.",
    ],
)
def test_what_a_box_led_to_is_the_answer(response):
    assert math_reward(response, "15", think=False) == 1.0


@pytest.mark.parametrize(
    "response", [r"We have \boxed{3}. We have \boxed{15}.", r"We find \boxed{3}, or we find \boxed{15}."]
)
def test_two_guesses_are_no_answer(response):
    assert math_reward(response, "15", think=False) == 0.0
