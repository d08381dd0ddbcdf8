r"""Constants of integration and of families: what says that they are constants, other names for them, another order.

"Where C is a constant" says nothing that the letter does not; C > 0 does. Other names are read only where the letter
can hardly be anything else: in a solution or an antiderivative of one variable, once, as a term or a factor of a term.
"""

import itertools
import re
from collections.abc import Iterator, Set

from siri.rewards.grading.grammar import WHOLE_NAMES, NotRead, Tree, read, symbols
from siri.rewards.grading.names import integrated, letters_of, with_running
from siri.rewards.grading.readings import MAX_PARSED_CHARS
from siri.rewards.grading.structure import RELATION, split, without_text

_INDEXED = r"[CcKAk]_(?:\{\d\}|\d)"
_NAMES = r"{0}(?:\s*(?:,\s*(?:and\s+)?|and\s+)\s*{0}){{0,3}}"
_LETTERS = _NAMES.format(rf"(?:{_INDEXED}|[ABCDKabckm](?![a-zA-Z_]))")
# A letter that may run through whole numbers, or be given, is no constant for being real.
_CAPITALS = _NAMES.format(rf"(?:{_INDEXED}|[ABCDKc](?![a-zA-Z_]))")
_KIND = r"(?:(?:integration\s+)?constants?(?:\s+of\s+integration)?|(?:real\s+)?numbers?|reals?|const)(?![a-zA-Z])"
_BESIDE = r"(?:(?:an?|the|any|some|all|arbitrary|real|free|independent|numerical)\s+){0,4}"
_SAID = re.compile(
    r"[,;(\s]\s*(?:(?:for|where|with|here|and)\s+)?(?:"
    rf"{_BESIDE}{_KIND}\s+(?P<behind>{_LETTERS})(?:\s+(?:is|are)\s+arbitrary)?"
    rf"|(?P<before>{_LETTERS})\s*(?:(?:is|are|being|denotes?|=)\s*)?{_BESIDE}{_KIND}"
    rf"|(?P<any>{_LETTERS})\s+(?:(?:is|are)\s+)?arbitrary"
    rf"|(?:any\s+)?(?P<real>{_CAPITALS})\s*\\in\s*\\mathbb\s*\{{?\s*R\s*\}}?"
    rf"|(?:其中\s*)?(?P<named>{_LETTERS})\s*(?:为|是)\s*(?:任意)?实?的?(?:积分)?常数"
    r")\s*\)?\s*\.?"
)
_SEPARATOR = re.compile(r"[,;(]|\s(?=(?:for|where|with|here)\s)|(?<=[\w)}])\s(?=\(?[A-DKc])")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_NAME = re.compile(r"(?<![\\a-zA-Z_])[a-zA-Z]_(?:\{\d\}|\d)|[a-zA-Z]")
# Of a function with a constant: the names it may have, and the letters that are one where only the answer says so.
_FUNCTION = re.compile(r"\s*(?:[yu]|[fguhy]\(([a-z])\))\s*")
_CONSTANTS = frozenset("cCkK")
_USUAL = frozenset("abckmCK")
_NUMBERED = re.compile(r"(?<![\\a-zA-Z])([CcK])_(?:\{(\d)\}|(\d))")
_LETTERED = re.compile(r"(?<![\\a-zA-Z])[ABD](?![a-zA-Z_])|(?<![\\a-zA-Z])[AB](?=[ex])")
_MOST_CONSTANTS = 3
# What a general solution may be a function of, and what it may be called.
_VARIABLES = frozenset(("x", "t", "n", "\\theta"))
_GENERAL = re.compile(r"\s*(?:[yuxfg](?:\([a-z]\))?|a_\{?n\}?)\s*")
# The letters of a curve that a solution may be given as.
_COORDINATES = frozenset(("x", "y", "t"))


