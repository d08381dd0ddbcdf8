"""Words and signs that join answers: "and", "or", "respectively"."""

import re

from siri.rewards.grading.structure import bracketed, split
from siri.rewards.grading.units import counted

JUST_OR = re.compile(r",?\s*\\text\{\s*,?\s*(?:or|OR)\s*\}|,?\s+(?:or|OR)\s+")
AND_OR = re.compile(
    r"(?<=[)\]}\d])(?:or|and)(?=[-(\[{\\A-Z\d])|,?\s*\\&\s*|,?\s*\\text\{\s*,?\s*(?:and|or|AND|OR)\s*\}|"
    r",?\s+(?:and|or|AND|OR)\s+"
)
_LOGIC = re.compile(r"\s*\\(?:lor|vee|land|wedge)(?![a-zA-Z])")
_OR = re.compile(r"(?<![a-zA-Z\\])(?:or|OR)(?![a-zA-Z])|\\(?:lor|vee)(?![a-zA-Z])")
_EITHER = re.compile(rf"{JUST_OR.pattern}|\\(?:lor|vee)(?![a-zA-Z])")
_SAID_AND = re.compile(r"(?<![a-zA-Z\\])(?:and|AND)(?![a-zA-Z])|\\(?:land|wedge)(?![a-zA-Z])|\\&")
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
    texts = gold, answer
    if says_or(gold) == says_or(answer):
        return False
    if all(text.count("\\equiv") > 1 for text in texts):
        return all(re.search(r"(?<![a-zA-Z])(?:and|or)(?![a-zA-Z])", text) for text in texts)
    if says_or(gold) and _lists_all(gold, answer):
        return False
    names = [_names(text) for text in texts]
    several = [1 < len(each) == len(set(each)) for each in names]
    return all(several) or any(
        each and text is texts[says_or(answer)] and (bracketed(other) is not None or len(split(other, "=")) != 2)
        for each, text, other in zip(several, texts, texts[::-1], strict=True)
    )


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
