"""Choices of a test: a letter, several of them, a letter with its text."""

import re
from collections.abc import Callable

from siri.rewards.grading.joins import listed, says_or
from siri.rewards.grading.structure import choice, has_other_choices, key, split, without_text

# What is said of a choice that is not chosen; at the beginning of its text, for the text may deny something else.
_TAKEN_BACK = re.compile(
    r"\W*(?:(?:false|untrue|unlikely|improbable|invalid|nope|except|eliminat\w+|discard\w*|exclud\w*|ruled|crossed|"
    r"dismiss\w*|doubtful|questionable|refuted|disproved?n?|incorrectly|wrongly)\b|(?:is|was|would be|"
    r"seems)\s+(?!(?:the\s+)?(?:only\s+)?"
    r"(?:correct|right|answer|best|true|my\s+(?:final\s+)?(?:answer|choice))\b)(?:what|the|a|an|one|my|where|how|"
    r"why|out|in)\b|(?:is|was|are|seems|looks)\s+(?:definitely\s+|clearly\s+|certainly\s+)?(?:not|n't|never|wrong|"
    r"incorrect|"
    r"false|"
    r"excluded|eliminated|impossible|unlikely|ruled)\b|(?:isn't|wasn't|aren't|won't)\b|(?:cannot|"
    r"can't)\s+(?!be\s+(?:determined|found|known|told|concluded|decided|"
    r"calculated|computed|solved|answered)|tell|say)\w|"
    r"not\s+(?:correct|right|"
    r"true|the|it|this|possible)\b|not\W*$|(?:or|and|rather|but|instead|nor|wrong|incorrect|excluded|eliminated|"
    r"rejected|"
    r"maybe|perhaps|possibly|probably|versus|vs)\b)",
    re.IGNORECASE,
)

Same = Callable[[str, str], bool]

_LETTERS = re.compile(
    r"\s*(?:\(?[A-J]\)?(?:\s*(?:,\s*(?:and\b|or\b|\\?&)?|and\b|or\b|\\?&)\s*\(?[A-J]\)?)+|[A-H]{2,})\s*"
)


def is_letter_of_choice(text: str) -> bool:
    return bool(re.fullmatch(r"\(?[A-J]\)?", without_text(text)))


_IN_BRACKETS = re.compile(r"\s*(?:\\text\{\s*)?(?:\([A-H]\)\s*(?:,|and|&)?\s*){2,}\}?\s*")


def same_letters(gold: str, answer: str) -> bool | None:
    """A choice in a small letter, and several of them written together, in order: "b" for B, "AC" for "A, C". None
    where these are no letters of choices; "B or C" chooses nothing, and is not "B, C"."""
    gold, answer = (
        "".join(re.findall("[A-H]", text.replace("and", "")))
        if _IN_BRACKETS.fullmatch(text) and "," not in text
        else text
        for text in (gold, answer)
    )
    gold, answer = (_without_text(text) for text in (gold, answer))
    golds, answers = ([key(part) for part in split(listed(text), ",;&")] for text in (gold, answer))
    if min(len(golds), len(answers)) > 1 and all(re.fullmatch("[A-J]", letter) for letter in golds + answers):
        return sorted(golds) == sorted(answers) and says_or(gold) == says_or(answer)
    for single, several in ((golds, answers), (answers, golds)):
        if len(single) == 1 < len(several) and all(re.fullmatch("[A-H]", letter) for letter in several):
            together = (gold if single is golds else answer).strip()
            if re.fullmatch("[A-H]{2,}", together):
                return list(together) == sorted(set(several)) and not says_or(gold + answer)
    if all(re.fullmatch("[A-H]{2,}", text.strip()) for text in (gold, answer)):
        return gold.strip() == answer.strip() or None
    letter = key(gold) if "(" in gold else gold
    return (len(answer) == 1 and letter in tuple("ABCDE") and answer.upper() == letter) or None


def _without_text(text: str) -> str:
    r"""Letters of choices without \text around them, "A, B, and D"; whatever else as it is."""
    plain = without_text(text) if "\\text" in text else text
    return plain if plain != text and _LETTERS.fullmatch(plain) else text


def same_choice(gold: str, answer: str, same: Same) -> bool | None:
    """A choice of a test, with its text or without; None where neither is one."""
    (gold_letter, gold_text), (letter, text) = choice(gold), choice(answer)
    if any(has_other_choices(said) or _TAKEN_BACK.match(said) for said in (text, gold_text)):
        return False
    if gold_letter and letter:
        return gold_letter == letter and (not gold_text or not text or same(gold_text, text))
    if gold_text and gold_letter:
        return same(gold_text, answer)
    if text and letter:
        return same(gold, text)
    return None
