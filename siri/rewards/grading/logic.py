r"""Statements of logic: "p \land \neg q" in any names of its signs, and "\exists x \in \mathbb{R}, x^2 + 1 < 0".

A bound letter is a name for nothing, so that any other may stand there, if it does so everywhere. Quantifier, domain
and what is said of the letter have to agree: half of them is another statement.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from siri.rewards.grading.grammar import WHOLE_NAMES
from siri.rewards.grading.numbers import Undefined
from siri.rewards.grading.sets import NotASet, read_set, same_pieces
from siri.rewards.grading.structure import RELATION, enclosed, key, split

Same = Callable[[str, str], bool]
Proposition = tuple

# ------------------------------------------------------------------------------------------------ letters and signs

_SIGNS = {"neg": "not", "lnot": "not", "land": "and", "wedge": "and", "lor": "or", "vee": "or", "to": "to"}
_SIGNS |= {"rightarrow": "to", "leftrightarrow": "as"}
_SIGN = re.compile(rf"\\(?:{'|'.join(_SIGNS)})(?![a-zA-Z])")
_TOKEN = re.compile(
    rf"\s*+(?:\\(?P<sign>{'|'.join(_SIGNS)})(?![a-zA-Z])|(?P<name>[a-zA-Z](?:_(?:\d|\{{\d{{1,3}}\}}))?)|"
    r"(?P<open>\()|(?P<close>\)))\s*+"
)
# What has no order in whatever it is about: of other letters \wedge may be the product of vectors.
_PROPOSITIONS = frozenset("pqrsPQRS")
_MOST_CHARS, _DEEPEST = 400, 16


class _NoProposition(Exception):
    """The text is no proposition, or reads in more than one way."""


def proposition(text: str) -> Proposition | None:
    r"""A proposition of letters: ("and", parts), ("or", parts), ("to", a, b), ("not", a), ("p",). None for whatever
    else, a letter alone, and "and" beside "or" without brackets."""
    if len(text) > _MOST_CHARS or not _SIGN.search(text):
        return None
    tokens, place = [], 0
    while match := _TOKEN.match(text, place):
        tokens.append(match)
        place = match.end()
    if place < len(text):
        return None
    try:
        tree, rest = _joined(tokens, 0)
    except _NoProposition:
        return None
    return tree if not rest and len(tree) > 1 else None


def _joined(tokens: list[re.Match], depth: int) -> tuple[Proposition, list[re.Match]]:
    """What a list of tokens begins with, up to a bracket that closes or the end; and the tokens behind it."""
    part, tokens = _part(tokens, depth)
    parts, signs = [part], set()
    while tokens and tokens[0]["sign"] and _SIGNS[tokens[0]["sign"]] != "not":
        signs.add(_SIGNS[tokens[0]["sign"]])
        part, tokens = _part(tokens[1:], depth)
        parts.append(part)
    if not signs:
        return parts[0], tokens
    if len(signs) > 1 or (signs & {"to", "as"} and len(parts) > 2):
        raise _NoProposition
    sign = signs.pop()
    flat = [inner for each in parts for inner in (each[1:] if each[0] == sign and sign in ("and", "or") else (each,))]
    return (sign, *flat), tokens


def _part(tokens: list[re.Match], depth: int) -> tuple[Proposition, list[re.Match]]:
    if not tokens or depth > _DEEPEST:
        raise _NoProposition
    first, rest = tokens[0], tokens[1:]
    if first["name"]:
        return (re.sub(r"[{}]", "", first["name"]),), rest
    if first["open"]:
        tree, rest = _joined(rest, depth + 1)
        if not rest or not rest[0]["close"]:
            raise _NoProposition
        return tree, rest[1:]
    if first["sign"] and _SIGNS[first["sign"]] == "not":
        tree, rest = _part(rest, depth + 1)
        return ("not", tree), rest
    raise _NoProposition


def same_propositions(gold: Proposition, answer: Proposition, same: Same) -> bool:
    """Whether both are the same but for the order of what "and" and "or" join."""
    return gold == answer or (_PROPOSITIONS.issuperset(_letters(gold)) and _ordered(gold) == _ordered(answer))


def _letters(tree: Proposition) -> set[str]:
    return {tree[0][0]} if len(tree) == 1 else {letter for part in tree[1:] for letter in _letters(part)}


def _ordered(tree: Proposition) -> Proposition:
    if len(tree) == 1:
        return tree
    parts = [_ordered(part) for part in tree[1:]]
    return (tree[0], *(sorted(parts, key=repr) if tree[0] in ("and", "or") else parts))


# ------------------------------------------------------------------------------------------------ quantifiers

_NAME = r"[a-zA-Z](?:_(?:\w|\{\w{1,3}\}))?(?![a-zA-Z])"
_QUANTIFIER = re.compile(rf"\s*\\(forall|exists)(?![a-zA-Z!])\s*({_NAME})\s*")
_SEPARATOR = re.compile(
    r"[,;:]|\\text\{[\s,]*(?:such that|so that|satisfying|we have|it holds that|there holds|s\.?\s?t\.?)[\s,:]*\}|"
    r"(?<![a-zA-Z])(?:such that|s\.t\.)"
)
_STATED = re.compile(r"=|<|>|\\(?:le|ge|ne|in|notin|mid|nmid|equiv|subset|subseteq)(?![a-zA-Z])")
_FREE = "tsuvwzyxrqpabcdghkmn"
_WHOLE = "nmkpqrst"
_LETTER_TOKEN = re.compile(rf"\\text\{{[^{{}}]*\}}|\\[a-zA-Z]+|{_NAME.removesuffix('(?![a-zA-Z])')}")


class Quantified(NamedTuple):
    """For all or some `name` in `domain` the `statement` holds."""

    quantifier: str
    name: str
    domain: str
    statement: str


def quantified(text: str) -> Quantified | None:
    """A statement with its quantifier in front; None for whatever else."""
    text = text.strip()
    if text.startswith("(") and len(text) <= _MOST_CHARS:
        head, *rest = split(text, ",:")
        text = ",".join([head.strip()[1:-1], *rest]) if rest and enclosed(head.strip()) else text
    match = _QUANTIFIER.match(text)
    if match is None or len(text) > _MOST_CHARS:
        return None
    text = text[match.end() :].replace("\\text{ for all }", ",\\forall ")
    for place in _SEPARATOR.finditer(text):
        domain, statement = text[: place.start()], text[place.end() :].strip()
        if sum((char in "([{") - (char in ")]}") for char in domain) == 0:
            if again := _SEPARATOR.match(statement):
                statement = statement[again.end() :].strip()
            return Quantified(match[1], match[2], domain.strip(), statement) if _STATED.search(statement) else None
    return None


def same_quantified(gold: Quantified, answer: Quantified, same: Same) -> bool:
    """Whether both say the same of the same numbers, whatever the name of their letter."""
    if gold.quantifier != answer.quantifier:
        return False
    taken = set(re.findall("[a-zA-Z]", "".join((*gold, *answer))))
    candidates = _WHOLE if {gold.name[0], answer.name[0]} <= WHOLE_NAMES else _FREE
    name = next((letter for letter in candidates if letter not in taken), "")
    if not name:
        return False
    golds, answers = (
        (name + _renamed(each.domain, each.name, name), _renamed(each.statement, each.name, name))
        for each in (gold, answer)
    )
    return _same_domain(golds[0], answers[0]) and _same_statement(golds[1], answers[1], same)


def _renamed(text: str, name: str, other: str) -> str:
    return _LETTER_TOKEN.sub(lambda match: f" {other}" if match[0] == name else match[0], text)


def _same_domain(gold: str, answer: str) -> bool:
    if key(gold) == key(answer):
        return True
    try:
        (golds, name), (answers, other) = read_set(gold), read_set(answer)
    except (NotASet, Undefined):
        return False
    return bool(name) and name == other and same_pieces(golds, answers)


def _same_statement(gold: str, answer: str, same: Same) -> bool:
    if key(gold) == key(answer):
        return True
    inner, other = quantified(gold), quantified(answer)
    if inner or other:
        return inner is not None and other is not None and same_quantified(inner, other, same)
    if any(len(split(text, ",;:")) > 1 or "\\text" in text for text in (gold, answer)):
        return False
    sides = split(gold, "="), split(answer, "=")
    if [len(each) for each in sides] == [2, 2]:
        (left, right), others = sides
        return any(same(left, first) and same(right, last) for first, last in (others, others[::-1]))
    return all(RELATION.search(text) and "=" not in text for text in (gold, answer)) and same(gold, answer)


# ------------------------------------------------------------------------------------------------ words

_REAL = r"(?P<real>(?:all\s+)?real(?:\s+numbers?|\s+values?(?:\s+of)?)?|reals|实数)?"
_WORDED = re.compile(
    r"\s*(?:\\text\w*\s*\{\s*)?(?:(?P<all>for\s+(?:all|any|every|each)|对于?(?:任意|所有|任何|一切)的?|任意的?|所有的?)|"
    r"(?:there\s+(?:exists?|is)(?:\s+(?:an?|some|at\s+least\s+one))?|for\s+some|存在))\s*"
    rf"{_REAL}\s*(?:\}}\s*)?\$?\s*(?P<name>{_NAME})\s*",
    re.IGNORECASE,
)
_IN = re.compile(r"\s*\$?\s*(?:[,:\uff0c\uff1a]|[<>≤≥⩽⩾∈]|\\(?:[lg]e|in|ne|text|[lg]t)|使|都|有|such|s\.t)")
_THEN = re.compile(r"\s*[,\uff0c\u3001]?\s*(?:使得?|满足|都有|恒有|有)\s*")


def with_quantifiers(text: str) -> str:
    """`text` with the sign of a quantifier for words before a letter and its domain, in English and Chinese."""
    if len(text) > _MOST_CHARS or (match := _WORDED.match(text)) is None:
        return text
    rest = text[match.end() :]
    opened = match[0].count("{") > match[0].count("}")
    if opened or not _IN.match(rest):
        return text
    rest = _THEN.sub(", ", rest.replace("\uff0c", ", "), count=1)
    if not _SEPARATOR.search(rest):
        return text
    real = " \\in \\mathbb{R}" if match["real"] else ""
    return f"\\{'forall' if match['all'] else 'exists'} {match['name']}{real} {rest}"
