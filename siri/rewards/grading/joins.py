"""Words and signs that join answers: "and", "or", "respectively".

"Or" leaves a choice that "and" and a comma do not leave. Only where all parts are values, or solutions for one unknown,
both list the same: 2 and 3 are the solutions if x = 2 or x = 3. Of words, statements and several unknowns they are not.
"""

import re

from siri.rewards.grading.structure import RELATION, bracketed, key, split, without_text
from siri.rewards.grading.units import counted
from siri.rewards.grading.vocabulary import GREEK, PLAIN

JUST_OR = re.compile(r",?\s*\\text\{\s*,?\s*(?:or|OR)\s*\}|,?\s+(?:or|OR)\s+")
AND_OR = re.compile(
    r"(?<=[)\]}\d])(?:or|and)(?=[-(\[{\\A-Z\d])|,?\s*\\&\s*|,?\s*\\text\{\s*,?\s*(?:and|or|AND|OR)\s*\}|"
    r",?\s+(?:and|or|AND|OR)\s+"
)
_LOGIC = re.compile(r"\s*\\(?:lor|vee|land|wedge)(?![a-zA-Z])")
_OR = re.compile(r"(?<![a-zA-Z\\])(?:or|OR)(?![a-zA-Z])|\\(?:lor|vee)(?![a-zA-Z])")
_EITHER = re.compile(rf"{JUST_OR.pattern}|\\(?:lor|vee)(?![a-zA-Z])")
_SAID_AND = re.compile(r"(?<![a-zA-Z\\])(?:and|AND)(?![a-zA-Z])|\\(?:land|wedge)(?![a-zA-Z])|\\&")
_BETWEEN = re.compile(rf"{AND_OR.pattern}|{_LOGIC.pattern}")
_WORD = re.compile(
    r"(?:[a-zA-Z]\s+)?([a-zA-Z]{2,})|[a-zA-Z]?\s*[\u4e00-\u9fff]|\(\s*(?:\d{1,2}|[a-zA-Z]|[ivxIVX]{2,4})\s*\)$"
)
_SAID = re.compile(r"(?<![a-zA-Z\\])(?:is|are|has|have|divides|lies)(?![a-zA-Z])")
_ALL_TEXT = re.compile(r"\s*\\text\{([^{}]*)\}\s*")
_VALUE = re.compile(r"[\d\\=<>]")
# What says something of two things, and gives no value to either.
_STATED = re.compile(
    r"\\(?:n?mid|not|n?parallel|perp|n?(?:sub|sup)set(?:n?eqq?)?|n?cong|n?sim|simeq|propto|ni|to|implies|iff|"
    r"(?:[lL]ong)?(?:left)?[rR]ightarrow)(?![a-zA-Z])|\\(?:not)?in(?![a-zA-Z])\s*(?![\s\[(\\])"
)
_INSIDE = re.compile(r"\([^()]*\)|\{[^{}]*\}")
_MODULUS = re.compile(r"mod\s*+\{?\s*+(\w+)")
_DECLARED = re.compile(r"\s*[a-zA-Z](?:\s*,\s*[a-zA-Z])*\s*\\in\s*\\mathbb.*", re.DOTALL)
_NAMED = re.compile(
    r"\s*(?:\|?[A-Z]{2,3}\|?|[a-zA-Z](?:_\w)?|\\(?:angle|triangle|overline|widehat)\s*\{?\s*[A-Z]{1,3}\s*\}?)\s*"
)
_SOUGHT = re.compile(r"\s*[txyz](?:_\w)?\s*")
_LETTER = re.compile(r"(?:\\([a-zA-Z]+)|[a-zA-Z])(?:_\{?\w\}?)?")
_MEMBER = re.compile(r"\s*([a-zA-Z]|\\[a-z]+)\s*\\(?:not)?in(?![a-zA-Z])")
_INDEX = re.compile(r"_\{?\d\}?$")
_RESPECTIVELY = re.compile(r"[\s,;(]*(?:\\text\{[\s,;(]*)?(?<![a-zA-Z])respectively[\s.)]*\}?", re.IGNORECASE)


def listed(text: str) -> str:
    """With commas for "and" and "or". A sign of logic joins solutions only, and no statements."""
    text = AND_OR.sub(",", text)
    return _LOGIC.sub(",", text) if "=" in text else text


def says_or(text: str) -> bool:
    """Whether it leaves a choice."""
    return bool(_OR.search(text))


