"""math-verify, asked last: for what our own grammar does not hold (sums, integrals, limits, matrices in formulas)."""

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from siri.rewards.grading.derivatives import OPERATION

_FRACTION = re.compile(r"(\d{1,3})/(\d{1,3})", re.ASCII)
_NUMBER = re.compile(r"\d+(?:\.\d*)?|\.\d+", re.ASCII)
# math-verify rounds to six decimals, absolutely, so it is not asked about what that could confuse.
_UNSAFE = re.compile(r"\d{7}|\.\d{5}|!|\^\s*(?:\{[^{}]*\d{2}[^{}]*\}|\d{2})|10\s*\^|\\binom|\^[^^]*\^")
# What it would take for a product of letters, or for a list.
_NO_VALUE = re.compile(
    r"\\(?:angle|triangle|over(?:line|rightarrow)|vec|hat|land|lor|wedge|vee|neg|forall|exists|parallel|perp|p?mod|"
    r"bmod|"
    r"equiv|to|[lc]?dots|composed)(?![a-zA-Z])"
)
# What it is asked for. Without any of these our own grammar's refusal stands: its parser takes seconds over nonsense.
_WORTH_ASKING = re.compile(
    r"\\(?:int|iint|oint|sum|prod|lim|begin|partial|det|gcd|lcm|max|min|cup|cap|in|mathbb|le|ge|ne|log|binom)"
    r"(?![a-zA-Z])|[<>=]|\\frac\s*\{\s*d"
)
# The limits of a sum are no powers, and what a limit goes to is no answer. None that would be long to go through: no
# power, product or factorial, three digits.
_LIMITS = re.compile(
    r"\\(?:lim|sum|prod|int)(?![a-zA-Z])(?:\s*[_^]\s*(?:"
    r"\{(?:[a-zA-Z\s=+,/-]|\\(?:infty|to|rightarrow|pi|geq?|leq?)(?![a-zA-Z])|\d{1,3}(?!\d))*\}"
    r"|-?\d(?!\d)|\\infty|[a-zA-Z])){1,2}"
)
# Factorials of a series' index, as 1/n! or 1/(2n+1)!, which go as the series is brought to a closed form.
_OF_AN_INDEX = re.compile(r"(?<![\w)!])(?:[a-z]|\(\d?[a-z](?:[-+]\d)?\))!(?!!)")
# What runs in an integral, a sum or a limit.
_BOUND = re.compile(
    r"\\(?:sum|prod)\s*_\s*\{?\s*([a-zA-Z])\s*=|\\lim\s*_\s*\{?\s*([a-zA-Z])|(?<!\\)d\s*([a-zA-Z])(?![a-zA-Z])"
)
_BINDING = re.compile(r"\\(?:int|iint|oint|sum|prod|lim)(?![a-zA-Z])")
_APPLIED = re.compile(r"(?<![a-zA-Z\\])[fghFGPuv]'*\s*\(")
_MAX_NESTING = 12
_DIGITS = 40


def verify(gold: str, answer: str) -> bool:
    """Whether math-verify calls two scalars, equations or inequalities the same, and no digit speaks against it."""
    if any(_UNSAFE.search(text) or _NO_VALUE.search(text) for text in map(_without_limits, (gold, answer))):
        return False
    if any(map(_holds_an_equation, (gold, answer))):
        return False
    if any(map(OPERATION.search, (gold, answer))) or any(map(_speaks_of_terms, (gold, answer))):
        return False
    if not any(map(_WORTH_ASKING.search, (gold, answer))) or not (_is_balanced(gold) and _is_balanced(answer)):
        return False
    from math_verify import verify as library_verify

    with _numbers_only():
        golds, answers = _parse(gold), _parse(answer)
        if not golds or not answers or any(isinstance(parsed[0], str) for parsed in (golds, answers)):
            return False
        golds, answers = ([_summed(parsed[0]), *parsed[1:]] for parsed in (golds, answers))
        if None in (golds[0], answers[0]):
            return False
        values = _number(golds[0]), _number(answers[0])
        if None not in values and not _agree(*values):
            return False
        # no timeout of its own: that is a signal, which works on the main thread only; the worker is killed instead
        return library_verify(golds, answers, allow_set_relation_comp=True, timeout_seconds=None)


