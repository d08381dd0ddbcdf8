"""Which written answers are the same: each pair is also graded as a response would be."""

import time

import pytest

from siri.rewards import math_reward
from siri.rewards.answers import last_boxed, same_answer


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{5}", "5"),
        (r"so \boxed{1}, no, \boxed {\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\left\{ x \right\}} and $\{ 1", r"\left\{ x \right\}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{7} and then it was cut: \boxed{8", "7"),
        (r"}} \fbox{4} {", "4"),
        (r"\\boxed{6}", "6"),
        (r"\boxed{}", ""),
        ("no box, 5", None),
        (r"\boxed 5", "5"),
    ],
)
def test_last_boxed(text, content):
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("\\frac{1}{2}", "1/2"),
        ("\\frac12", "0.5"),
        ("142", "142.0"),
        ("025", "25"),
        (".5", "\\dfrac{1}{2}"),
        ("6\\frac{1}{6}", "\\frac{37}{6}"),
        ("\\frac{1}{3}", "0.333333"),
        ("5\\%", "5 percent"),
        ("5\\%", "5"),
        ("50\\%", "\\frac{1}{2}"),
        ("\\sqrt{3}\\%", "\\frac{\\sqrt{3}}{100}"),
        ("12.5\\%", "0.125"),
        ("\\$5.50", "5.5"),
        ("\\$306,\\!956.63", "306956.63"),
        ("22,500", "22500"),
        ("81, 256", "81,256"),
        ("1{,}008{,}016", "1\\,008\\,016"),
        ("45^\\circ", "45^{\\circ}"),
        ("45^\\circ", "45"),
        ("10\\text{ cm}", "10"),
        ("15\\mbox{ cm}^2", "15 \\text{ square centimeters}"),
        ("12\\sqrt{13}\\text{ feet}", "12 \\sqrt{13} ft"),
        ("9\\text{ values}", "9"),
        ("\\text{Evelyn}", "evelyn"),
        ("\\text{(C)}", "C"),
        ("\\text{A, B}", "A,B"),
        ("\\text{two lines}", "\\textbf{two lines}"),
        ("1011_2", "1011_{2}"),
        ("24_{10}", "24"),
        ("-2, 2", "2,-2"),
        ("2, 3, \\text{ and } 4", "4, 3, 2"),
        ("1 \\pm \\sqrt{19}", "1+\\sqrt{19}, 1-\\sqrt{19}"),
        ("\\{4,5,7\\}", "7, 5, 4"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\pi/2)"),
        ("(-\\infty, 3) \\cup (3, \\infty)", "(3, +\\infty) \\cup (-\\infty, 3)"),
        ("x \\in [-2,7]", "[-2,7]"),
        ("-80\\leq g(x)\\leq 82", "[-80,82]"),
        ("(-\\infty,3)", "x < 3"),
        ("s^2 \\le 8r^2", "8r^2 \\ge s^2"),
        ("\\begin{pmatrix} -1/2 \\\\ 5/2 \\end{pmatrix}", "\\begin{bmatrix}-\\frac12\\\\2.5\\end{bmatrix}"),
        ("x = 5", "5"),
        ("5", "k=5"),
        ("\\text{CBAD}", "x = CBAD"),
        ("y = 2x + 3", "2x+3"),
        ("y = 2x + 3", "y - 2x = 3"),
        ("2x + z - 5 = 0", "4x + 2z = 10"),
        ("AB=9, CD=4", "CD = 4, AB = 9"),
        ("0.56 = 56\\%", "56\\%"),
        ("\\$\\dfrac23 \\approx \\$0.67", "\\frac{2}{3}"),
        ("2^{10}", "1024"),
        ("\\sqrt{50}", "5\\sqrt{2}"),
        ("\\frac{1}{\\sqrt{2}}", "\\frac{\\sqrt{2}}{2}"),
        ("(x+1)(x-2)", "x^2 - x - 2"),
        ("(1, 2)", "(x, y) = (1, 2)"),
        ("2, 3", "x = 3 \\text{ or } x = 2"),
        ("8\\!:\\!34 \\text{ p.m.}", "8:34 p.m."),
        ("\\boxed{7}", "7"),
        ("\\( 7 \\)", "$7$"),
    ],
)
def test_same(gold, answer):
    assert same_answer(gold, answer)
    assert math_reward(f"</think>\\boxed{{{answer}}}", gold) == 1.0


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1,2", "1"),
        ("1,2", "1,2,2"),
        ("1,1,2", "1,2,2"),
        ("5", "5\\%"),
        ("\\frac{1}{3}", "0.33"),
        ("3 \\times 10^{-8}", "5 \\times 10^{-9}"),
        ("10\\text{ cm}", "10\\text{ inches}"),
        ("60^\\circ", "60\\text{ inches}"),
        ("4 \\text{ p.m.}", "4 \\text{ a.m.}"),
        ("2xy", "2"),
        ("2m", "2"),
        ("2", "2t"),
        ("7", "7 \\cdot o"),
        ("2 xy", "2"),
        ("2e", "2"),
        ("2\\mathrm{e}", "2"),
        ("15", "1 5"),
        ("1011_2", "1011"),
        ("1011_2", "1011_3"),
        ("1011_2", "11"),
        ("(1,2)", "(2,1)"),
        ("(1,2)", "1,2"),
        ("[1,2]", "(1,2)"),
        ("[1,2)", "[1,2]"),
        ("(1,2)", "(1,2,3)"),
        ("(-\\infty,3)", "(-\\infty,3]"),
        ("(1,2) \\cup (3,4)", "(1,2)"),
        ("x < 3", "x > 3"),
        ("x < 3", "3"),
        ("x + y + z = 0", "0"),
        ("0", "x + y + z = 0"),
        ("x = 5", "y = 5"),
        ("LQSX", "XSQL"),
        ("\\text{Evelyn}", "Navin"),
        ("\\text{(C)}", "(D)"),
        ("8:34", "4:17"),
        ("1:2", "1"),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 1 & 2 \\end{pmatrix}"),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 2 \\\\ 1 \\end{pmatrix}"),
        ("1 \\pm \\sqrt{19}", "1 + \\sqrt{19}"),
        ("a+b", "ab"),
        ("7", "7x"),
        ("7", "hello 7"),
        ("7", "7 or 8"),
        ("7", "__import__('os').getpid()"),
        ("7", "7" + " " * 600 + "+0" * 300),
        ("7", ""),
        ("7", "\\"),
        ("7", "\\frac{7}{0}"),
        ("7", "\\sqrt{" * 70 + "7" + "}" * 70),
        ("7", "{{{"),
        ("", ""),
    ],
)
def test_not_the_same(gold, answer):
    assert not same_answer(gold, answer)
    assert math_reward(f"</think>\\boxed{{{answer}}}", gold) == 0.0


@pytest.mark.parametrize(
    "content",
    [
        "\\boxed{" * 20_000,
        "\\ " * 50_000,
        " , " * 50_000,
        "\\text{" * 20_000,
        "111," * 50_000,
        "a\\cup" * 30_000,
        "(" * 99_999,
    ],
    ids=lambda content: content[:8],
)
def test_long_nonsense_is_graded_in_no_time(content):
    start = time.process_time()  # other work on the machine does not count
    assert math_reward(f"</think>\\boxed{{{content}}}", "5") == 0.0
    assert time.process_time() - start < 2.0
