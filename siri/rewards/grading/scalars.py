"""Single values: with a unit, in a base, as a percentage, rounded."""

import re
from fractions import Fraction

from siri.rewards.grading import library
from siri.rewards.grading.bases import in_base
from siri.rewards.grading.grammar import NotRead, Tree, read, symbols
from siri.rewards.grading.measures import same_unit
from siri.rewards.grading.nouns import counts_only, said_behind, same_words
from siri.rewards.grading.structure import squeezed
from siri.rewards.grading.units import without_unit
from siri.rewards.grading.values import rational, rounds_to, same_value

# How many times is asked for by a number, and answered by one.
_TIMES = re.compile(r"(?<=[\d}])\s*(?:\\text\{\s*times\s*\}|\btimes)$")
# A product with an inverse or transpose is one of matrices, which has an order.
_MATRICES = re.compile(r"(?:\s*[A-Z](?:\s*\^\s*\{?\s*(?:-1|T)\s*\}?)?){2,}")
_INVERSE = re.compile(r"\(([A-Z]{2,})\)\^\{?(-1|T)\}?|(?<=[A-Z])\^T")
_DECIMAL = re.compile(r"[-+]?\d*\.(\d+)")

_PRODUCT = re.compile("[xyz]{3}|[abc]{3}")
_WORD = re.compile(r"\\text\{[^{}]*[a-zA-Z][^{}]*\}|[A-Z]{2,}|[A-Z]?[a-z]{3,}")


def same_scalar(gold: str, answer: str) -> bool:
    gold = _TIMES.sub("", gold)
    if (verdict := _same_angles(gold, answer)) is not None:
        return verdict
    if not _same_words(gold, answer):
        return False
    (gold, gold_unit), (bare, answer_unit) = without_unit(gold), without_unit(answer)
    if not same_unit(gold_unit, answer_unit):
        return False
    # "what percent ...?" is answered by the number; the other way round 5% is not 5
    number_for_percent = gold.endswith("\\%") and bare == answer.strip() and "%" not in answer
    if number_for_percent and same_scalar(gold.removesuffix("\\%").strip(), answer):
        return True
    answer = bare
    products = [_INVERSE.sub(_turned, squeezed(text)) for text in (gold, answer)]
    if all(_MATRICES.fullmatch(text) and "^" in text for text in products):
        return products[0] == products[1]
    based = in_base(gold), in_base(answer)
    if any(based):
        return based[0] == based[1]
    try:
        trees = read(gold), read(answer)
    except NotRead:
        return library.verify(*(re.sub(r"^(.*?)\s*\\%$", r"\\frac{\1}{100}", text) for text in (gold, answer)))
    # a decimal that is near may be too near for a comparison of values to tell
    return _rounded(trees, (gold, answer)) or same_value(*trees)


def _same_words(gold: str, answer: str) -> bool:
    """Whether the words behind the numbers agree, or those of the answer alone are what was counted."""
    words, others = said_behind(gold), said_behind(answer)
    if words and others:
        return same_words(words, others)
    return words is not None or others is None or counts_only(answer)


def _same_angles(gold: str, answer: str) -> bool | None:
    """Whether two formulas with letters and degrees are the same: the sign belongs to its number, wherever that stands.
    None for whatever else."""
    if "\\text{degree}" not in gold or "\\text{degree}" not in answer:
        return None
    try:
        trees = read(gold), read(answer)
    except NotRead:
        return None
    return same_value(*trees) if all(map(symbols, trees)) else None


def _turned(match: re.Match) -> str:
    """The inverse or transpose of a product: those of its factors in the other order."""
    if match[1] is None:
        return "^{T}"
    return "".join(f"{factor}^{{{match[2]}}}" for factor in reversed(match[1]))


def _rounded(trees: tuple[Tree, Tree], texts: tuple[str, str]) -> bool:
    """Whether one is a decimal of six places or more, and the other rounds to it."""
    places = [_places(text) for text in texts]
    for place, other in ((0, 1), (1, 0)):
        if places[place] and not places[other]:
            return rounds_to(trees[other], rational(trees[place]) or Fraction(0), places[place])
    return False


def _places(text: str) -> int:
    """How many decimals a number is written with, two more if it is a percentage; 0 for whatever else."""
    text = squeezed(text)
    match = _DECIMAL.fullmatch(text.removesuffix("\\%"))
    return (len(match[1]) + 2 * text.endswith("\\%")) if match else 0


def is_a_word(text: str) -> bool:
    if not _WORD.fullmatch(text) or text == "\\text{degree}" or _PRODUCT.fullmatch(text):
        return False
    try:
        return text.isupper() or read(text)[0] not in ("const", "sym", "call", "log", "root")
    except NotRead:
        return True
