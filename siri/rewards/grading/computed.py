r"""The left side of an equation that is yet to be computed: an integral, a limit, a sum, a derivative, a determinant.

What it comes to is what was asked for, so that such a side is like a name: `\int x^2dx = \frac{x^3}{3} + C` says the
right side. It is none where it clearly comes to something else, which is looked at where that is quick, and none where
another letter in it may be what the equation is to be solved for.
"""

import itertools
import re
from collections.abc import Callable
from fractions import Fraction

from siri.rewards.grading.grammar import NotRead, Tree, read, symbols
from siri.rewards.grading.numbers import Setting, Undecided, Undefined, context, number
from siri.rewards.grading.structure import enclosed, matrix
from siri.rewards.grading.values import drawn_points, same_value

# A factor before it changes nothing: \pi\int, \frac12\sum.
_FACTOR = (
    r"-?(?:[\d\s.*]|\\frac\s*\{(?!\s*(?:d|\\partial))[^{}]*\}\s*\{[^{}]*\}"
    r"|\\(?:pi|cdot|times|sqrt\{[^{}]*\})(?![a-zA-Z]))*"
)
_OPERATOR = re.compile(
    rf"(?P<factor>{_FACTOR})(?:\\(?:int|iint|iiint|oint|sum|prod|lim|limsup|liminf)(?![a-zA-Z])|\\det\s*\(?\s*\\begin"
    r"|\\begin\{(?:vmatrix|Vmatrix)\}|\\frac\s*\{\s*(?:d|\\partial)\s*(?:\^\s*\{?\s*\d\s*\}?)?\s*\}\s*\{\s*(?:d|\\partial)"
    r"|d(?:\^\{?\d\}?)?/d[a-z]|\\frac\s*\{\s*d\s*\()"
)
_SERIES = re.compile(r"[+*]\s*\\[lc]?dots|\\(?:cdot|times)\s*\\[lc]?dots")
_PRIMED = re.compile(r"\s*(\(.*\)|\[.*\])\s*'\s*", re.DOTALL)
_CONJUGATE = re.compile(r"\s*\\(?:overline|bar)\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}\s*")
_SCRIPT = r"(?:\{((?:[^{}]|\{[^{}]*\})*)\}|(\\[a-z]+|\w))"
# [F(x)]_0^1 and F(x)|_0^1
_BETWEEN = re.compile(rf".*[\])|]\s*_\s*{_SCRIPT}\s*\^\s*{_SCRIPT}\s*", re.DOTALL)
_BOUND = re.compile(
    r"\\(?:sum|prod)\s*_\s*\{?\s*([a-zA-Z])|\\lim\s*_\s*\{?\s*\(?\s*([a-zA-Z])|(?<!\\)d\s*([a-zA-Z])(?![a-zA-Z])"
)
# A function, a sequence, a derivative: what is made of them is a name by itself.
_NAMED = re.compile(r"(?<![\\a-zA-Z])(?:[fghuvyFGHPE]'*\s*\(|[a-zA-Z]_\{?[a-zA-Z])|[a-zA-Z]'|\\(?:phi|psi)\s*\(")
_WORDS = re.compile(r"\\[a-zA-Z]+|(?<![a-zA-Z])(?:ln|log|exp|sin|cos|tan)(?![a-zA-Z])")
_INTEGRAL = re.compile(
    rf"\s*\\int\s*(?:_\s*{_SCRIPT}\s*\^\s*{_SCRIPT})?\s*(?P<inside>.+?)\s*d\s*(?P<name>[a-zA-Z])\s*", re.DOTALL
)
_SUM = re.compile(
    rf"\s*\\(?P<kind>sum|prod)\s*_\s*\{{\s*(?P<name>[a-z])\s*=\s*(?P<first>-?\d+)\s*\}}\s*\^\s*{_SCRIPT}\s*(?P<inside>.+)",
    re.DOTALL,
)
_ARITHMETIC = re.compile(
    r"\s*(?P<before>\d{1,6}\s*(?:\+\s*\d{1,6}\s*)+)\+\s*\\[lc]?dots\s*\+\s*"
    r"(?P<end>\(?\s*\d{0,6}\s*[a-z]?\s*(?:[-+]\s*\d{1,3}\s*)?\)?)\s*"
)
# Two terms that begin no other series with such an end.
_BEGINNINGS = ((1, 2), (1, 3), (2, 4), (2, 3))
_DERIVATIVE = re.compile(
    r"\s*\\frac\s*\{\s*(?:d|\\partial)\s*\}\s*\{\s*(?:d|\\partial)\s*(?P<name>[a-zA-Z])\s*\}\s*(?P<inside>.+)",
    re.DOTALL,
)
_LIMIT = re.compile(
    r"\s*\\lim\s*_\s*\{\s*([a-z])\s*\\(?:to|rightarrow)\s*([^{}]*?)\s*(\^\s*\{?\s*[-+]\s*\}?)?\s*\}\s*(.+)", re.DOTALL
)
_BITS = 200
_STEP = Fraction(1, 1 << 40)
_NEAR = Fraction(1, 1 << 50)
# Characters of the terms of a sum, or of what is integrated, that are computed: what is longer is taken at its word.
_MOST_SUMMED, _MOST_INTEGRATED = 10_000, 120
_MOST_ROWS = 4
# Values that differ by this part are others, whatever was rounded; by the second, where only few digits are known.
_CLEARLY, _ROUGHLY = 1e-9, 1e-2