def alternatives(gold: str, answer: str) -> Iterator[tuple[str, str]]:
    """Both texts with the answer's letters as the gold answer has them, and both without what only says that these are
    constants."""
    for text in (with_running(gold, answer), *other_constants(gold, answer)):
        yield gold, text
    (bare, said), (other, told) = without_constants(gold), without_constants(answer)
    if said or told:
        other = _with_told(bare, other, said or _CONSTANTS, told or _USUAL)
        for text in (other, *other_constants(bare, other)):
            yield bare, text


def without_constants(text: str) -> tuple[str, set[str]]:
    """A formula without the words or the sign behind it that its letters are constants, and these letters; the text
    itself, and none, for whatever else."""
    if len(text) > MAX_PARSED_CHARS or not re.search("onst|rbitrary|mathbb|number|real|常数", text):
        return text, set()
    plain = without_text(text)
    for separator in _SEPARATOR.finditer(plain):
        match = _SAID.fullmatch(plain, separator.start())
        if match is None:
            continue
        listed = next(filter(None, match.groupdict().values()))
        names = [_plain(name) for name in _NAME.findall(re.sub(r"\band\b", ",", listed))]
        body = plain[: match.start()].rstrip(" ,;(")
        if len(set(names)) == len(names) and _has_constants(body, names):
            return body, set(names)
    return text, set()


def _has_constants(body: str, names: list[str]) -> bool:
    """Whether it is a formula in which these letters stand beside others, and no function of them."""
    if not body or RELATION.search(body) or any(body.count(a) != body.count(b) for a, b in ("()", "{}", "[]")):
        return False
    name, _, formula = body.rpartition("=")
    letters, others = ({_plain(each) for each in _NAME.findall(_COMMAND.sub(" ", side))} for side in (formula, name))
    return set(names) <= letters and bool((letters | others) - set(names)) and not others & set(names)


def _with_told(gold: str, answer: str, said: Set[str], told: Set[str]) -> str:
    """`answer` with the constant of `gold` for its letter, where one of both says that its letter is a constant: c for
    k, in a function of one variable. Other letters of the gold answer may be given in the question."""
    (name, _, formula), (_, _, other_formula) = gold.rpartition("="), answer.rpartition("=")
    golds, answers = letters_of(formula), letters_of(other_formula)
    mine, other = golds - answers, answers - golds
    variables = golds - mine - {"e"}
    function = _FUNCTION.fullmatch(name)
    if len(mine) != 1 or len(other) != 1 or len(variables) != 1 or not mine <= said or not other <= told:
        return answer
    if not variables <= _VARIABLES | WHOLE_NAMES | {"u", "z"} or "_" in formula + other_formula:
        return answer
    if not (function and function[1] in (None, *variables)) and not (not name and integrated(gold)):
        return answer
    [old], [new] = other, mine
    return re.sub(rf"\\[a-zA-Z]+|{old}", lambda match: new if match[0] == old else match[0], answer)


# ------------------------------------------------------------------------------------------------ general solutions


def other_constants(gold: str, answer: str) -> Iterator[str]:
    """`answer` with its constants C_1, C_2 in another order, or with the names of `gold` for them; only where both are
    general solutions: elsewhere these are circles, capacities, or values that were asked for."""
    golds, answers = _numbered(gold), _numbered(answer)
    if not golds and not answers:
        return
    if len(golds) + len(answers) == 1:
        yield from _without_number(gold, answer, [*golds, *answers][0])
        return
    patterns = [_NUMBERED if names else _LETTERED for names in (golds, answers)]
    golds, answers = golds or _lettered(gold), answers or _lettered(answer)
    if not 2 <= len(golds) <= _MOST_CONSTANTS or len(golds) != len(answers):
        return
    if not _is_general(gold, golds) or not _is_general(answer, answers):
        return
    for order in itertools.permutations(golds):
        yield patterns[1].sub(lambda match, order=order: f"{order[answers.index(_plain(match[0]))]} ", answer)


