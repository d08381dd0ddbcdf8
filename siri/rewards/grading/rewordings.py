r"""Answers of a few usual forms, as the rest of the grammar has them: "1 in 6", "12 R 3", "Yes, it is possible"."""

import itertools
import re

from siri.rewards.grading.lengths import feet_and_inches
from siri.rewards.grading.logic import with_quantifiers
from siri.rewards.grading.structure import MONTH, split

_IN = re.compile(
    r"^\s*(?:\\text\{\s*)?([1-9]\d{0,5})\s*(?:\}\s*)?(?:\\text\{\s*)?\bin\s+(?:every\s+)?(?:\}\s*)?"
    r"([1-9]\d{0,5})\s*\}?\s*$"
)
_ONLY = re.compile(r"(?<=[IVA-J\d)])\s*(?:\\text\{\s*only\s*\}|\s+only\s*(?P<close>\}?))\s*$")
# A set by its condition, in plain braces, which elsewhere only group.
_PLAIN_BUILDER = re.compile(
    r"\A\s*\$?\{\s*([a-zA-Z])\s*(?:\||:|\\mid(?![a-zA-Z]))((?=[^<>=\u2264\u2265\u2260\\]*[<>=\u2264\u2265\u2260\\])"
    r"(?:[^{}]|\{[^{}]*\})*)\}\$?\s*\Z"
)
# Names of figures, and what says that there is no other solution.
_FIGURE = re.compile(r"\\(angle|triangle)\s*\{\s*([A-Z]{1,3})\s*\}")
_PARALLEL = re.compile(r"\A\s*\$?\s*([A-Z]{2}|[a-z])\s*\\\|\s*([A-Z]{2}|[a-z])\s*\$?\s*\Z")
_POINT = re.compile(r"\A\s*(?:\\text\{\s*)?(?:the\s+)?[Pp]oint\s*\}?\s*\$?([A-Z])\$?\s*\}?\s*\Z")
_ONLY_THIS = re.compile(
    r"\A\s*(?:\\text\{\s*[Oo]nly\s*\}|[Oo]nly(?=\s))\s*(?=\$?(?:[a-zA-Z]\s*=\s*)?-?\d{1,20}\$?\s*\Z)"
)
# Of tuples with a parameter; of functions it goes without saying.
_ANY_REAL = re.compile(
    r"(?<=\))(?:\s|,)*(?:\\text\{[\s,]*)?for\s+(?:any|all|every|each)\s+real\s*(?:numbers?\s*)?\}?\s*\$?([a-z])\$?\s*\}?\s*\Z"
)
_FOR_EACH = re.compile(r"(?:\\text\{\s*for\s*\}|(?<=[\s})])for(?=\s))\s*\$?([knmj]\s*=\s*-?\d+\s*,)")
_YES = re.compile(
    r"^\s*(?:\\text\{\s*)?yes[,.;:]?\s+(?:it|this|that|they|there|he|she|we|you|one)\s+(?:is|are|does|do|can|will|"
    r"could|must|always)"
    r"(?:\s+(?:always|indeed|possible|true|so|exists?|holds?|a|be|done|solution|such))*\s*\.?\s*\}?\s*$"
    r"|^\s*(?:\\text\{\s*)?yes[,.;:]?\s+(?:(?:it|this|that)(?:'|\u2019)s|they(?:'|\u2019)re)"
    r"(?:\s+(?:always|indeed|possible|true|so|correct|convergent|a))+\s*\.?\s*\}?\s*$"
    r"|^\s*(?:\\text\{\s*)?yes[,.;:]?\s+(?:such|these)(?:\s+an?)?\s+\w{2,15}\s+(?:does\s+|do\s+)?exists?\s*\.?\s*\}?\s*$",
    re.IGNORECASE,
)
_NO = re.compile(
    r"^\s*(?:\\text\{\s*)?no[,.;:]?\s+(?:it|this|that|they|there|he|she|we|you|one)\s*(?:(?:(?:is|are|does|do|can|"
    r"will|could|must)\s*"
    r"(?:not|n't)|isn't|aren't|can't|doesn't|don't)(?:\s+(?:always|possible|true|so|exist|hold|a|be|done|solution|"
    r"such))*|(?:is|are)\s+"
    r"(?:impossible|false|no solution))\s*\.?\s*\}?\s*$"
    r"|^\s*(?:\\text\{\s*)?no[,.;:]?\s+(?:(?:it|this|that)(?:'|\u2019)s|they(?:'|\u2019)re)\s+"
    r"(?:impossible|false|not(?:\s+(?:always|possible|true|so|correct))?)\s*\.?\s*\}?\s*$"
    r"|^\s*(?:\\text\{\s*)?no[,.;:]?\s+no\s+such\s+\w{2,15}\s+exists?\s*\.?\s*\}?\s*$",
    re.IGNORECASE,
)
_REMARK = re.compile(
    r"(?<=[\d})])\s*(?:\\[;,: ]|\s)*(?:\\text\{\s*)?\(\s*(?:\\text\{\s*)?(?:(?:a\s+)?(?:double|triple|repeated|"
    r"simple)\s+root|"
    r"(?:with\s+)?multiplicity\s+(?:two|three|\d)|[^()=]{0,12}=[^()=]{1,20}\\text\{\s*,?\s*(?:is\s+|"
    r"was\s+)?(?:rejected|extraneous|discarded|invalid|"
    r"not valid)\s*)\s*\}?\s*\)\s*\}?\s*$"
)
_REMAINDER = re.compile(
    r"^\s*(\d+)\s*,?\s*(?:\\text\s*\{\s*,?\s*(?:with\s+)?(?:a\s+)?(?:r|rem\.?|"
    r"remainder)(?:\s+of)?:?\s*(?:\}\s*(\d+)|(\d+)\s*\})|"
    r"(?:with\s+)?(?:a\s+)?(?:r|rem\.?|remainder)(?:\s+of)?:?\s*(\d+))\s*$",
    re.IGNORECASE,
)
_QUOTIENT = re.compile(
    r"^\s*(?:\\text\s*\{\s*)?quotient:?\s*(?:\}\s*)?(\d+)\s*,?\s*(?:\\text\s*\{\s*,?\s*(?:and\s+)?|"
    r"and\s+)?remainder:?\s*(?:\}\s*)?(\d+)\s*\}?\s*$",
    re.IGNORECASE,
)
# "increased by 20%", "a 20% increase"
_AMOUNT = r"(?:\}\s*)?\$?\s*(\d+(?:\.\d+)?)\s*\\?%\s*\$?\s*"
_CHANGED = re.compile(
    r"^\s*\$?\s*(?:\\text\s*\{\s*)?(?:it\s+|an?\s+)?(in|de)creas(?:e|es|ed)\s+(?:of|by)\s*" + _AMOUNT + r"\}?\s*$",
    re.IGNORECASE,
)
_CHANGE = re.compile(
    r"^\s*\$?\s*(?:\\text\s*\{\s*)?an?\s*" + _AMOUNT + r"(?:\\text\s*\{\s*)?(in|de)crease\s*\}?\s*$", re.IGNORECASE
)
_ORDINAL = re.compile(r"\d(?:st|nd|rd|th)(?![a-z])", re.IGNORECASE)
_DAYS = (
    re.compile(rf"(?<![a-zA-Z])({MONTH})\.?\s+(?:the\s+)?(\d{{1,2}})(?:st|nd|rd|th)(?![a-zA-Z])", re.IGNORECASE),
    re.compile(
        rf"(?:(?<![a-zA-Z])the\s+)?(?<!\d)(\d{{1,2}})(?:st|nd|rd|th)\s+(?:of\s+)?({MONTH})(?![a-zA-Z])", re.IGNORECASE
    ),
)
_OR_THAT = re.compile(r"(?<=[\d})])(?:\s|~|\\[,;: ])*\(\s*(?:\\text\s*\{\s*)?or\s*\}?(?=[\s\d\\])\s*([^()]+)\)\s*$")
_ANY_ORDER = re.compile(
    r"[\s,;]*+(?:\\text\s*\{[\s,]*)?\(?\s*(?:in (?:any|either) order|any order|order does not matter)\s*\)?\s*\}?\s*$"
)
_OPTION = re.compile(r"^\s*([a-e])\s*\)\s+(?=\S)")
_HEX = re.compile(r"^\s*0x([0-9A-Fa-f]+)\s*$")
_PLACED = re.compile(
    r"^\s*\\text\{\s*(?:(?:is|at)\s+)?(?:the\s+)?(?:line|points?|plane|circle|parabola|curve|function|equation|"
    r"ellipse|hyperbola)\s*\}\s*(?=[^\\\s]|\\frac|\\left)"
)
_FINITE = re.compile(r"\\\}\s*\\cup\s*\\\{")
_ARRANGED = re.compile(r"(?<![a-zA-Z\\}])A_\{?(\d{1,2})\}?\s*\^\s*\{?(\d{1,2})\}?(?!\d)")
_ARITHMETIC = re.compile(r"(?:[\d\s+*/=().,!{}_^-]|A(?=_)|\\(?:cdot|times|frac|binom|left|right)(?![a-zA-Z]))+")
_MULTINOMIAL = re.compile(r"\\[dt]?binom\s*\{\s*(\d{1,3})\s*\}\s*\{\s*(\d{1,3}(?:\s*,\s*\d{1,3})+)\s*\}")
_TUPLES = (
    r"(?P<name>\([a-z](?:\s*,\s*[a-z])+\)\s*=\s*)?"
    r"(?P<tuples>\([^()]*,[^()]*\)(?:\s*[,;]?\s*(?:and\s+|\\text\s*\{\s*and\s*\}\s*)?\([^()]*,[^()]*\)){0,3})"
)
_PERMUTED = re.compile(
    rf"\s*\$?\s*{_TUPLES}\s*\$?\s*,?\s*(?:\\text\s*\{{)?\s*,?\s*"
    r"(?:(?:and|with|plus|along with|together with|or)\s+(?:(?:all|any)\s+)?(?:(?:of\s+)?(?:its|their|the)\s+)?"
    r"(?P<cyclic>cyclic\s+)?permutations?(?:\s+(?:thereof|of (?:it|these|this|them)))?"
    r"|up\s+to\s+(?:an?\s+)?(?P<turned>cyclic\s+)?(?:permutations?|order(?:ing)?))\s*\.?\s*\}?\s*"
)
_ALL_PERMUTED = re.compile(
    r"\s*\$?\s*(?:\\text\s*\{)?\s*(?:all\s+)?(?:(?:of\s+)?the\s+)?(?P<cyclic>cyclic\s+)?(?P<turned>)permutations\s+of\s*\}?"
    rf"\s*\$?\s*{_TUPLES}\s*\}}?\s*\$?\s*",
    re.IGNORECASE,
)
_MOST_PERMUTED = 4


