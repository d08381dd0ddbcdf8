"""Answers that are a value with something beside it: families and congruences, a function by cases, an amount in two
units ("5 ft 6 in"), an equation with its condition."""

import re
from collections.abc import Callable

from siri.rewards.grading import sets
from siri.rewards.grading.conditions import conditioned, same_conditioned
from siri.rewards.grading.families import congruence, family, same_congruence, same_family
from siri.rewards.grading.indices import without_whole
from siri.rewards.grading.logic import proposition, quantified, same_propositions, same_quantified
from siri.rewards.grading.measures import measure, same_unit
from siri.rewards.grading.numbers import Undefined
from siri.rewards.grading.structure import split, without_text
from siri.rewards.grading.units import without_unit

Same = Callable[[str, str], bool]

_CASES = re.compile(
    r"(?:[a-zA-Z](?:\([a-zA-Z]\)|_\{?[a-zA-Z]\}?)?\s*=\s*)?(?:\\\{)?"
    r"\s*\\begin\s*\{cases\}(?P<rows>.*)\\end\s*\{cases\}",
    re.DOTALL,
)
_CONDITION = re.compile(r"^\s*(?:(?:if|for|when|where)\b)?\s*|[\s.,;]*$")
_PARITY = re.compile(
    r"\s*(?:([a-zA-Z]) (?:is )?(?:an? )?(even|odd)(?: (?:integer|number))?|(?:an? )?(even|odd) ([a-zA-Z]))\s*"
)
_IF = re.compile(r"\b(?:if|when|even|odd)\b")
_CASE = re.compile(
    r"\s*(?P<value>[^;,()]*(?:\([^()]*\)[^;,()]*)*?)\s*,?\s*(?:\b(?:if|when|for|where)\b\s*(?P<condition>[^;,()]+?)|"
    r"\((?:if|when|for)?\s*(?P<bracket>[^;()]+)\))\s*(?:[;,]\s*(?:(?:and|or)\s+)?|"
    r"\s(?:and|or)\s(?=[^;]*\b(?:if|when)\b)|$)"
)
_AMOUNT = re.compile(
    r"\s*(?:(?:,|and\b|\\text\{\s*and\s*\})\s*)?(\d+(?:\.\d+)?)\s*(?:\\text\{\s*([a-zA-Z]+)\.?\s*(?:,|and)?\s*\}|"
    r"([a-zA-Z]+)\.?)"
)


_BY = re.compile(r"\s*(?:\\times(?![a-zA-Z])|\\text\{\s*(?:by|x)\s*\}|(?<![a-zA-Z])by(?![a-zA-Z]))\s*")
_SIDE = re.compile(r"[^=,;<>]*\d[^=,;<>]*")


def same_form(gold: str, answer: str, same: Same) -> bool | None:
    """Whether both are the same, where both have one of these forms; else None. `same` compares parts."""
    for form, compare in _FORMS:
        golds, answers = form(gold), form(answer)
        if golds and answers:
            return compare(golds, answers, same)
    return None


def _cases(text: str) -> list[list[str]] | None:
    """The values of a function with the condition of each."""
    match = _CASES.fullmatch(text.strip())
    if match is None:
        return _cases_in_words(text)
    rows = [row for row in re.split(r"\\\\(?:\[[^\[\]]*\])?", match["rows"]) if row.strip()]
    parts = [split(row.strip(" ,;."), "&") if "&" in row else split(row.strip(" ,;."), ",") for row in rows]
    if any(len(part) != 2 for part in parts):
        return None
    return [[value.strip(" ,;"), _condition(condition)] for value, condition in parts]


def _cases_in_words(text: str) -> list[list[str]] | None:
    """ "3 if n is even, 1 if n is odd": at least two values, each with its condition."""
    if not _IF.search(text):
        return None
    plain, rows, place = without_text(text), [], 0
    while match := _CASE.match(plain, place):
        rows.append([match["value"].strip(" ,"), _condition(match["condition"] or match["bracket"])])
        place = match.end()
    return rows if place == len(plain) and len(rows) > 1 else None


