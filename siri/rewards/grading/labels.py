"""Lists of values with names: "x = 1, y = 2", "12 boys, 15 girls", A(1,2), several solutions of a system.

What has a name is compared under that name. Beside values without names the order counts in which the names are
written, for nothing else says which value is whose; that of the alphabet where they are neighbours in it, as p and q.
"""

import re
from collections.abc import Callable

from siri.rewards.grading.segments import unbarred
from siri.rewards.grading.structure import RELATION, bracketed, split
from siri.rewards.grading.units import counted, without_unit

Same = Callable[[str, str], bool]

_NAME = re.compile(r"[a-zA-Z](?:_\w)?|\\[a-z]+")
# What several things may be the same by: letters, segments, angles.
_MEASURED = re.compile(
    rf"{_NAME.pattern}|\|?[A-Z]{{2}}\|?|\\overline\s*\{{\s*[A-Z]{{2}}\s*\}}|m?\s*\\angle\s*\{{?\s*(?:[A-Z]{{1,3}}|"
    rf"\d)\s*\}}?"
)
_INDEXED = re.compile(r"\s*([a-zA-Z]|\\lambda\s*)_\{?(\d)\}?\s*=([^=]+)")
_COORDINATES = re.compile(r"([xyz])(?:_\{?\d\}?)?")
_ROOT = re.compile(r"x_[12]")
_POINT = re.compile(r"\s*([A-Z](?:_\w|')?)\s*(?:=\s*)?(\([^=]*\))")
_SET_OF = re.compile(
    r"\s*((?:[A-Z]|\\(?:complement|overline)\s*(?:_\w\s*)?\{?\s*[A-Z]\s*\}?)(?:\s*\\(?:cap|cup|"
    r"setminus)\s*[A-Z])*)\s*=\s*"
    r"(?=\\\{|\\emptyset|[(\[].*[)\]]$)"
)
_MEMBER = re.compile(
    r"\s*([a-zA-Z](?:\([a-z]\))?|\\(?:theta|alpha|beta|phi|lambda|omega)|"
    r"\([a-zA-Z](?:\s*,\s*[a-zA-Z])+\))\s*\\in(?![a-zA-Z])\s*"
)
# Words before a value, in \text or before a colon.
_WORDED = re.compile(r"\s*(?:\\text\{\s*([A-Za-z][A-Za-z' -]*+)(?::\s*\}|\}\s*:?)|([A-Za-z][A-Za-z' -]+):)\s*(?=\S)")
_CARRIED = re.compile(r"[-+\d\s./^{}a-z]*\d[-+\d\s./^{}a-z]*|-?\\frac\{\d+\}\{\d+\}")


def name_key(text: str) -> str:
    """A name without what may be left out of it: spaces, braces of an index, the sign of an angle."""
    text = re.sub(r"\\angle(?![a-zA-Z])|\s+|\\text|\\(?=(?:Pr|max|min)(?![a-zA-Z]))", "", text)
    text = re.sub(r"^\{?(max|min)(?:imum)?\}?$", r"\1", text)
    text = re.sub(r"^\\frac\{d([a-z])\}\{dx\}$|^d([a-z])/dx$", r"\1\2'", text)
    text = re.sub(r"^\\frac\{d\^([23])([a-z])\}\{dx\^\1\}$", lambda match: match[2] + "'" * int(match[1]), text)
    return re.sub(r"_\{(\w+)\}|\{(\w)\}", r"_\1\2" if "_{" in text else r"\1\2", text)


def label(text: str) -> tuple[str, str]:
    """What `text` names, and what is said of it, as in `P(A) = 1/2`, `A(1,2)`, `a \\in (0,1)`; the name is "" where it
    has none."""
    if match := _MEMBER.match(text):
        return name_key(match[1]), text[match.end() :]
    if match := _POINT.fullmatch(text):
        return match[1], match[2]
    sides = split(text, "=")
    if len(sides) == 2 and sides[0].strip() and not RELATION.search(text):
        return name_key(unbarred(sides)[0]), sides[1]
    return "", text


def _worded(text: str) -> str:
    """The words that a value is called by, as in "Quotient: x + 1"; "" for none."""
    match = _WORDED.match(text)
    return (match[1] or match[2]).strip().casefold() if match else ""


