"""The tokens of a written value: numbers, commands, names and signs."""

import re
from fractions import Fraction

from siri.rewards.grading.derivatives import QUOTIENT
from siri.rewards.grading.vocabulary import CALLED, LONGEST_PLAIN, PLAIN

_TOKEN = re.compile(
    r"\s*(?:"
    r"(?P<recurring>\d*\.(?:\d*\\(?:overline|bar)\s*(?:\{\s*\d+\s*\}|\d)|\d*\\dot\s*(?:\{\d\}|"
    r"\d)(?:\d*\\dot\s*(?:\{\d\}|\d))?))"
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


# Words that a product of letters is not taken for: "not 0" would be zero.
_SPOKEN = frozenset(
    re.findall(
        r"\w+",
        "not nor non none no never but than all any the for are was has had can may must its one two who why how yes "
        "nope wrong below almost out off far bad ill sub over under more less near like",
    )
)
_VOWEL = re.compile("[aeiou]")
_DENIED = re.compile(r"[a-z]n\s*'\s*t(?![a-z])")


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
            called = text[match.end() :].lstrip()[:1] in ("(", "[")
            spoken = _is_spoken(match["word"]) and not (called and match["word"] in CALLED)
            if spoken or _DENIED.match(text, max(match.end() - 2, 0)):
                raise NotRead(match["word"])
            pairs += _names(match["word"], called=called)
        elif not (kind == "command" and match["command"] in ("\\left", "\\right")):
            pairs.append((kind, match[kind]))
        place = match.end()
    return pairs


def _is_spoken(word: str) -> bool:
    """Whether letters in a row are a word and no product, whose letters are in order or have no vowel amid them."""
    if word.casefold() in _SPOKEN:
        return True
    if len(word) < 4 or not word[1:].islower() or not _VOWEL.search(word[1:]):
        return False
    if list(word) in (sorted(word), sorted(word, reverse=True)):
        return False
    names = _names(word, called=False)
    return all(kind == "letter" for kind, _ in names)


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