def _condition(text: str) -> str:
    """Without "if", and in one spelling for even and odd numbers."""
    plain = without_whole(re.sub(r"\s+", " ", _CONDITION.sub("", without_text(text))))
    if match := _PARITY.fullmatch(plain):
        return f"\\text{{{match[1] or match[4]} {match[2] or match[3]}}}"
    return "\\text{otherwise}" if re.fullmatch(r"otherwise|else|in all other cases", plain) else plain


def _same_cases(golds: list[list[str]], answers: list[list[str]], same: Same) -> bool:
    left, rest = list(answers), []
    for gold in golds:
        place = next((i for i, answer in enumerate(left) if all(map(same, gold, answer))), None)
        if place is None:
            rest.append(gold)
        else:
            del left[place]
    if not rest and not left:
        return True
    if len(golds) != len(answers) or len(rest) != 1 or not same(rest[0][0], left[0][0]):
        return False
    # "otherwise" is what the other conditions leave
    (gold, answer), others = (rest[0][1], left[0][1]), [row[1] for row in golds if row is not rest[0]]
    if "\\text{otherwise}" not in (gold, answer):
        return False
    return _is_the_rest(answer if "otherwise" in gold else gold, others)


def _is_the_rest(condition: str, others: list[str]) -> bool:
    parities = [_PARITY.fullmatch(without_text(text)) for text in (condition, *others)]
    if all(parities):
        return len({match.group() for match in parities if match}) == 2 == len(parities)
    try:
        (rest, name), (taken, other) = sets.read_set(condition), sets.read_set(" or ".join(others))
        return name == other and sets.same_pieces(rest, sets.complement(taken))
    except (sets.NotASet, Undefined):
        return False


def _amounts(text: str) -> list[tuple[str, str]] | None:
    """Amounts in units that are all known and different, as in "1 hour and 20 minutes"."""
    amounts, place = [], 0
    while match := _AMOUNT.match(text, place):
        amounts.append((match[1], measure(match[2] or match[3]) or ""))
        place = match.end()
    units = {unit for _, unit in amounts}
    if text[place:].strip() or len(amounts) < 2 or len(units) < len(amounts) or "" in units:
        return None
    return amounts


def _same_amounts(golds: list[tuple[str, str]], answers: list[tuple[str, str]], same: Same) -> bool:
    return [unit for _, unit in golds] == [unit for _, unit in answers] and all(
        same(gold, answer) for (gold, _), (answer, _) in zip(golds, answers, strict=True)
    )


Dimensions = tuple[list[tuple[str, tuple | None]], bool]


def _dimensions(text: str) -> Dimensions | None:
    """The sides of "5 cm by 6 cm" with their units, and whether these are sides for sure: 5 times 6 is 30."""
    spelled = re.sub(r"\\text\{([^{}]*?)\s+by\s*\}", r"\\text{\1}\\text{ by }", text)
    parts = _BY.split(spelled)
    if len(parts) < 2 or not all(map(_SIDE.fullmatch, parts)) or "10^" in text:
        return None
    sides: list[tuple[str, tuple | None]] = [without_unit(part) for part in parts]
    if any(
        "\\text" in side or re.search("[a-zA-Z]{2}", side.replace("\\frac", "").replace("\\sqrt", ""))
        for side, _ in sides
    ):
        return None
    units = [unit for _, unit in sides]
    if units[-1] and not any(units[:-1]):
        sides = [(side, units[-1]) for side, _ in sides]
    return sides, "by" in text or all(unit for unit in units)


def _same_dimensions(golds: Dimensions, answers: Dimensions, same: Same) -> bool | None:
    """In any order, and None where neither says that these are sides."""
    (gold_sides, gold_sure), (sides, sure) = golds, answers
    if not gold_sure and not sure:
        return None
    left = list(sides)
    for side, unit in gold_sides:
        place = next((at for at, (other, its) in enumerate(left) if same_unit(unit, its) and same(side, other)), None)
        if place is None:
            return False
        del left[place]
    return not left


_FORMS: tuple[tuple[Callable, Callable], ...] = (
    (proposition, same_propositions),
    (quantified, same_quantified),
    (family, same_family),
    (congruence, same_congruence),
    (_cases, _same_cases),
    (_amounts, _same_amounts),
    (conditioned, same_conditioned),
    (_dimensions, _same_dimensions),
)
