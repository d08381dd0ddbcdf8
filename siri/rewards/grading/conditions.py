r"""What stands beside an equation or a function: its domain, "y = x^2 (x > 0)", or that it holds for all x."""

import re
from collections.abc import Callable

from siri.rewards.grading.families import family, parameter_only, without_range
from siri.rewards.grading.grammar import WHOLE_NAMES
from siri.rewards.grading.indices import without_domain
from siri.rewards.grading.labels import without_label
from siri.rewards.grading.names import letters_of, with_declared
from siri.rewards.grading.sentences import called, is_label, labelled
from siri.rewards.grading.structure import RELATION, split, without_text
from siri.rewards.grading.units import without_unit

Same = Callable[[str, str], bool]

_CONDITION = r"[^()]*(?:\\le |\\ge |\\ne |<|>|\\in(?![a-zA-Z]))[^()]*(?:\([^()]*\)[^()]*)?"
_IN_BRACKETS = re.compile(rf"(.*\S)\s*\(\s*(?:(?:for|where|with|when|if)\s+)?({_CONDITION})\)", re.DOTALL)
_IN_WORDS = re.compile(rf"(.*\S?)(?:\s*,\s*|\s+)(?:for|where|with|when|if)\s+({_CONDITION})", re.DOTALL)
_BESIDE = re.compile(r"\\le |\\ge |\\ne |<|>|\\in(?![a-zA-Z])")
_PLUS_OR_MINUS = re.compile(r"\\ne \s*\\pm\s*([\w\\{}.]+)$")
_FUNCTION = re.compile(r"\s*[a-zA-Z]\(([a-z])\)\s*=.*", re.DOTALL)
# That a function is meant for all numbers, and that a letter in it is any constant.
_DECLARED = re.compile(
    r"\s*[,;(]?\s*(?:(?:for|where|with|and)\s+)?(?<![a-zA-Z\\])"
    r"(?P<words>(?:(?:all|any|every|some|each|an?|arbitrary|real|constants?|"
    r"numbers?|the|(?P<whole>positive|non-?negative|natural|"
    r"integers?))\s+)*)(?<=[\s,;(])(?P<names>[a-zA-Z](?:\s*(?:,|and)\s*[a-zA-Z])*)"
    r"(?P<set>\s*\\in\s*\\mathbb\s*\{?(?:R|(?P<integers>[NZ]))\}?(?(integers)(?:[_^]\s*\{?\s*[+*]\s*\}?)?)|"
    r"\s+(?:is|are)\s+(?:an?\s+|any\s+|arbitrary\s+|real\s+)*(?:constants?|numbers?|reals?))?"
    r"\s*\)?\s*\.?$"
)
# What an equation is called, as in "l: y = 2x".
_LABEL = re.compile(r"^\s*([a-zA-Z](?:_\d)?) ?: ?(?=[^:=]*=[^:=]*$)")
_SAID = re.compile(
    r"^\s*(?:\\text\{\s*([A-Za-z]{2}[A-Za-z ]*?)\s*(?::\s*\}|\}\s*:)|([A-Z][a-z]{2,}(?: [a-z]+){0,3})\s*:)\s*(?=\S)"
)
Conditioned = tuple[str, str]


def conditioned(text: str) -> Conditioned | None:
    """An equation or value and the condition beside it; None without one."""
    if not _BESIDE.search(text):
        return None
    plain = without_text(text)
    if match := _IN_BRACKETS.fullmatch(plain) or _IN_WORDS.fullmatch(plain):
        body, condition = match.groups()
    else:
        body, *rest = split(plain, ",;")
        if not rest or not _BESIDE.search(rest[0]):
            return None
        condition = ",".join(rest)
    body = body.strip(" ,;")
    if not body or _BESIDE.search(body) or len(split(body, ",;")) > 1:
        return None
    condition = _PLUS_OR_MINUS.sub(r"\\ne \1, -\1", condition.strip(" .,"))
    return body, condition


def same_conditioned(golds: Conditioned, answers: Conditioned, same: Same) -> bool:
    return same(golds[1], answers[1]) and same(golds[0], answers[0])


def declared(text: str) -> tuple[str, set[str]]:
    r"""A function without "for all x" and "where c is any constant", and the letters that are constants by that."""
    match = _FUNCTION.fullmatch(text)
    if match is None:
        return text, set()
    body, constants = without_text(text), set()
    while (said := _DECLARED.search(body)) and (said["words"] or said["set"]) and "=" in body[: said.start()]:
        names = set(re.findall("[a-zA-Z]", said["names"])) - {"a"} | (
            {"a"} if re.search(r"\ba\b", said["names"]) else set()
        )
        if match[1] in names and "some" in said["words"]:
            break  # for some x is less than for all
        if (said["whole"] or said["integers"]) and not (names <= {match[1]} <= WHOLE_NAMES):
            break  # for whole x is less than for all
        constants |= names - {match[1]}
        body = body[: said.start()].rstrip(" ,;")
    used = constants <= letters_of(body.partition("=")[2])
    return (body, constants) if body != without_text(text) and used and not RELATION.search(body) else (text, set())


def _labelled(text: str) -> tuple[str, str]:
    """What an equation or a value is called, "" for nothing, and the text without that."""
    if match := _LABEL.match(text):
        return match[1], text[match.end() :]
    label, value = labelled(text)
    if (
        value != text
        and len(split(value, ",;")) == 1
        and not ("\\text{" in value and label and not without_unit(value)[1])
    ):
        return label, value
    match = _SAID.match(text) if ":" in text else None
    if match is None or len(split(text, ",;")) > 1 or ":" in text[match.end() :]:
        return "", text
    rest = text[match.end() :]
    if "\\text{" in rest and not without_unit(rest)[1]:
        return "", text  # "Total: 12 boys" is a number of boys
    words = (match[1] or match[2]).casefold().split()
    return (" ".join(words), rest) if is_label(" ".join(words)) else ("", text)


def differ_in_labels(gold: str, answer: str) -> bool:
    """Whether both are called something, and not the same: the minimum is no maximum."""
    names = [called(text) for text in (gold, answer)]
    return all(names) and names[0] != names[1] and all(len(split(text, ",;")) == 1 for text in (gold, answer))


def without_declarations(gold: str, answer: str) -> tuple[str, str]:
    """Both without what goes without saying, where one of them says it: that a function is for all x, what an index
    or a parameter runs through, that a letter is a constant; and a label, unless both have one, and not the same."""
    labels = [_labelled(text) for text in (gold, answer)]
    named = [without_label(text)[0] for text in (gold, answer)]
    if any(name and said for (said, _), name in zip(labels, reversed(named), strict=True)):
        return gold, answer  # a domain and a set with a name
    if labels[0][0] == labels[1][0] or not all(name for name, _ in labels):
        gold, answer = (text for _, text in labels)
    (gold, constants), (answer, _) = declared(gold), declared(answer)
    if constants:
        answer = with_declared(gold, answer, constants)
    gold, answer = (without_domain(without_range(text)) for text in (gold, answer))
    if "\\mathbb" in gold + answer and not (family(gold) and family(answer)):
        gold, answer = parameter_only(gold), parameter_only(answer)
    return gold, answer