def reworded(text: str) -> str:
    """Answers of a few usual forms, as the rest of the grammar has them."""
    lower = text.lower()
    for needle, pattern, form in _FORMS:
        if needle in lower:
            text = pattern.sub(form, text)
    if "ermutation" in text or "up to" in text:
        text = _permuted(text)
    if "A_" in text and _ARITHMETIC.fullmatch(text):
        text = _ARRANGED.sub(_arranged, text)
    if "\\cup" in text and not re.search(r"\||:|\\mid|[<>]|\\[lg]e", text):
        text = _FINITE.sub(", ", text)
    if _ORDINAL.search(text):
        for day in _DAYS:
            text = day.sub(r"\1 \2", text)
    if "order" in text:
        text = _in_any_order(text)
    text = with_quantifiers(feet_and_inches(text))
    return _MULTINOMIAL.sub(_multinomial, text) if "binom" in text else text


def _in_any_order(text: str) -> str:
    """A list without the remark that its order means nothing, which goes without saying; of a tuple it does not."""
    bare = _ANY_ORDER.sub("", text)
    several = len(split(bare, ",;")) > 1 and not re.match(r"\s*\$?\s*(?:\\left\s*)?[(\[]", bare)
    return bare if several and not re.search(r"\d,\d{3}(?!\d)", bare) else text


