"""Chains of equations: what they say their last side is, and whether all of their parts agree with it."""

import re
from collections.abc import Callable
from fractions import Fraction

from siri.rewards.grading.computed import computed, is_identity, is_multiple
from siri.rewards.grading.equations import applied, is_derivative
from siri.rewards.grading.grammar import NotRead, Tree, read, symbols
from siri.rewards.grading.indices import is_shifted
from siri.rewards.grading.numbers import Setting, Undecided, Undefined, number
from siri.rewards.grading.quantities import same_quantity
from siri.rewards.grading.segments import is_mean, is_of_segment, unbarred
from siri.rewards.grading.sentences import is_label
from siri.rewards.grading.spelling import clean
from siri.rewards.grading.structure import squeezed
from siri.rewards.grading.units import without_unit
from siri.rewards.grading.values import rational, same_value

Same = Callable[[str, str], bool]

# What is between equals signs and is more than a name: operations, a logarithm, the amount of one unknown.
_TO_BE_SOLVED = re.compile(
    r"[-+*/^\d!%]|\\(?:sqrt|cdot|times|pm|l?dots|ln|lg|log|exp|[lr]floor|[lr]ceil|binom)(?![a-zA-Z])|"
    r"\b(?:ln|lg|log|exp)\b|^\|\s*[a-vxy]\s*\|$|\\lvert\s*[a-vxy]\s*\\rvert"
)
_LETTER = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])|\\(?:theta|alpha|beta|omega|phi|lambda)(?![a-zA-Z])")
_POINTS = re.compile(r"\s*(?:[a-zA-Z]|\\[a-z]+)(?:\s*,\s*(?:[a-zA-Z]|\\[a-z]+))*\s*")
# What a function may be applied to, as well, so that it is asked for by that name: 2x, or another function. At -x or
# x + 1 it is what problems give that ask for f(x).
_SCALED = re.compile(r"\s*[2-9]\s*[a-z]\s*")
_COMBINED = re.compile(r"\s*\(\s*[a-z]\s*(?:[-+*/]|\\(?:cdot|times|composed)\s)?\s*[a-z]\s*\)\s*\(\s*[a-z]\s*\)\s*")
# Matrices by what is done to them: A^2, A^{-1}B, 2A - B, (AB)^T. Of 2A alone one would look for A.
_POWER = r"(?:\s*\^\s*\{?\s*(?:-?\d+|[nkmT*]|\\text\{\s*T\s*\})\s*\}?)"
_MATRIX = rf"(?:(?:[A-Z]|\{{\s*[A-Z]\s*\}}|\\vec\s*(?:\{{\s*[a-z]\s*\}}|[a-z]))(?:_\{{?\w\}}?)?{_POWER}?\s*)"
_OF_MATRICES = re.compile(rf"\s*{_MATRIX}+|\s*\(\s*{_MATRIX}+\){_POWER}|\s*\d*{_MATRIX}+(?:[-+]\s*\d*{_MATRIX}+)+")
# What a sum may be of that is one number: f(2), a_1, a letter.
_TERM = re.compile(r"[a-zA-Z]'*\([-\d./]+\)|[a-zA-Z]_\{?\d+\}?|[a-zA-Z]")
# A decimal may be rounded or cut off by less than one of its last place, and by no more than this part of the value.
_ROUNDING = Fraction(2, 100)
_DECIMAL = re.compile(r"[-+]?\d*\.(\d+)\s*(\\%)?")
# What a name is made of, where the grammar has no word for it: AB, P(A|B), an angle, a description in words.
_NAME = re.compile(
    r"(?:\\(?:angle|triangle|overline|overrightarrow|overset|frown|vec|hat|widehat|bar|tilde|dot|ddot|mathbf|text|"
    r"mathrm|"
    r"operatorname|mathcal|mathbb|Pr|cap|cup|mid|cdot|frac|partial|perp|square|max|min|sup|inf|det|dim|gcd|lcm|sin|cos|"
    r"tan|ell|composed|varphi|alpha|beta|gamma|delta|theta|lambda|mu|sigma|tau|phi|psi|omega|Delta|Phi|Omega|Gamma)"
    r"(?![a-zA-Z])|[a-zA-Z'()\[\]{}|,_+*/^\s:.-])+"
)
# Commands and letters that values are written with.
_OF_VALUES = re.compile(
    r"\\(?:frac|sqrt|pi|cdot|times|left|right|pm|infty|%|binom)(?![a-zA-Z])|(?<![a-zA-Z])[ei](?![a-zA-Z])"
)
_NEXT = re.compile(r"[\d})]\s+([a-zA-Z])(?:_\w)?\s*$")
_FORMULA_LETTERS = frozenset("rhlswabdRH")
_REMAINDER = re.compile(r"\s*(\d{1,18})\s*\\bmod\s*\{?\s*([1-9]\d{0,17})\s*\}?\s*")
# A function with a name of several letters.
_CALLED = re.compile(r"\\(?:text|operatorname)\s*\{\s*[A-Za-z ]+\}\s*\(")
_INDEX = re.compile(r"_(?:\w|\{[^{}]*\})")
# Words that join statements, or take one back: no part of a name.
_JOINING = frozenset(
    re.findall(
        r"\w+",
        "yes true or and maybe perhaps possibly else no not nope if with while whereas alternatively but then so wait "
        "otherwise unless when where hence thus therefore versus vs none undefined infinity instead actually rather "
        "however also later first second correction corrected sorry false wrong nonexistent empty to implies "
        "gives gave means",
    )
)
_AMID = re.compile(r"[\w)}\]']\s*\\text\{[^{}]*\}\s*[\w\\(\[]")
_WORDS = re.compile(r"\s*\\text\{([^{}]*)\}\s*")
_SHORT = 3
_BITS = 64
_MOST_WORDS = 80
_MOST_PLACES = 100