def _plain(name: str) -> str:
    return re.sub("[{}]", "", name)


def _numbered(text: str) -> list[str]:
    """The constants with a number, of one letter."""
    names = {_plain(match[0]) for match in _NUMBERED.finditer(text)}
    return sorted(names) if len({name[0] for name in names}) == 1 else []


def _lettered(text: str) -> list[str]:
    return sorted({match[0] for match in _LETTERED.finditer(text)})


def _without_number(gold: str, answer: str, name: str) -> Iterator[str]:
    """`answer` with the gold answer's name of the only constant, where one of both writes C for the other's C_1."""
    numbered, other = (gold, answer) if _NUMBERED.search(gold) else (answer, gold)
    letters = [letter for letter in ("C", "K", "c", "A") if _is_constant(other, letter)]
    if len(letters) != 1 or not _is_constant(numbered, name):
        return
    if numbered is answer:
        yield _NUMBERED.sub(f"{letters[0]} ", answer)
    else:
        yield re.sub(rf"\\[a-zA-Z]+|{letters[0]}", lambda match: match[0] if "\\" in match[0] else f"{name} ", answer)


def _is_constant(text: str, name: str) -> bool:
    """Whether this is the constant of a solution or of an antiderivative, as far as its form tells: in small letters,
    and for A, only where it is added or stands before a power of e."""
    sides = split(text, "=")
    if len(sides) > 2 or ":" in text or RELATION.search(text) or len(split(text, ",;")) > 1:
        return False
    try:
        trees = [read(side) for side in sides]
    except NotRead:
        return False
    general = len(sides) == 1 or _GENERAL.fullmatch(sides[0])
    trees = trees[-1:] if general else trees
    holding = [tree for tree in trees if name in symbols(tree)]
    variables = set().union(*map(symbols, trees)) - {name}
    if len(holding) != 1 or not variables or not _is_factor(holding[0], name, "", times_variable=True):
        return False
    if not general:
        return variables <= _COORDINATES and trees[0][0] != "sym" and name[0] in "CK"
    if len(variables) != 1 or not variables <= _VARIABLES | {"u", "y", "z"}:
        return False
    added = holding[0][0] == "+" and any(part in (("sym", name), ("neg", ("sym", name))) for part in holding[0][1])
    before_power = re.search(r"(?:e|\\exp|2|3)\s*(?:\^|\()", text) is not None
    return (added and name != "A") or before_power or (len(sides) == 2 and name not in ("A", "c"))


def _is_general(text: str, constants: list[str]) -> bool:
    """Whether it is a general solution: each constant stands in it once, times something with the only variable."""
    sides = split(text, "=")
    if len(sides) > 2 or (len(sides) == 2 and not _GENERAL.fullmatch(sides[0])) or ":" in text or RELATION.search(text):
        return False
    try:
        tree = read(sides[-1])
    except NotRead:
        return False
    variables = set(symbols(tree)) - set(constants)
    return (
        len(variables) == 1
        and variables <= _VARIABLES
        and all(_is_factor(tree, name, *variables) for name in constants)
    )


def _is_factor(tree: Tree, name: str, variable: str, *, times_variable: bool = False) -> bool:
    """Whether this symbol stands in `tree` once, in a term that it is a factor of and that has the variable."""
    kind = tree[0]
    if kind == "sym":
        return times_variable and tree[1] == name
    if kind == "neg":
        return _is_factor(tree[1], name, variable, times_variable=times_variable)
    parts: tuple[Tree, ...] = tree[1:] if kind == "/" else tree[1] if kind in ("+", "*") else ()
    holding = [part for part in parts if name in symbols(part)]
    if len(holding) != 1 or (kind == "/" and holding[0] is not tree[1]):
        return False
    others = [part for part in parts if part is not holding[0]]
    times_variable |= kind != "+" and any(variable in symbols(part) for part in others)
    return _is_factor(holding[0], name, variable, times_variable=times_variable)
