r"""Feet and inches by their signs: 8' 4'' is 8 feet and 4 inches, in whichever of the signs for primes and quotes.

One prime is a derivative and a minute as well, so that it says feet only to a gold answer that has it, or a unit.
"""

import re

_SPACE = r"(?:\s|~|\\[,;: ])*+"
_NUMBER = r"(\d+(?:\.\d+)?(?:\s*\\[dt]?frac\s*\{\d+\}\s*\{\d+\})?)"
_FEET = r"(?:['\u2032\u2019\u02b9]|\^\s*(?:\{\s*\\prime\s*\}|\\prime(?![a-zA-Z])))"
_INCHES = (
    r"(?:['\u2032\u2019\u02b9]{2}|[\"\u2033\u201d]|\\(?:text|mathrm)\s*\{\s*(?:''|[\"\u2033\u201d])\s*\}|"
    r"\^\s*\{\s*\\prime\s*\\prime\s*\})"
)
_LENGTH = re.compile(
    rf"\s*\$?\s*(?:{_NUMBER}{_SPACE}{_FEET}{_SPACE}(?:-{_SPACE})?(?={_NUMBER}{_SPACE}{_INCHES}))?"
    rf"(?:{_NUMBER}{_SPACE}(?:(?P<in>{_INCHES})|(?P<ft>{_FEET})))\s*\$?\s*"
)
_SIGN = re.compile(r"['\"\u2032\u2033\u2019\u201d\u02b9]|\\prime(?![a-zA-Z])")
_UNIT = re.compile(r"f(?:ee|oo)?t|inch|(?<![a-zA-Z])in(?![a-zA-Z])", re.IGNORECASE)


def feet_and_inches(text: str) -> str:
    """A length with a prime for feet and two for inches, in words; whatever else as it is."""
    if not _SIGN.search(text) or (match := _LENGTH.fullmatch(text)) is None:
        return text
    feet, _, amount = match.groups()[:3]
    whole = f"{feet}\\text{{ feet }}" if feet else ""
    return f"{whole}{amount}\\text{{ {'inches' if match['in'] else 'feet'}}}"


def has_needless_sign(gold: str, answer: str) -> bool:
    """Whether an answer is a length by its signs, and the gold answer has neither sign nor unit of one."""
    if not _SIGN.search(answer) or not _LENGTH.fullmatch(answer):
        return False
    return not _SIGN.search(gold) and not _UNIT.search(gold)
