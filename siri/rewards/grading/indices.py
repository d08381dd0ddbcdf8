r"""The index of a sequence: what it runs through, and what is said of another term than the n-th.

A sequence begins with its first term, so that n >= 1 goes without saying, of a formula of n as well; n >= 2 and n >= 0
say more or less than that. Of a_{n+1} = 2n - 1 the right side is no formula of a_n.
"""

import re

from siri.rewards.grading.grammar import WHOLE_NAMES
from siri.rewards.grading.readings import MAX_PARSED_CHARS
from siri.rewards.grading.structure import RELATION, split, without_text

_POSITIVE = (
    r"\\in\s*(?:\\mathbb\s*\{?\s*(?:N\s*\}?\s*[_^]\s*\{?\s*(?:[+*]|>\s*0|\\ge\s*1)|Z\s*\}?\s*[_^]\s*\{?\s*(?:\+|>\s*0|"
    r"\\ge\s*1))\s*\}?|\\\{\s*1\s*,\s*2\s*,(?:\s*3\s*,)?(?:\s*4\s*,)?\s*(?:\\[lc]?dots|\.\.\.)\s*\\\})"
)
# Beside a bound that is said, any of these sets has the same numbers.
_WHOLE = r"\\in\s*\\mathbb\s*\{?\s*[NZ]\s*\}?\s*(?:[_^]\s*\{?\s*[+*]\s*\}?)?"
_FROM_FIRST = (
    r"(?:\\ge\s*1(?![\d.])|>\s*0(?![\d.])|=\s*1\s*,\s*2\s*,(?:\s*3\s*,)?(?:\s*4\s*,)?\s*(?:\\[lc]?dots|\.\.\.))"
)
_DOMAIN = re.compile(
    r"[,;(\s]\s*(?:(?:for|where|with|when|if)\s+|\\forall\s*)?(?:(?:all|any|every|each)\s+)?(?:"
    r"(?:(?:the\s+)?(?:positive\s+)?(?:integers?|whole\s+numbers?|natural\s+numbers?)\s+)?"
    rf"(?P<bound>[nkm])\s*{_FROM_FIRST}"
    rf"(?:\s*(?:,|and\s|\(|\s)\s*(?:(?P=bound)\s*)?{_WHOLE}\s*\)?|\s*,?\s*(?:and\s+)?(?P=bound)\s+is\s+an\s+integer)?"
    r"|(?:the\s+)?positive\s+(?:integers?|whole\s+numbers?)\s+(?P<counted>[nkm])"
    rf"|(?P<whole>[nkm])\s*{_WHOLE}\s*(?:,|and\s)\s*(?:(?P=whole)\s*)?{_FROM_FIRST}"
    r"|(?P<said>[nkm])\s+(?:is|being)\s+(?:an?|any)\s+positive\s+(?:integer|whole\s+number)"
    rf"|(?P<member>[nkm])\s*{_POSITIVE}"
    r"|(?P<named>[nkm])\s*(?:为|是)\s*正整数"
    r")\s*\)?\s*\.?"
)
_SEPARATOR = re.compile(r"[,;(]|\s(?=(?:for|where|with|when|if)\s|\\forall)|(?<=[\w)}])\s(?=\(?\s*[nkm]\s*[>=\\])")
_TERM = re.compile(r"\s*[a-zA-Z]_\{?([a-z])\}?\s*=[^=]*")
_FUNCTION = re.compile(r"\s*[a-zA-Z]\(([a-z])\)\s*=[^=]*")
_TOTAL = re.compile(r"\s*[ST]\s*=[^=]*")
# The condition of a piece, from a whole number on, and that its letter is whole.
_FROM = re.compile(
    rf"(?P<bound>\s*(?P<letter>[nkm])\s*(?:=|>|\\ge )\s*[1-9]\d{{0,5}})\s*(?:,|and\s|\(|\s)\s*(?P=letter)\s*{_WHOLE}\)?"
)
_INDEXED = re.compile(r"\s*(?P<name>[a-zA-Z])_\{(?P<index>(?:[^{}]|\{[^{}]*\}){1,40})\}\s*")
_SUBSCRIPT = re.compile(r"_(?:\w|\{[^{}]*\})")
_CHOSEN = re.compile(r"\\binom\s*\{[^{}]*\}\s*\{\s*([a-z])\s*\}")


def without_domain(text: str) -> str:
    """The formula of a sequence, or of n, without a domain that is all positive whole numbers."""
    if len(text) > MAX_PARSED_CHARS or not re.search(r"\\ge |>|ldots|\.\.\.|nteger|mathbb|hole|正整数", text):
        return text
    plain = without_text(text)
    for separator in _SEPARATOR.finditer(plain):
        match = _DOMAIN.fullmatch(plain, separator.start())
        letter = next(filter(None, match.groupdict().values())) if match else ""
        body = plain[: match.start()].rstrip(" ,;(") if match else ""
        if letter and _runs(body, letter):
            return body
    return text


def _runs(body: str, letter: str) -> bool:
    """Whether it is a formula of this index. Without a name only one of n is, and none with pi, which may be a family
    of angles; x = 2n is one of solutions."""
    if RELATION.search(body) or any(body.count(a) != body.count(b) for a, b in ("()", "{}", "[]")):
        return False
    parts = split(body, ",;")
    matches = [_TERM.fullmatch(part) or _FUNCTION.fullmatch(part) for part in parts]
    if all(matches):
        return letter in WHOLE_NAMES and all(match[1] == letter for match in matches if match)
    total = _TOTAL.fullmatch(body) is not None
    plain = "=" not in body and "\\pi" not in body and "\\begin" not in body and "\\{" not in body
    stands = re.search(r"(?<![a-zA-Z])n(?![a-zA-Z])", re.sub(r"\\[a-zA-Z]+", " ", body))
    return letter == "n" and len(parts) == 1 and (total or plain) and stands is not None


def without_whole(condition: str) -> str:
    r"""`n \ge 2` of `n \ge 2, n \in \mathbb{N}^*`: an index is whole."""
    match = _FROM.fullmatch(condition)
    return match["bound"] if match else condition


def is_shifted(side: str, formula: str) -> bool:
    r"""Whether it names another term than the one that the formula is of: a_{n+1} = 2n - 1, S_{2n} = n^2. A formula
    with terms of the sequence says what follows from them, and T_{r+1} = \binom{n}{r}... is the term of a binomial."""
    match = _INDEXED.fullmatch(side)
    if match is None:
        return False
    index, rest = (re.sub(r"\\[a-zA-Z]+", " ", text) for text in (match["index"], _SUBSCRIPT.sub("", formula)))
    letters = set(re.findall("[a-z]", index)) & set(re.findall("[a-z]", rest))
    if not letters or not re.search(r"[-+*/^\d]|\\frac", match["index"]) or f"{match['name']}_" in formula:
        return False
    chosen = _CHOSEN.search(formula)
    return not (match["name"] == "T" and chosen and chosen[1] in letters)