def _without_limits(text: str) -> str:
    """The text without those of its only sum; the terms of several, one inside another, would multiply."""
    if len(_LIMITS.findall(text)) != 1:
        return text
    return _LIMITS.sub("", _OF_AN_INDEX.sub("", text) if "\\sum" in text else text)


def _holds_an_equation(text: str) -> bool:
    """Whether an equals sign stands inside of brackets: math-verify does not see what is done to the equation."""
    text, depth = re.sub(r"_\s*\{[^{}]*\}|\\begin.*\\end", "", text, flags=re.DOTALL), 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if char == "=" and depth > 0 and "\\{" not in text:
            return True
    return False


def _speaks_of_terms(text: str) -> bool:
    """Whether a letter in an integral, a sum or a limit may depend on what runs in it: math-verify takes the x_i of a
    sum, and the v of an integral over t, for constants, and f(x) for a product."""
    if not _BINDING.search(text):
        return False
    bound = _BOUND.findall(text)
    runs = "".join(letter for pair in bound for letter in pair)
    if (
        _APPLIED.search(text)
        or not runs
        or re.search(rf"_\s*(?:[{runs}]|\{{[^{{}}=]*[{runs}][^{{}}=]*\}})", _LIMITS.sub("", text))
    ):
        return True
    if "\\int" not in text:
        return False
    words = re.sub(r"\\[a-zA-Z]+|(?<![a-zA-Z])(?:ln|log|exp|sin|cos|tan)", " ", _LIMITS.sub("", text))
    letters = set(re.findall("[a-zA-Z]", re.sub(r"d\s*[a-zA-Z](?![a-zA-Z])", "", words)))
    return not letters <= {*runs, "e", "i"}


def _is_balanced(text: str) -> bool:
    """Whether brackets close, of whatever kind, and are not nested deeper than in any answer."""
    depth = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if not 0 <= depth <= _MAX_NESTING:
            return False
    return depth == 0


def _agree(a, b) -> bool:
    import sympy

    apart, size = abs(a - b), max(abs(a), abs(b))
    return apart == 0 or sympy.N(apart / size) < sympy.Float(10) ** (-_DIGITS // 2)


def _parse(text: str) -> list:
    from math_verify import LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that we switched its timeout off
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text.replace("\\text{degree}", ""))
    # its list of units holds most single letters: 2m and 2t would both be 2
    normalization = replace(LatexExtractionConfig().normalization_config, units=False)
    config = (LatexExtractionConfig(boxed_match_priority=0, normalization_config=normalization),)
    # None is no limit, which its signature leaves out
    timeout: Any = None
    return parse(f"\\boxed{{{text}}}", config, fallback_mode="no_fallback", parsing_timeout=timeout)


@contextlib.contextmanager
def _numbers_only() -> Iterator[None]:
    """The LaTeX parser hands the digits it finds to sympy's parser of Python text, which evaluates what it is given.
    Meanwhile that parser is replaced by one that knows decimal numbers and nothing else."""
    import sympy.physics.units  # names its units through that parser when it is imported, which the LaTeX parser does
    from sympy.parsing import sympy_parser

    def parse_number(text: str, *_: object, **__: object) -> sympy.Expr:
        if match := _FRACTION.fullmatch(text):
            return sympy.Rational(int(match[1]), int(match[2]))
        if not _NUMBER.fullmatch(text):
            raise SyntaxError("not a decimal number")
        return sympy.Integer(int(text)) if text.isdigit() else sympy.Float(text)

    evaluating = sympy_parser.parse_expr
    sympy_parser.parse_expr = parse_number
    try:
        yield
    finally:
        sympy_parser.parse_expr = evaluating


def _summed(expression):
    """With closed forms for its sums and products; None where one is not found. Computing an infinite series, sympy
    would compile text that is made of the answer."""
    from sympy import Basic, Product, Sum

    if not isinstance(expression, Basic) or not expression.has(Sum, Product):
        return expression
    closed = expression.doit()
    return None if closed.has(Sum, Product) else closed


def _number(expression):
    """The value of a constant expression to forty digits; None where it has variables or none is found."""
    from sympy import Expr

    if not isinstance(expression, Expr) or expression.free_symbols:
        return None
    try:
        value = expression.doit().evalf(_DIGITS)
        complex(value)  # raises where no number came out
    except Exception:  # sympy raises anything for what has no value: a limit, a division by zero, a deep nesting
        return None
    return value if value.is_finite else None