def without_label(text: str) -> tuple[str, str]:
    r"""The name of a set, or of what is in one, and the set: of `A \cap B = \{1\}`, `x \in (0, 1)`. "" for no name, and
    for the first of several."""
    match = _SET_OF.match(text) or _MEMBER.match(text)
    if match is None or len(split(text, ",;")) > 1:
        return "", text
    return name_key(match[1]), text[match.end() :]


def spread(parts: list[str]) -> list[str]:
    """With the names of a tuple before each of its values, `x = 1`, `y = 1` for `x = y = 1`, and `x = 2, x = 3` for
    `x = 2, 3`."""
    statements: list[str] = []
    names = ""
    for part in parts:
        inside = split(part, "=")
        names = inside[0] if len(inside) == 2 and bracketed(inside[0]) else names
        tuple_ = f"{names}={part}" if names and len(inside) == 1 and bracketed(part) else part
        last = label(statements[-1])[0] if statements else ""
        if last and len(inside) == 1 and _NAME.fullmatch(last) and _CARRIED.fullmatch(part):
            statements.append(f"{last}={part}")
        else:
            statements += named_members(tuple_) or chained(part) or [part]
    return statements


def named_members(text: str) -> list[str]:
    """`x = 1` and `y = 2` of `(x, y) = (1, 2)`; empty for whatever else."""
    sides = [side for side in map(bracketed, split(text, "=")) if side is not None]
    if text.count("=") != 1 or len(sides) != 2 or sides[0][0] != sides[1][0] or sides[0][0][:2] != ("(", ")"):
        return []
    names, values = sides[0][1], sides[1][1]
    if not all(_NAME.fullmatch(name.strip()) for name in names):
        return []
    return [f"{name.strip()}={value.strip()}" for name, value in zip(names, values, strict=True)]


def chained(text: str) -> list[str]:
    """`x = 1` and `y = 1` of `x = y = 1`; empty for whatever else."""
    *names, value = split(text, "=")
    if len({name.strip() for name in names}) < max(len(names), 2) or _MEASURED.fullmatch(value.strip()):
        return []
    return [f"{name}={value}" for name in names] if all(_MEASURED.fullmatch(name.strip()) for name in names) else []


def without_index(parts: list[str], others: list[str]) -> list[str]:
    r"""`x_1 = 1`, `x_2 = 2` as `x = 1`, `x = 2` where the others say x: solutions of one equation in any order. So are
    the eigenvalues \lambda_1, \lambda_2, while x_1 and x_2 may be the unknowns of a system."""
    indexed = [match.groups() for part in parts if (match := _INDEXED.fullmatch(part))]
    letters, indices = {letter for letter, _, _ in indexed}, {index for _, index, _ in indexed}
    if len(indices) < max(len(parts), 2) or len(letters) > 1:
        return parts
    [letter] = letters
    plain = letter.startswith("\\") or all(re.fullmatch(rf"\s*{letter}\s*=[^=]+", other) for other in others)
    return [f"{letter}={value}" for _, _, value in indexed] if plain else parts


def named_values(parts: list[str]) -> list[str]:
    """The values of `x = 1`, `y = 2` in the order of their names; empty if the parts are not all like that."""
    pairs = [label(part) for part in parts]
    if len({name for name, _ in pairs}) < len(parts) or not all(_NAME.fullmatch(name) for name, _ in pairs):
        return []
    if all(_COORDINATES.fullmatch(name) for name, _ in pairs) or _neighbours([name for name, _ in pairs]):
        pairs.sort(key=lambda pair: pair[0])
    return [value for _, value in pairs]


def _neighbours(names: list[str]) -> bool:
    """Whether they are letters that follow one another in the alphabet, such as p and q."""
    places = sorted(map(ord, names)) if all(len(name) == 1 for name in names) else []
    return places == list(range(places[0], places[0] + len(places))) if places else False


def systems(parts: list[str]) -> list[list[str]]:
    """The solutions of `x = 1, y = 2, x = 3, y = 4`, or of `x_1 = 1, y_1 = 2, x_2 = 3, y_2 = 4`, as a list of each;
    empty if these are not several solutions for the same names."""
    pairs = [label(part) for part in parts]
    matches = [_COORDINATES.fullmatch(name) for name, _ in pairs]
    numbered = [(match[1], name, value) for match, (name, value) in zip(matches, pairs, strict=True) if match]
    if len(numbered) == len(pairs) == len({name for name, _ in pairs}) > 2:
        pairs = [(letter, value) for letter, _, value in sorted(numbered, key=lambda each: each[1][1:])]
    names = list(dict.fromkeys(name for name, _ in pairs))
    width = len(names)
    if width < 2 or len(pairs) <= width or len(pairs) % width or not all(map(_NAME.fullmatch, names)):
        return []
    solutions = [pairs[start : start + width] for start in range(0, len(pairs), width)]
    if any({name for name, _ in solution} != set(names) for solution in solutions):
        return []
    return [[f"{name}={value}" for name, value in solution] for solution in solutions]


