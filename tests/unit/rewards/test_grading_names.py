"""What letters are taken for: constants, indices, segments, lines, vectors."""

import time

import pytest

from siri.rewards.answers import same_answer
from siri.rewards.grading.constants import other_constants, without_constants
from siri.rewards.grading.indices import is_shifted, without_domain, without_whole
from siri.rewards.grading.lines import with_lines
from siri.rewards.grading.segments import is_mean, is_of_segment, segment, unbarred
from siri.rewards.grading.vectors import as_gold_vector, as_vector


@pytest.mark.parametrize(
    ("text", "bare", "names"),
    [
        (r"y=Ce^{x}, \text{ where } C \text{ is a constant}", "y=Ce^{x}", {"C"}),
        (r"y=C_1e^x+C_2, C_1,C_2\in\mathbb{R}", "y=C_1e^x+C_2", {"C_1", "C_2"}),
        (r"x^2+C, C\in\mathbb{R}", "x^2+C", {"C"}),
        (r"f(x)=kx \text{ for some constant } k", "f(x)=kx", {"k"}),
    ],
)
def test_what_says_that_a_letter_is_a_constant_is_left_out(text, bare, names):
    assert without_constants(text) == (bare, names)


@pytest.mark.parametrize(
    "text",
    [
        r"y=Ce^{x}, C>0",
        r"y=Ce^{x}, C\in\mathbb{Z}",
        r"y=Ce^{x}, \text{ where } C \text{ is a positive constant}",
        r"y=e^{x}, \text{ where } C \text{ is a constant}",
        r"f(x)=x, \text{ where } x \text{ is a constant}",
        r"k\pi, k\in\mathbb{R}",
    ],
)
def test_what_says_more_of_a_letter_stays(text):
    assert without_constants(text) == (text, set())


def test_constants_are_exchanged_in_general_solutions_only():
    assert "y=C_2 e^x+C_1 e^{-x}" in other_constants("y=C_1e^x+C_2e^{-x}", "y=c_1e^x+c_2e^{-x}")
    assert not list(other_constants("C_1-C_2", "C_2-C_1")) and not list(other_constants("mx+C", "mx+C_1"))
    assert not list(other_constants("C=2x", "C_1=2x")) and not list(other_constants("Cx", "C_1x"))


@pytest.mark.parametrize("domain", [r", n\ge 1", r" (n\ge 1)", r", n=1,2,3,\ldots", " for all positive integers n"])
def test_an_index_runs_from_the_first_term_on(domain):
    for formula in ("a_n=2n-1", "f(n)=n^2", "2n-1"):
        assert without_domain(formula + domain) == formula
    for formula in ("x=2n", r"n\pi", "2k", "a_k=2n-1"):
        assert without_domain(formula + domain) == formula + domain


@pytest.mark.parametrize("domain", [r", n\ge 2", r", n\ge 0", ", n=1,2,3", r", n\in\mathbb{Z}", r", n\ge 10", ", n>1"])
def test_another_domain_stays(domain):
    assert without_domain("a_n=2n-1" + domain) == "a_n=2n-1" + domain


def test_the_condition_of_a_piece_is_about_whole_numbers():
    assert without_whole(r"n\ge 2,n\in\mathbb{N}^*") == r"n\ge 2"
    assert without_whole(r"x\ge 2,x\in\mathbb{N}^*") == r"x\ge 2,x\in\mathbb{N}^*"


def test_an_index_that_is_shifted():
    assert is_shifted("a_{n+1}", "2n-1") and is_shifted("S_{2n}", "n^2") and is_shifted("b_{k-1}", "2^k")
    for side, formula in (("a_n", "2n"), ("a_{10}", "19"), ("a_{n+1}", "5"), ("a_{ij}", "i+j"), ("a_{n+1}", "2a_n+n")):
        assert not is_shifted(side, formula)
    assert not is_shifted("T_{r+1}", r"\binom{6}{r}x^{r}") and is_shifted("T_{r+1}", "2r")


def test_segments_and_means():
    assert [segment(text) for text in (r"\overline{AB}", "|AB|", "AB", r"m\overline{A B}", r"\overline{A}", "2AB")] == [
        *["AB"] * 4,
        "",
        "",
    ]
    assert unbarred([r"\overline{AB}", r"\{1,2\}"]) == [r"\overline{AB}", r"\{1,2\}"]
    assert is_mean(r"\bar{x}", "5") and not is_mean(r"\bar{z}", "5") and not is_mean(r"\bar{x}", "3-4i")
    for side in ("2AB", r"\frac{AB}{2}", "AB+2", r"\sqrt{AB}", r"2\overline{AB}", "AB+BA", "2A_1B_1"):
        assert is_of_segment(side)
    for side in ("AB", "AB^2", "AB+CD", r"AB\cdot CD", "xAB", "P(AB)", "ABC", r"k_{AB}", r"AB\cos C", r"A\cdot B"):
        assert not is_of_segment(side)


def test_a_line_beside_another():
    assert with_lines("x-2=0, x+y=1").replace(" ", "") == "x=2,x+y=1"
    assert "x=-2" in with_lines(r"x+2=0 \text{ or } y=3")
    for text in ("x-2=0", "x-2=0, y-3=0", r"x-2=0 \text{ or } x-3=0", "x^2-4=0, x+y=1"):
        assert with_lines(text) == text


def test_vectors_in_the_other_spelling():
    column = r"\begin{pmatrix}1\\2\end{pmatrix}"
    assert as_vector(r"\langle 1,2\rangle", column) == "( 1,2)^T"
    assert as_vector(r"\binom{1}{2}", column) == column and as_vector("(1,2)", column) == "(1,2)"
    assert as_vector(r"2\mathbf{a}", r"2\vec{a}") == r"2\vec{a}" and as_vector("2a", r"2\vec{a}") == "2a"
    assert as_gold_vector(r"\binom{5}{2}", column) == r"\binom{5}{2}"


@pytest.mark.parametrize(
    "piece", ["C, ", "n \\ge 1, ", "where ", "a_{", "AB", "+\\pi n", "\\langle ,", "x-2=0 or ", "(C "]
)
def test_nothing_of_it_takes_long(piece):
    start = time.process_time()
    for size in (500, 8000, 100_000):
        same_answer("y=Ce^{-2x}", "y=Ce^{-2x}, " + piece * (size // len(piece)))
    assert time.process_time() - start < 10
