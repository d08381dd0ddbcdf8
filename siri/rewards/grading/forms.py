r"""Answers that are a value with something beside it: a family over the integers ("k\pi, k \in \mathbb{Z}"), a
congruence, a function by cases, an amount in two units ("5 ft 6 in")."""

import re
from collections.abc import Callable
from fractions import Fraction

from siri.rewards.grading import sets
from siri.rewards.grading.grammar import NotRead, read
from siri.rewards.grading.measures import measure
from siri.rewards.grading.numbers import Undefined
from siri.rewards.grading.structure import members, split
from siri.rewards.grading.values import rational

Same = Callable[[str, str], bool]

_FAMILY = re.compile(
    r"(?P<body>.+?)\s*(?:[,;:|(]|\\mid(?![a-zA-Z])|\s(?=for\b|where\b|with\b))\s*\(?\s*(?:(?:for|where|with)\s+)?"
    r"(?:(?:any|all|every|some|each|an)\s+)?"
    r"(?:(?P<kind>(?:positive|non-?negative)\s+)?integers?\s+(?P<name>[a-zA-Z])|"
    r"(?P<letter>[a-zA-Z])\s*(?:\\in(?![a-zA-Z])\s*(?:\\mathbb\s*)?\{?\s*(?P<set>[ZN])\s*\}?\s*(?P<part>\^?\{?\+?\}?)|"
    r"(?:is\s+)?(?:an?\s+|any\s+)*(?P<which>(?:positive|non-?negative)\s+)?integer))\s*\)?\s*\.?"
)
_CONGRUENCE = re.compile(
    r"(?:(?P<name>[a-zA-Z])\s*\\equiv(?![a-zA-Z])\s*)?(?P<residues>[^=]+?)\s*"
    r"(?:\\[pb]?mod(?![a-zA-Z])|\(\s*\\?[pb]?mod\b|\bmod(?:ulo)?\b)\s*\{?\s*(?P<modulus>[^{}()]+?)\s*\}?\s*\)?"
)
_CASES = re.compile(
    r"(?:[a-zA-Z](?:\([a-zA-Z]\)|_\{?[a-zA-Z]\}?)?\s*=\s*)?(?:\\\{)?\s*\\begin\s*\{cases\}(?P<rows>.*)\\end\s*\{cases\}",
    re.DOTALL,
)
_CONDITION = re.compile(r"^\s*(?:(?:if|for|when|where)\b)?\s*|[\s.,;]*$")
_PARITY = re.compile(
    r"\s*(?:([a-zA-Z]) (?:is )?(?:an? )?(even|odd)(?: (?:integer|number))?|(?:an? )?(even|odd) ([a-zA-Z]))\s*"
)
_IF = re.compile(r"\b(?:if|when|even|odd)\b")
_CASE = re.compile(
    r"\s*(?P<value>[^;,()]*(?:\([^()]*\)[^;,()]*)*?)\s*,?\s*(?:\b(?:if|when|for|where)\b\s*(?P<condition>[^;,()]+?)|"
    r"\((?:if|when|for)?\s*(?P<bracket>[^;()]+)\))\s*(?:[;,]\s*(?:(?:and|or)\s+)?|\s(?:and|or)\s(?=[^;]*\b(?:if|when)\b)|$)"
)
_AMOUNT = re.compile(
    r"\s*(?:(?:,|and\b|\\text\{\s*and\s*\})\s*)?(\d+(?:\.\d+)?)\s*(?:\\text\{\s*([a-zA-Z]+)\.?\s*(?:,|and)?\s*\}|"
    r"([a-zA-Z]+)\.?)"
)


def same_form(gold: str, answer: str, same: Same) -> bool | None:
    """Whether both are the same, where both have one of these forms; else None. `same` compares parts."""
    for form, compare in _FORMS:
        golds, answers = form(gold), form(answer)
        if golds and answers:
            return compare(golds, answers, same)
    return None


def _without_text(text: str) -> str:
    return re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).strip()


def _family(text: str) -> tuple[str, str, str] | None:
    """What is repeated, the letter that runs, and through which numbers."""
    if "in" not in text:
        return None
    plain = _without_text(text)
    if plain.startswith("\\{") and plain.endswith("\\}"):
        plain = re.sub(r"^([a-zA-Z])\s*(?:\||:|\\mid(?![a-zA-Z]))\s*(?=\1\s*=)", "", plain[2:-2].strip())
    match = _FAMILY.fullmatch(plain)
    if match is None:
        return None
    letter, body = match["name"] or match["letter"], match["body"]
    word = (match["kind"] or match["which"] or "").replace("-", "").strip()
    numbers = {"": "Z", "positive": "Z+", "nonnegative": "Z0"}[word]
    if match["set"]:
        numbers = match["set"] + ("+" if "+" in match["part"] else "")
    balanced = all(body.count(a) == body.count(b) for a, b in ("()", "{}", "[]"))
    return (body, letter, numbers) if balanced else None


def _letter(name: str) -> re.Pattern:
    return re.compile(rf"(?<![\\a-zA-Z]){name}(?![a-zA-Z])|(?<=\d){name}(?=\\)")


def _same_family(golds: tuple[str, str, str], answers: tuple[str, str, str], same: Same) -> bool:
    (gold, gold_letter, gold_numbers), (answer, letter, numbers) = golds, answers
    if not _letter(letter).search(answer):
        return letter == gold_letter and numbers == gold_numbers and same(gold, answer)
    if letter != gold_letter:
        if _letter(gold_letter).search(answer):
            return False
        answer = _letter(letter).sub(gold_letter, answer)
    return numbers == gold_numbers and same(gold, answer)


def _congruence(text: str) -> tuple[str, list[str], str] | None:
    """What is congruent ("" where it has no name), to what, and the modulus."""
    if "mod" not in text:
        return None
    match = _CONGRUENCE.fullmatch(_without_text(text))
    return (match["name"] or "", members(match["residues"]), match["modulus"]) if match else None


def _same_congruence(golds: tuple[str, list[str], str], answers: tuple[str, list[str], str], same: Same) -> bool:
    (gold_name, gold_residues, gold_modulus), (name, residues, modulus) = golds, answers
    if (gold_name and name and gold_name != name) or not same(gold_modulus, modulus):
        return False
    values = [_remainders(each, gold_modulus) for each in (gold_residues, residues)]
    if None not in values:
        return values[0] == values[1]
    return same(", ".join(gold_residues), ", ".join(residues))


def _remainders(residues: list[str], modulus: str) -> list[Fraction] | None:
    """In order; None where they are not known to be integers."""
    try:
        divisor, *values = (rational(read(text)) for text in (modulus, *residues))
    except NotRead:
        return None
    if any(value is None or value.denominator != 1 for value in (divisor, *values)) or not divisor:
        return None
    return sorted(value % divisor for value in values if value is not None)


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
    plain, rows, place = _without_text(text), [], 0
    while match := _CASE.match(plain, place):
        rows.append([match["value"].strip(" ,"), _condition(match["condition"] or match["bracket"])])
        place = match.end()
    return rows if place == len(plain) and len(rows) > 1 else None


def _condition(text: str) -> str:
    """Without "if", and in one spelling for even and odd numbers."""
    plain = re.sub(r"\s+", " ", _CONDITION.sub("", _without_text(text)))
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
    parities = [_PARITY.fullmatch(_without_text(text)) for text in (condition, *others)]
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


_FORMS: tuple[tuple[Callable, Callable], ...] = (
    (_family, _same_family),
    (_congruence, _same_congruence),
    (_cases, _same_cases),
    (_amounts, _same_amounts),
)