def _arranged(match: re.Match) -> str:
    """The ways to put k of n things in a row, as Chinese books write them."""
    of_these, taken = int(match[1]), int(match[2])
    return f"\\frac{{{of_these}!}}{{{of_these - taken}!}}" if taken <= of_these else match[0]


def _multinomial(match: re.Match) -> str:
    parts = [int(part) for part in match[2].split(",")]
    under = "".join(f"{part}!" if not place else f"\\cdot {part}!" for place, part in enumerate(parts))
    return f"\\frac{{{match[1]}!}}{{{under}}}" if sum(parts) == int(match[1]) else match[0]


def _permuted(text: str) -> str:
    """The tuples that "(1, 2, 3) and permutations" stands for."""
    plain = " ".join(text.split())
    match = _PERMUTED.fullmatch(plain) or _ALL_PERMUTED.fullmatch(plain)
    if match is None:
        return text
    orders: list[tuple[str, ...]] = []
    for inside in re.findall(r"\(([^()]*)\)", match["tuples"]):
        members = tuple(member.strip() for member in inside.split(","))
        if len(members) > _MOST_PERMUTED:
            return text
        turned = match["cyclic"] or match["turned"]
        every = (members[start:] + members[:start] for start in range(len(members)))
        orders += every if turned else itertools.permutations(members)
    return (match["name"] or "") + ", ".join(f"({','.join(order)})" for order in dict.fromkeys(orders))


_FORMS: tuple = (
    ("{", _FIGURE, r"\\\1 \2"),
    ("\\|", _PARALLEL, r"\1\\parallel \2"),
    ("oint", _POINT, r"\1"),
    ("nly", _ONLY_THIS, ""),
    ("real", _ANY_REAL, r", \1\\in\\mathbb{R}"),
    ("for", _FOR_EACH, r", \1"),
    ("{", _PLAIN_BUILDER, r"\\{\1\\mid \2\\}"),
    ("in", _IN, r"\\frac{\1}{\2}"),
    ("only", _ONLY, lambda match: match["close"] or ""),
    ("crease", _CHANGED, r"\2\\%\\text{ \1crease}"),
    ("crease", _CHANGE, r"\1\\%\\text{ \2crease}"),
    ("(", _OR_THAT, r" \\text{ or } \1"),
    ("es", _YES, r"\\text{Yes}"),
    ("o", _NO, r"\\text{No}"),
    ("(", _REMARK, ""),
    ("r", _REMAINDER, lambda match: f"{match[1]}\\text{{ R }}{match[2] or match[3] or match[4]}"),
    ("uotient", _QUOTIENT, r"\1\\text{ R }\2"),
    (")", _OPTION, r"(\1) "),
    ("0x", _HEX, lambda match: f"{match[1].upper()}_{{16}}"),
    ("\\text", _PLACED, ""),
)
