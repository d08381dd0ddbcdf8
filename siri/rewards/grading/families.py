r"""Values that run with a letter: "k\pi, k \in \mathbb{Z}", a line with its parameter, the terms of a sequence; and
congruences."""

import re
from collections.abc import Callable
from fractions import Fraction

from siri.rewards.grading.grammar import NotRead, read
from siri.rewards.grading.structure import members, split, without_text
from siri.rewards.grading.values import rational

Same = Callable[[str, str], bool]

_FAMILY = re.compile(
    r"(?P<body>.+?)\s*(?:[,;:|(]|\\mid(?![a-zA-Z])|\s(?=for\b|where\b|with\b))\s*\(?\s*(?:(?:for|where|with)\s+)?"
    r"(?:(?:any|all|every|some|each|an)\s+)?"
    r"(?:(?P<kind>(?:positive|non-?negative)\s+)?integers?\s+(?P<name>[a-zA-Z])|"
    r"(?P<letter>[a-zA-Z])\s*(?:\\in(?![a-zA-Z])\s*(?:\\(?:mathbb|mathbf)\s*)?\{?\s*(?P<set>[ZNR])\s*\}?\s*"
    r"(?P<part>(?:[_^]?\s*\{?\s*[+*]\s*\}?)?)|"
    r"(?:is\s+)?(?:an?\s+|any\s+)*(?P<which>(?:positive|non-?negative)\s+)?integer))\s*\)?\s*\.?"
)
# \{x | x = ..., a < x < b, x \ne ...\}
_BUILT = re.compile(
    r"^([a-zA-Z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\||:|\\mid(?![a-zA-Z]))\s*"
    r"(?=\1\s*(?:=|\\ne |<|>|\\[lg]e |\\in(?![a-zA-Z]))|[^,|]*(?:<|\\le )\s*\1\s*(?:<|\\le ))"
)
_SEQUENCE = re.compile(r"\s*[a-zA-Z]_\{?([a-z])\}?\s*=[^=]*")
_CONGRUENCE = re.compile(
    r"(?:(?P<name>[a-zA-Z])\s*\\equiv(?![a-zA-Z])\s*)?(?P<residues>[^=]+?)\s*"
    r"(?:\\[pb]?mod(?![a-zA-Z])|\(\s*\\?[pb]?mod\b|\bmod(?:ulo)?\b)\s*\{?\s*(?P<modulus>[^{}()]+?)\s*\}?\s*\)?"
)
# A name of what there are many of; S = n^2 is a formula, in which n is known.
_SOLUTION = re.compile(r"\s*(?:[xzt]|\\(?:theta|alpha|beta|phi|omega))(?:_\{?\d\}?)?\s*")
# As often as a family is written from another of its members on, up or down.
_SHIFTS = ("{X}+1", "{X}-1", "-{X}", "1-{X}", "-1-{X}", "{X}+2", "{X}-2", "{X}+3", "{X}-3")

_MOST_FAMILIES = 4

Family = tuple[str, str, str]
Congruence = tuple[str, list[str], str]


def family(text: str) -> Family | None:
    """What is repeated, the letter that runs, and through which numbers."""
    if "in" not in text:
        return None
    plain = without_text(text)
    if plain.startswith("\\{") and plain.endswith("\\}"):
        plain = _BUILT.sub("", plain[2:-2].strip())
    match = _FAMILY.fullmatch(plain)
    if match is None:
        return None
    letter, body = match["name"] or match["letter"], match["body"]
    word = (match["kind"] or match["which"] or "").replace("-", "").strip()
    numbers = {"": "Z", "positive": "Z+", "nonnegative": "Z0"}[word]
    if match["set"]:
        plus, star = "+" in match["part"], "*" in match["part"]
        numbers = "Z+" if plus or (star and match["set"] == "N") else match["set"] + "*" * star
        numbers = "R+" if match["set"] == "R" and plus else numbers
    balanced = all(body.count(a) == body.count(b) for a, b in ("()", "{}", "[]"))
    return (body, letter, numbers) if balanced else None


def without_range(text: str) -> str:
    """The formula of a sequence without what its index runs through, which is the same for all of them."""
    inside = family(text) if "_" in text else None
    sequence = _SEQUENCE.fullmatch(inside[0]) if inside else None
    if inside is None or sequence is None or sequence[1] != inside[1] or inside[2] not in ("N", "Z+"):
        return text
    if re.search(r"\bsome\b", text):
        return text  # of some n is less than of all
    return inside[0]


def parameter_only(text: str) -> str:
    r"""A line or plane without "t \in \mathbb{R}", which is what a parameter is."""
    inside = family(text)
    running = inside is not None and inside[2] == "R" and _alone(inside[1]).search(inside[0])
    tuple_ = running and inside and re.search(r"\([^()]*,", inside[0]) and "some" not in text
    return inside[0] if tuple_ and inside else text


def _alone(name: str) -> re.Pattern:
    return re.compile(rf"(?<![\\a-zA-Z]){name}(?![a-zA-Z])|(?<=\d){name}(?=\\)")


def same_family(golds: Family, answers: Family, same: Same) -> bool:
    (gold, gold_letter, gold_numbers), (answer, letter, numbers) = golds, answers
    if not _alone(letter).search(answer):
        return letter == gold_letter and numbers == gold_numbers and same(gold, answer)
    if letter != gold_letter:
        if _alone(gold_letter).search(answer):
            return False
        answer = _alone(letter).sub(gold_letter, answer)
    if numbers != gold_numbers:
        return False
    if same(gold, answer):
        return True
    parts = [members(re.sub(r",?\s+or\s+", ",", body)) for body in (gold, answer)]
    if numbers != "Z" or gold_letter == "x" or len(parts[0]) != len(parts[1]) or len(parts[0]) > _MOST_FAMILIES:
        return False
    left = list(parts[1])
    for part in parts[0]:
        place = next((at for at, other in enumerate(left) if _same_shifted(part, other, gold_letter, same)), None)
        if place is None:
            return False
        del left[place]
    return True


def _same_shifted(gold: str, answer: str, letter: str, same: Same) -> bool:
    """Whether they are the same numbers, from one or another of them on."""
    if not all(_SOLUTION.fullmatch(name) for name in split(answer, "=")[:-1]):
        return False  # a_k = ... says something of each k
    shifted = (_alone(letter).sub(f"{{({shift.format(X=letter)})}}", answer) for shift in _SHIFTS)
    return same(gold, answer) or any(same(gold, other) for other in shifted)


def congruence(text: str) -> Congruence | None:
    """What is congruent ("" where it has no name), to what, and the modulus; several of one modulus are together."""
    if "mod" not in text:
        return None
    plain = without_text(text)
    several = [part for part in re.split(r"\s+or\s+|[,;](?=[^,;]*\\equiv)", plain) if part.strip()]
    matches = [_CONGRUENCE.fullmatch(part.strip(" ,")) for part in several if "mod" in part]
    if len(matches) < len(several) or len(several) < 2:
        matches = [_CONGRUENCE.fullmatch(plain)]
    first = matches[0]
    if first is None or any(
        match is None or (match["name"], match["modulus"]) != (first["name"], first["modulus"]) for match in matches
    ):
        return None
    residues = [residue for match in matches if match for residue in members(match["residues"])]
    return first["name"] or "", residues, first["modulus"]


def same_congruence(golds: Congruence, answers: Congruence, same: Same) -> bool:
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