def condensed(sides: list[str], same: Same) -> list[str]:
    """The first and the last side of a chain of equations where what is between says the same as the last, or is the
    formula of a number; all of them where it says more, as in `a = b = c`."""
    return [sides[0], sides[-1]] if len(sides) < 3 or _agree(sides[1:], same) else sides


def names_a_value(sides: list[str], *, as_answer: bool, same: Same) -> bool:
    r"""Whether an equation only says what its right side is: `x = 5` is 5, and so is `f(2) = 5`; `1/2 = 0.5` is 0.5.

    As an answer, `a + b = 17` is 17, too: two unknowns say nothing else than what the question asked for. `2x = 17`,
    `\ln x = 17` and `|x| = 17` are equations to be solved, `x + y = 0` is the equation of a line, and a gold answer of
    that kind wants the equation. Of `x = 6 = 5` nobody knows what it says, and `a = b` speaks of both. Every side has
    to be a name, a formula with letters, or the same as the last: what is not read is none of these.
    """
    sides = unbarred(sides)
    if ("\\begin" not in sides[-1] and is_of_segment(sides[0])) or is_shifted(sides[0], sides[-1]):
        return False  # 2AB = 10, a_{n+1} = 2n
    if is_mean(sides[0], sides[-1]):
        return _agree(sides[1:], same)
    if _is_about_both(sides[0].strip(), sides[-1].strip()):
        return False
    if sides[0].lstrip().startswith(("\\neg", "\\lnot")):
        return False  # of the complement
    if (words := _WORDS.fullmatch(sides[0])) and len(words[1].strip()) > _SHORT and not is_label(words[1]):
        return False  # double = 5
    if any(_repeats(sides[0], side) for side in sides[1:-1]):
        return False  # x = 3 x = 5
    if (verdict := computed(sides[0], sides[-1])) is not None:
        return verdict and not is_multiple(sides[0]) and _agree(sides[1:], same)
    if _is_closed(sides[0]):
        return _agrees(sides[0], sides[-1], same, exactly=True) and _agree(sides, same)
    named = is_derivative(sides[0]) or _COMBINED.fullmatch(sides[0])
    vectors = "\\vec" in sides[0] and "," in sides[-1]
    named = named or (("\\begin{" in sides[-1] or vectors) and _OF_MATRICES.fullmatch(sides[0]))
    if named or (as_answer and is_identity(sides[0], sides[-1])):
        return _agree(sides[1:], same)
    name = re.sub(r"(?<=log)_(?:\w|\{[^{}]*\})", " ", sides[0])  # \log_2x is a logarithm of x
    name = re.sub(r"_(?:\w|\{[^{}]*\})|'|\^\{?(?:\\prime|\*)\}?", "", name).strip()
    if function := applied(name):
        usual = _POINTS.fullmatch(function[1]) or _SCALED.fullmatch(function[1]) or applied(function[1])
        if _LETTER.search(function[1]) and not usual and _LETTER.search(sides[-1]):
            return False  # f(-x) = 2x + 1
        if any(_is_to_be_solved(function[1].strip(), side, sides[-1]) for side in sides[1:-1]):
            return False  # f'(x) = 2x - 4 = 0
        name = function[0].removesuffix("^{-1}")
    if ("|" in name or "vert" in name) and _LETTER.search(sides[-1]):
        return False  # |f(x)| = 2x + 1
    if not _TO_BE_SOLVED.search(name):
        return not _joins(sides[0]) and _agree(sides[1:], same)
    plain = re.sub(r"\\[a-zA-Z]+|(?<![a-zA-Z])(?:ln|lg|log|exp|e)(?![a-zA-Z])", "", name)
    letters = set(re.findall(r"[a-zA-Z]", re.sub(r"[a-zA-Z]\s*\([^()]*\)", "f", plain)))
    if not letters:
        return _agree(sides[1:] if "\\angle" in name else sides, same)
    terms = [squeezed(term) for term in re.split(r"(?<=[\w)}])\s*\+", sides[0])]
    values = {re.sub(r"\.0*(?=\))", "", term) for term in terms}
    if not as_answer or max(len(letters), len(values) if all(map(_TERM.fullmatch, terms)) else 0) < 2:
        return False
    if _joins(sides[0]):
        return False
    try:
        return rational(read(sides[-1])) != 0 and not symbols(read(sides[-1])) and _agree(sides[1:], same)
    except NotRead:
        return False


