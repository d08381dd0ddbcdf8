r"""Derivatives in the notation of Leibniz: each is a name of its own, which nothing is computed of.

As a quotient of products \frac{dy}{dx} would be y/x, and as an operation on a letter it would be zero. With respect to
x it is the name that y' is.
"""

import re

# The quotient, in one pattern for the tokens: what is differentiated, how often, and by what.
QUOTIENT = (
    r"\\frac\s*\{\s*(?:d|\\partial(?![a-zA-Z]))\s*(?:\^\s*\{?\s*\d\s*\}?\s*)?"
    r"(?:[a-zA-Z]|\\(?!frac|sqrt|cdot|times)[a-zA-Z]|[(\[])(?:[^{}]|\{[^{}]*\}){0,80}\}"
    r"\s*\{\s*(?:(?:d|\\partial(?![a-zA-Z]))\s*(?:[a-zA-Z](?![a-zA-Z])|[a-zA-Z](?=\s*\\?[d])|\\[a-zA-Z]+)"
    r"(?:_(?:\w|\{\w+\}))?\s*(?:\^\s*\{?\s*\d\s*\}?)?\s*)+\}"
)
_NAMED = re.compile(r"\\frac\{d(?:\^(\d))?([a-zA-Z])\}\{dx(?:\^(\d))?\}")
# dy/dx and \partial f/\partial x, without \frac.
_LEVEL = re.compile(
    r"(?<![a-zA-Z\\_^])(d|\\partial(?![a-zA-Z])) ?(\^\{?\d\}?)? ?(\\?(?<!\\)[a-zA-Z]|\\[a-zA-Z]+) ?/ ?"
    r"((?:d|\\partial(?![a-zA-Z])) ?(?:[a-zA-Z](?![a-zA-Z(])|\\[a-zA-Z]+)(?: ?\^\{?\d\}?)?)"
)
# A derivative that is no name: \frac{d}{dx} of something, which is yet to be computed.
OPERATION = re.compile(r"\\partial(?![a-zA-Z])|\\frac\s*\{\s*d[^{}]*(?:\{[^{}]*\}[^{}]*)*\}\s*\{\s*d\s*(?:[a-zA-Z]|\\)")


def name_of(quotient: str) -> str:
    """The name that a derivative has as a symbol."""
    plain = re.sub(r"\^\{(\d)\}", r"^\1", re.sub(r"\s+", "", quotient))
    match = _NAMED.fullmatch(plain)
    if match and (match[1] or "1") == (match[3] or "1"):
        return match[2] + "'" * int(match[1] or 1)
    return plain


def as_fractions(text: str) -> str:
    r"""`text` with \frac{dy}{dx} for dy/dx."""
    return _LEVEL.sub(lambda match: f"\\frac{{{match[1]}{match[2] or ''}{match[3]}}}{{{match[4]}}}", text)