def computed(side: str, last: str) -> bool | None:
    """Whether `side` is like a name of what it comes to, `last`; False where that is something else, or where it may be
    an equation to be solved; None where nothing is to be computed."""
    if "\\text{" in side.replace("\\text{degree}", "") or not _is_operator(side):
        return None
    if _is_open(side, last):
        return False
    if _NAMED.search(side) or _NAMED.search(last):
        return True  # nobody knows what these are
    try:
        return not any(check(*_without_factor(side, last)) for check in _CHECKS)
    except (NotRead, Undefined, Undecided):
        return True


def is_multiple(side: str) -> bool:
    r"""Whether it is some times what nobody can compute: 2\int f(x)\,dx is no name of the integral."""
    match = _OPERATOR.match(side)
    return match is not None and bool(match["factor"].strip()) and bool(_NAMED.search(side))


def _without_factor(side: str, last: str) -> tuple[str, str]:
    match = _OPERATOR.match(side)
    if match is None or not match["factor"].strip():
        return side, last
    factor = re.sub(r"\s*(?:\\cdot|\\times|\*)\s*$", "", match["factor"]).strip()
    return side[match.end("factor") :], f"\\frac{{{last}}}{{{'-1' if factor == '-' else factor}}}"


def is_identity(side: str, last: str) -> bool:
    """Whether two formulas with letters are the same whatever these are: nothing is left to be solved."""
    try:
        left, right = read(side), read(last)
        return left[0] not in ("sym", "apply") and bool(symbols(left)) and same_value(right, left)
    except (NotRead, Undefined, Undecided):
        return False


def _is_operator(side: str) -> bool:
    if match := _PRIMED.fullmatch(side):
        return enclosed(match[1]) and bool(re.search(r"[a-z]", match[1]))
    return bool(_OPERATOR.match(side) or _SERIES.search(side) or _CONJUGATE.fullmatch(side) or _BETWEEN.fullmatch(side))


def _is_open(side: str, last: str) -> bool:
    r"""Whether one letter in it is neither bound nor in what it comes to: \int_0^a x\,dx = 8 is an equation for a."""
    if _NAMED.search(side) or _BETWEEN.fullmatch(side):
        return False
    bound = {letter for match in _BOUND.findall(side) for letter in match}
    letters, others = (set(re.findall("[a-zA-Z]", _WORDS.sub(" ", text))) for text in (side, last))
    return len(letters - bound - others - {"d", "e", "i"}) == 1


# ------------------------------------------------------------------------------------------------ what it comes to


def _is_other_conjugate(side: str, last: str) -> bool:
    match = _CONJUGATE.fullmatch(side)
    if match is None:
        return False
    tree = read(match[1])
    turned = _with(tree, ("const", "i"), ("neg", ("const", "i")))
    return turned == tree or not same_value(read(last), turned)  # \overline{AB} has no i


def _is_other_determinant(side: str, last: str) -> bool:
    text = re.sub(r"^\s*\\det\s*\(?\s*(?=\\begin)|(?<=matrix\})\s*\)\s*$", "", side)
    entries = matrix(text)
    if entries is None or not text.startswith("\\begin") or len(set(entries[0][1])) != 1:
        return False
    width = entries[0][1][0]
    if width != len(entries[0][1]) or width > _MOST_ROWS:
        return False
    cells = [read(cell) for cell in entries[1]]
    return not same_value(read(last), _determinant([cells[at : at + width] for at in range(0, len(cells), width)]))


def _determinant(rows: list[list[Tree]]) -> Tree:
    if len(rows) == 1:
        return rows[0][0]
    terms = []
    for place, cell in enumerate(rows[0]):
        rest = [row[:place] + row[place + 1 :] for row in rows[1:]]
        term = ("*", (cell, _determinant(rest)))
        terms.append(("neg", term) if place % 2 else term)
    return ("+", tuple(terms))


def _is_other_sum(side: str, last: str) -> bool:
    match = _SUM.fullmatch(side)
    if match is None:
        return False
    inside, right, name = read(match["inside"]), read(last), ("sym", match["name"])
    end = (match[4] or match[5]).strip()
    if inside[0] == "+" and not enclosed(match["inside"].strip()):
        return False  # nobody knows where the sum ends
    if not re.fullmatch(r"\d{1,6}|[a-z]", end):
        return False
    for last_index in [int(end)] if end.isdigit() else [3, 5]:
        first = int(match["first"])
        if not 0 <= (last_index - first) * len(match["inside"]) < _MOST_SUMMED:
            return False
        terms = tuple(_with(inside, name, ("num", Fraction(at))) for at in range(first, last_index + 1))
        total: Tree = ("+" if match["kind"] == "sum" else "*", terms)
        index: Tree = ("num", Fraction(last_index))
        if _differ(*(_with(tree, ("sym", end), index) for tree in (total, right))):
            return True
    return False