def _is_to_be_solved(variable: str, side: str, last: str) -> bool:
    """Whether a formula of this variable is said to be something without it."""
    tree, value = _tree(side), _tree(last)
    if not re.fullmatch("[a-z]", variable) or tree is None or value is None:
        return False
    if variable not in symbols(tree) or variable in symbols(value):
        return False
    try:
        return not same_value(tree, value)
    except (Undefined, Undecided):
        return True


def turned(sides: list[str]) -> list[str]:
    """`5 = x`, `5 = m + n` and `2a + b = x` with what has the name first."""
    if len(sides) != 2 or not (tree := _tree(sides[1])) or not symbols(tree):
        return sides
    if _is_closed(sides[0]):
        return sides[::-1]
    other = _tree(sides[0]) if tree[0] == "sym" and tree[1] in "xyz" else None
    formula = other and other[0] != "sym" and symbols(other) and tree[1] not in symbols(other)
    return sides[::-1] if formula else sides


def _is_about_both(left: str, right: str) -> bool:
    """Whether it says of two letters that they are the same. A function, or an unknown by a letter of another kind, is
    a value with its name: y = x, x = a."""
    if not re.fullmatch(r"[a-zA-Z]|\\[a-z]+", right) or right in ("e", "i", "\\pi", "\\infty"):
        return False
    unknown = re.fullmatch(r"([xyzST])(?:_\{?\w\}?)?", left)
    letter = re.fullmatch(r"[a-zA-Z]|\\[a-z]+", left)
    return bool(letter) and not (unknown and (right not in "xyz" or (left, right) == ("y", "x")))


def _repeats(name: str, side: str) -> bool:
    """Whether an unknown stands in what is said of it, or the next letter behind a number."""
    name = name.strip()
    if not re.fullmatch("[a-zA-Z]", name) or side.strip() == name:
        return False
    match = _NEXT.search(side)
    following = match is not None and ord(match[1]) == ord(name) + 1
    tree = _tree(side)
    return following or (tree is not None and name in symbols(tree))