def joined_otherwise(gold: str, answer: str) -> bool:
    """Whether one says that all of several statements hold, and the other that some of them does. Of one unknown "x = 2
    and x = 3" and "x = 2 or x = 3" are the same solutions."""
    gold, answer = texts = tuple(_ALL_TEXT.sub(r"\1", text) for text in (gold, answer))
    if says_or(gold) == says_or(answer):
        mixed = says_or(gold) and any(map(_SAID_AND.search, texts)) and _leaves_a_choice(*texts)
        return mixed and _grouped(gold) != _grouped(answer)
    if _leaves_a_choice(*texts):
        return True
    if all(text.count("\\equiv") > 1 for text in texts):
        return all(re.search(r"(?<![a-zA-Z])(?:and|or)(?![a-zA-Z])", text) for text in texts)
    if says_or(gold) and _lists_all(gold, answer):
        return False
    names = [_names(text) for text in texts]
    several = [1 < len(each) == len(set(each)) for each in names]
    unknowns = [{_INDEX.sub("", name) for name in each} for each in names]
    if several[0] and len(unknowns[0]) == len(names[0]) and not names[1] and len(_parts(answer)) == len(names[0]):
        return True  # of one of them nothing is said
    return all(several) or any(
        each and text is texts[says_or(answer)] and (bracketed(other) is not None or len(split(other, "=")) != 2)
        for each, text, other in zip(several, texts, texts[::-1], strict=True)
    )


def _leaves_a_choice(*texts: str) -> bool:
    """Whether both join words, names, statements or conditions on several unknowns, of which "or" leaves a choice."""
    lists = [_parts(text) for text in texts]
    if min(map(len, lists)) < 2:
        return False
    parts = lists[0] + lists[1]
    if any(map(_is_worded, lists)) or any(map(_is_stated, parts)):
        return True
    if all(re.fullmatch(r"\s*[a-zA-Z]\s*", part) for part in parts):
        return True  # letters are names, or statements
    if all(len(sides := split(part, "=")) == 2 and all(map(_SOUGHT.fullmatch, sides)) for part in parts):
        return True  # x = y and x = z
    moduli = {modulus for part in parts for modulus in _MODULUS.findall(part)}
    if len(moduli) > 1:
        return True
    if not any(RELATION.search(part) or _MEMBER.match(part) for part in parts):
        return False
    return len(set().union(*map(_unknowns, parts))) > 1


def _grouped(text: str) -> set[frozenset[str]]:
    """What "or" leaves a choice of, where "and" joins some of it: p and q, or r, is not p and r, or q."""
    return {frozenset(map(key, _parts(part))) for part in _EITHER.split(without_text(text)) if part.strip(" ,")}


def _parts(text: str) -> list[str]:
    """What "and", "or" and commas join, without what says only that a letter is a number."""
    parts = [part.strip(" .") for part in split(_BETWEEN.sub(",", without_text(text)), ",;") if part.strip(" .")]
    return [part for part in parts if not _DECLARED.fullmatch(part)] or parts


def _is_worded(parts: list[str]) -> bool:
    """Whether one of them is in words. A word before the first value may be said of all of them, "the roots are 2 or
    3"; behind a value it is what was counted."""
    for place, part in enumerate(parts):
        if place and _SAID.search(part):
            return True
        word = _WORD.match(part)
        if word is None or word[1] in PLAIN or "=" in part:
            continue
        if place or part.startswith("(") or not _VALUE.search(part):
            return True
    return False


def _is_stated(part: str) -> bool:
    """Whether it is a statement about things that are given, as AB = AC; x = a is a solution."""
    outside = _INSIDE.sub("()", part)
    if _STATED.search(outside) or outside.count("|") % 2:  # 3 | n
        return True
    sides = split(part, "=")
    return len(sides) > 1 and all(map(_NAMED.fullmatch, sides)) and not _SOUGHT.fullmatch(sides[0])


def _unknowns(part: str) -> set[str]:
    """The letters that a condition is on: of an inequality all, of an equation those on its left."""
    if member := _MEMBER.match(part):
        return {member[1]}
    if RELATION.search(part):
        return _letters(part)
    sides = split(part, "=")
    return _letters(sides[0]) if len(sides) > 1 else set()


def _letters(text: str) -> set[str]:
    names = (letter[0] for letter in _LETTER.finditer(text) if letter[1] is None or letter[1] in GREEK)
    return {name for name in names if name != "e"}


def _lists_all(gold: str, answer: str) -> bool:
    """Whether the gold answer leaves a choice of equations, and nothing else, and the answer lists as many: who gives
    both lines says all that "or" does. A list as the gold answer wants all of them, of which "or" takes some back."""
    parts = [part for part in _EITHER.split(gold) if part.strip(" ,")]
    listed_parts = [part for part in split(answer, ",;") if part.strip()]
    if (
        len(parts) != len(listed_parts)
        or _SAID_AND.search(gold + answer)
        or any("," in part or ";" in part for part in parts)
    ):
        return False
    return all(len(split(part, "=")) == 2 for part in parts + listed_parts)


def _names(text: str) -> list[str]:
    """The left sides of equations in a list, or the nouns of counts; empty where a part has none."""
    parts = [part for part in split(listed(text), ",;") if part.strip()]
    names = [
        "=".join("".join(side.split()) for side in sides[:-1]) or counted(part)
        for part, sides in ((part, split(part, "=")) for part in parts)
    ]
    return names if all(names) else []


def without_respectively(text: str) -> str:
    """`text` without that word, which says that its values have an order."""
    return _RESPECTIVELY.sub("", text) if "espectively" in text else text