def _is_other_series(side: str, last: str) -> bool:
    """Whether an arithmetic series, such as 1 + 3 + ... + (2n - 1), comes to something else."""
    match = _ARITHMETIC.fullmatch(side)
    if match is None:
        return False
    before = [int(term) for term in match["before"].split("+") if term.strip()]
    steps = {b - a for a, b in itertools.pairwise(before)}
    if len(steps) != 1 or 0 in steps or (len(before) == 2 and tuple(before) not in _BEGINNINGS):
        return False
    first, end = ("num", Fraction(before[0])), read(match["end"])
    count = ("+", (("/", ("+", (end, ("neg", first))), ("num", Fraction(*steps))), ("num", Fraction(1))))
    return not same_value(read(last), ("/", ("*", (("+", (first, end)), count)), ("num", Fraction(2))))


def _is_other_derivative(side: str, last: str) -> bool:
    if match := _DERIVATIVE.fullmatch(side):
        return _is_no_derivative(read(match["inside"]), read(last), match["name"])
    if match := _PRIMED.fullmatch(side):
        tree = read(match[1])
        names = symbols(tree)
        return len(names) == 1 and _is_no_derivative(tree, read(last), *names)
    return False


def _is_other_integral(side: str, last: str) -> bool:
    match = _INTEGRAL.fullmatch(side)
    if match is None or "\\int" in match["inside"] or len(match["inside"]) > _MOST_INTEGRATED:
        return False
    name, right = match["name"], read(last)
    text = match["inside"]
    inside = read(text) if text else ("num", Fraction(1))
    low, high = match[1] or match[2], match[3] or match[4]
    if low is None:
        return _is_no_derivative(right, inside, name)
    ends = read(low), read(high)
    if symbols(inside) - {name} or any(map(symbols, (*ends, right))) or "inf" in repr(ends):
        return False
    ctx = context()
    with ctx.workprec(53):
        limits = [number(end, Setting(), 53).real for end in ends]
        value, error = ctx.quad(lambda at: number(inside, Setting({name: _as_fraction(at)}), 53), limits, error=True)
        return _apart(value, number(right, Setting(), 53)) > max(_ROUGHLY, 1e6 * float(error))


def _is_other_limit(side: str, last: str) -> bool:
    match = _LIMIT.fullmatch(side)
    if match is None:
        return False
    name, where, from_, text = match.groups()
    inside, right = read(text), read(last)
    if symbols(inside) - {name} or symbols(right) or "inf" in repr(right):
        return False
    negative, far = where.strip().startswith("-"), "\\infty" in where
    if far:
        points = [-1 / _NEAR if negative else 1 / _NEAR]
    else:
        at = _as_fraction(number(read(where), Setting(), _BITS))
        points = [at + sign * _NEAR for sign in ((1, -1) if not from_ else (-1,) if "-" in from_ else (1,))]
    pairs = [(number(inside, Setting({name: point}), 2 * _BITS), number(right, Setting(), _BITS)) for point in points]
    return all(_apart(*pair) > 5 * _ROUGHLY for pair in pairs)


_CHECKS: tuple[Callable[[str, str], bool], ...] = (
    _is_other_conjugate,
    _is_other_determinant,
    _is_other_sum,
    _is_other_series,
    _is_other_derivative,
    _is_other_integral,
    _is_other_limit,
)


def _is_no_derivative(tree: Tree, derivative: Tree, name: str) -> bool:
    """Whether the slope of `tree` is clearly another one at some point where both are defined."""
    for point in drawn_points(symbols(tree) | symbols(derivative) | {name}):
        try:
            above, below = (
                number(tree, Setting(point | {name: point[name] + step}, False), _BITS) for step in (_STEP, -_STEP)
            )
            slope, expected = (above - below) / (2 * _STEP), number(derivative, Setting(point, False), _BITS)
        except (Undefined, Undecided):
            continue
        if _apart(slope, expected) > _CLEARLY:
            return True
    return False


def _differ(left: Tree, right: Tree) -> bool:
    for point in drawn_points(symbols(left) | symbols(right)):
        try:
            values = [number(tree, Setting(point), _BITS) for tree in (left, right)]
        except (Undefined, Undecided):
            continue
        return _apart(*values) > _CLEARLY
    return False


def _apart(value, other) -> float:
    """The difference, as a part of the larger one; of 1 next to zero."""
    return float(abs(value - other) / max(abs(value), abs(other), 1))


def _as_fraction(value) -> Fraction:
    if value.imag != 0:
        raise Undefined
    sign, mantissa, exponent, _ = value.real._mpf_
    return (-1) ** sign * Fraction(int(mantissa)) * Fraction(2) ** exponent


def _with(tree: Tree, old: Tree, new: Tree) -> Tree:
    """`tree` with `new` for each leaf `old`."""
    if tree == old:
        return new
    return tuple(
        _with(part, old, new)
        if isinstance(part, tuple) and part and isinstance(part[0], str)
        else tuple(_with(inner, old, new) for inner in part)
        if isinstance(part, tuple)
        else part
        for part in tree
    )