def same_labelled(golds: list[str], answers: list[str], same: Same) -> bool | None:
    """Whether two lists say the same of the same names; None where no names are told apart."""
    gold_solutions, solutions = systems(golds), systems(answers)
    if gold_solutions or solutions:
        return _same_solutions(gold_solutions, solutions, golds, answers, same)
    labels = [[label(part)[0] or _worded(part) for part in parts] for parts in (golds, answers)]
    for place, other in ((0, 1), (1, 0)):
        if all(labels[place]) and len(set(labels[place])) > 1 and not any(labels[other]):
            if len(golds) == 2 and all(map(_ROOT.fullmatch, labels[place])):
                return None  # the two roots of an equation
            things = [counted(part) for part in (answers, golds)[place]]
            words = [name.strip("{}").casefold() for name in labels[place]]
            if all(things) and any(len(word) > 2 for word in words):  # boys: 3 for 3 boys
                return sorted(word.removesuffix("s") for word in words) == sorted(things) and _same_worded(
                    *((golds, answers) if place == 0 else (answers, golds)), same, turned=place == 1
                )
            values = named_values((golds, answers)[place]) or (golds, answers)[place]
            pair = (values, answers) if place == 0 else (golds, values)
            return len(golds) == len(answers) and all(map(same, *pair))
    nouns = [[counted(part) for part in parts] for parts in (golds, answers)]
    if any(all(each) and len(set(each)) > 1 for each in nouns):
        return _same_counts(golds, answers, nouns[0], nouns[1], same)
    return None


def _same_worded(worded: list[str], counts: list[str], same: Same, *, turned: bool) -> bool:
    """Values under words, and the same numbers of things with these names."""
    values = {name.strip("{}").casefold().removesuffix("s"): value for name, value in map(label, worded)}
    for count in counts:
        pair = values.get(counted(count), ""), without_unit(count)[0]
        if not same(*(pair[::-1] if turned else pair)):
            return False
    return True


def _same_solutions(
    golds: list[list[str]], answers: list[list[str]], gold_parts: list[str], parts: list[str], same: Same
) -> bool:
    """Several solutions in any order, each with names or as a tuple."""
    if not golds or not answers:
        tuples = [bracketed(part) for part in (parts if golds else gold_parts)]
        values = [named_values(solution) for solution in golds or answers]
        if len(tuples) != len(values) or not all(each and each[0][:2] == ("(", ")") for each in tuples):
            return False
        rows = [each[1] for each in tuples if each]
        return _matched(values, rows, same) if golds else _matched(rows, values, same)
    ordered, others = ([sorted(solution, key=label) for solution in side] for side in (golds, answers))
    return _matched(ordered, others, same)


def _matched(golds: list[list[str]], answers: list[list[str]], same: Same) -> bool:
    """Whether the rows are the same in some order."""
    left = list(answers)
    for gold in golds:
        place = next((i for i, row in enumerate(left) if len(row) == len(gold) and all(map(same, gold, row))), None)
        if place is None:
            return False
        del left[place]
    return not left


def _same_counts(golds: list[str], answers: list[str], gold_nouns: list[str], nouns: list[str], same: Same) -> bool:
    """Counts of different things: by their nouns where these are the same, else in the order that is written."""
    if len(golds) != len(answers):
        return False
    if sorted(gold_nouns) == sorted(nouns):
        rows = [[noun, part] for noun, part in zip(gold_nouns, golds, strict=True)]
        others = [[noun, part] for noun, part in zip(nouns, answers, strict=True)]
        return _matched(rows, others, lambda gold, answer: gold == answer or same(gold, answer))
    if any(noun in gold_nouns and noun != gold_noun for gold_noun, noun in zip(gold_nouns, nouns, strict=True)):
        return False
    return all(map(same, golds, answers))
