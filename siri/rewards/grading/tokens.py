"""The tokens of a written value: numbers, commands, names and signs."""

import re
from fractions import Fraction

from siri.rewards.grading.derivatives import QUOTIENT
from siri.rewards.grading.vocabulary import CALLED, LONGEST_PLAIN, PLAIN

_TOKEN = re.compile(
    r"\s*(?:"
    r"(?P<recurring>\d*\.(?:\d*\\(?:overline|bar)\s*(?:\{\s*\d+\s*\}|\d)|\d*\\dot\s*(?:\{\d\}|\d)(?:\d*\\dot\s*(?:\{\d\}|\d))?))"
    r"|(?P<number>\d+(?:\.\d*)?|\.\d+)"
    r"|(?P<degree>\\text\{degree\})"
    rf"|(?P<derivative>{QUOTIENT})"
    r"|(?P<command>\\[a-zA-Z]+|\\[{}%|])"
    r"|(?P<word>[a-zA-Z]+)"
    r"|(?P<sign>[-+*/^_!'(){}\[\]|,])"
    r")",
    re.ASCII,
)
_REPEATED = re.compile(
    r"(\d*)\.(\d*?)(?:\\(?:overline|bar)|\\dot)\s*\{?\s*(\d+)\s*\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?", re.ASCII
)


class NotRead(Exception):
    """The text is not a value of this grammar."""


def recurring(text: str) -> Fraction | None:
    r"""The value of `0.1\overline{6}`, `0.\dot{1}4285\dot{7}`; None for other text."""
    match = _REPEATED.fullmatch(text)
    if match is None:
        return None
    whole, fixed, first, middle, last = match.groups(default="")
    period = first + middle + last
    shift = 10 ** len(fixed)
    return Fraction(int((whole + fixed) or 0), shift) + Fraction(int(period), (10 ** len(period) - 1) * shift)


def tokens(text: str) -> list[tuple[str, str]]:
    pairs, place, text = [], 0, text.strip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise NotRead(text[place : place + 20])
        kind = match.lastgroup or ""  # every alternative has a name
        if kind == "word":
            pairs += _names(match["word"], called=text[match.end() :].lstrip()[:1] in ("(", "["))
        elif not (kind == "command" and match["command"] in ("\\left", "\\right")):
            pairs.append((kind, match[kind]))
        place = match.end()
    return pairs


def _names(word: str, *, called: bool) -> list[tuple[str, str]]:
    """Letters without a backslash: names of functions and constants, the longest first, and else single variables."""
    if called and word in CALLED:
        return [("name", word)]
    names, place, letters = [], 0, 0
    while place < len(word):
        ends = range(min(len(word), place + LONGEST_PLAIN), place + 1, -1)
        name = next((word[place:end] for end in ends if word[place:end] in PLAIN), "")
        names.append(("name", name) if name else ("letter", word[place]))
        letters += not name
        place += len(name) or 1
    if letters > 2 and letters < len(names):
        raise NotRead(word)  # "single" is no sine
    return names