def _is_closed(side: str) -> bool:
    r"""Whether it is a value without a name in it: 1/2, "3 apples", (2, 1), "seven". An angle by its number is none."""
    side = side.strip()
    if _CALLED.match(side):
        return False
    if re.search("[a-z]{3}", side) and len(side) <= _MOST_WORDS:
        side = clean(side)
    side = re.sub(r"\\text\{[^{}]*\}", " ", without_unit(side)[0])
    if not re.search(r"\d", side) or "\\angle" in side:
        return False
    return not re.search(r"[a-zA-Z]|\\[a-zA-Z]", _OF_VALUES.sub("", side))


def _agree(sides: list[str], same: Same) -> bool:
    """Whether every side is the last one, but for rounding of decimals, or a name or formula of it."""
    if any(map(_begins_another, sides[:-1])):
        return False
    return all(_agrees(side, sides[-1], same) for side in sides[:-1])


def _begins_another(side: str) -> bool:
    """Whether a number is followed by space and the name of another unknown, as in `x = 3 y = 5`; the letters of usual
    formulas, as in `d = 2 r = 10`, are none."""
    match = _NEXT.search(side)
    return (
        match is not None
        and match[1] not in _FORMULA_LETTERS
        and not re.search(r"[a-zA-Z]", _OF_VALUES.sub("", side[: match.start(1)]))
    )


def _agrees(side: str, last: str, same: Same, *, exactly: bool = False) -> bool:
    side, last = side.strip(), last.strip()
    if not side:
        return True  # x == 5
    if re.search("[a-z]{3}", side) and len(side) <= _MOST_WORDS:
        side = clean(side)
    tree, last_tree = _tree(side), _tree(last)
    try:
        if tree is not None and last_tree is not None and symbols(last_tree):
            return same_value(last_tree, tree)  # a = 2b = 3c
        if tree is not None and symbols(tree):
            return True
        if (
            tree is not None
            and last_tree is not None
            and (same_value(tree, last_tree) or (not exactly and _is_rounded(side, last, tree, last_tree)))
        ):
            return True
        if tree is None and (verdict := computed(side, last)) is not None:
            return verdict
        if same(side, last) or same_quantity(side, last):
            return True
    except (Undefined, Undecided):
        return False
    return tree is None and _is_a_name(side)


def _tree(text: str) -> Tree | None:
    """The value of a side; without the nouns of a fraction of counts, and with the remainder for a division's."""
    if match := _REMAINDER.fullmatch(text):
        return ("num", Fraction(int(match[1]) % int(match[2])))
    if text.startswith("\\frac") and "\\text{" in text:
        text = re.sub(r"\\text\{[a-zA-Z ]*\}", "", text)
    try:
        return read(text)
    except NotRead:
        return None


def _is_rounded(side: str, last: str, tree: Tree, last_tree: Tree) -> bool:
    """Whether two numbers differ by less than the last place of the decimal among them: whole numbers and fractions are
    not rounded."""
    places = [_place(text) for text in (side, last)]
    if not any(places):
        return False
    value, last_value = (_digits(each) for each in (tree, last_tree))
    if value is None or last_value is None:
        return False
    return abs(value - last_value) < max(places) and abs(value - last_value) <= _ROUNDING * abs(last_value)


def _place(text: str) -> Fraction:
    """What one in the last place of a decimal is worth; 0 for whatever else."""
    match = _DECIMAL.fullmatch(text)
    if match is None or len(match[1]) >= _MOST_PLACES:
        return Fraction(0)
    return Fraction(1, 10 ** (len(match[1]) + 2 * bool(match[2])))


def _digits(tree: Tree) -> Fraction | None:
    value = rational(tree)
    if value is not None:
        return value
    digits = complex(number(tree, Setting(), _BITS))
    return None if digits.imag or abs(digits) == float("inf") else Fraction(digits.real)


def _is_a_name(side: str) -> bool:
    """Whether what the grammar does not read is a name: no number in it, and no words that join statements."""
    return not re.search(r"\d", _INDEX.sub("", side)) and bool(_NAME.fullmatch(side)) and not _joins(side)


def _joins(side: str) -> bool:
    """Whether words in it join two statements."""
    words = re.findall("[a-z]+", re.sub(r"\\[a-zA-Z]+", " ", side).casefold())
    return not _JOINING.isdisjoint(words) or bool(_AMID.search(side))
