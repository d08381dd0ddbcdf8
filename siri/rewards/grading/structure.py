"""The structure of an answer: members of a list or set, tuples, matrices, ratios, choices, names of values."""

import re

from siri.rewards.grading.grammar import NotRead, read, symbols
from siri.rewards.grading.numbers import Setting, Undecided, Undefined, number
from siri.rewards.grading.values import rational, same_value

_MATRIX = re.compile(
    r"(?P<before>.*?)(?P<open>\\?[(\[|{]?)\s*\\begin\{(?P<kind>[pbvBV]?(?:small)?matrix|array)\}(?:\s*\{[lcr|@{} ]*\})?"
    r"(?P<cells>.*)\\end\{(?P=kind)\}\s*(?P<close>\\?[)\]|}]?)",
    re.DOTALL,
)
_ROW_BREAK = re.compile(r"\\\\\s*(?:\[[^\[\]]*\]|\*)?|\\cr(?![a-zA-Z])|\\(?:tabularnewline|newline)(?![a-zA-Z])")
_NO_SUCH = re.compile(
    r"(?:it|(?:the)?(?:limit|value|number|answer|maximum|minimum|sum|integral|function|derivative))?"
    r"(?:does|do)(?:not|n't)(?:exist|existent)|d\.?n\.?e\.?|nonexistent",
    re.IGNORECASE,
)
_MONTHS = "january february march april may june july august september october november december"
_MONTH = "|".join(f"{month[:3]}(?:{month[3:]})?" for month in _MONTHS.split())
_DATE = re.compile(
    rf"(?:({_MONTH})\.?\s*(\d{{1,2}})|(\d{{1,2}})\s*(?:of)?\s*({_MONTH})\.?)(?:,?\s*(\d{{4}}))?", re.IGNORECASE
)
_DAY = re.compile(r"(?:(mon|fri|sun)|(tue)s?|(wed)(?:nes)?|(thu)(?:rs?)?|(sat)(?:ur)?)(?:day)?\.?", re.IGNORECASE)
_TRANSPOSED = re.compile(r"\s*\^\s*\{?\s*(?:T|\\top|\\intercal|\\text\{\s*T\s*\})\s*\}?")
_CHOICE = re.compile(
    r"(?P<said>(?:option|choice|answer)\s+)?"
    r"(?:\(\s*([A-Ja-j])\s*\)\s*[.:]?\s*|([A-J])\s*\)\s*|([A-J])\s*[.:]\s+|([A-J])$)(?![-+*/^=,_'])(.*)",
    re.IGNORECASE | re.DOTALL,
)
# What is between equals signs and is more than a name: operations, a logarithm, the amount of one unknown.
_TO_BE_SOLVED = re.compile(
    r"[-+*/^\d!%]|\\(?:sqrt|cdot|times|pm|l?dots|ln|lg|log|exp|[lr]floor|[lr]ceil|binom)(?![a-zA-Z])|"
    r"\b(?:ln|lg|log|exp)\b|^\|\s*[a-vxy]\s*\|$|\\lvert\s*[a-vxy]\s*\\rvert"
)
_NAME = re.compile(r"[a-zA-Z](?:_\w)?|\\[a-z]+")
_INDEXED = re.compile(r"\s*([a-zA-Z])_\{?(\d)\}?\s*=([^=]+)")
RELATION = re.compile(r"\\le |\\ge |\\ne |<|>")
_ROUNDING = 0.02
_BITS = 64
_OTHER_CHOICE = re.compile(
    r"\(\s*[A-Ja-j]\s*\)|\b[A-J]\s*[).:]|\b(?:or|and)\s+\(?[A-J]\b|[,;&]\s*\(?[A-J]\)?$|^\(?[A-J]\)?$"
)


def squeezed(text: str) -> str:
    """Without spaces, but for those between digits: "1 5" is not 15."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)


def key(text: str) -> str:
    """What is compared as text: no spaces, no text commands; words and choice letters without case."""
    plain = re.sub(r"(?<=[a-zA-Z])\.$", "", squeezed(re.sub(r"\\text\{([^{}]*)\}", r"\1", text)))
    if _NO_SUCH.fullmatch(plain):
        return "dne"
    if date := _DATE.fullmatch(plain):
        return " ".join(((date[1] or date[4])[:3].lower(), date[2] or date[3], date[5] or ""))
    if day := _DAY.fullmatch(plain):
        return next(filter(None, day.groups())).lower()
    letter = re.fullmatch(r"\(([A-Za-z])\)", plain)
    if letter:
        return letter[1].upper()
    return plain.casefold() if re.fullmatch(r"[A-Za-z]{2,}", plain) else plain


def split(text: str, separators: str) -> list[str]:
    """`text` at the separators that are outside of all brackets."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif depth == 0 and char in separators:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


def enclosed(text: str) -> bool:
    """Whether the first bracket of `text` closes with its last character."""
    depth = 0
    for i, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if depth == 0:
            return i == len(text) - 1
    return False


def members(text: str) -> list[str]:
    r"""The answers of a list or set, whose order means nothing; `a \pm b` is two of them, and `\mp` goes with `\pm`."""
    text = text.strip()
    if words := re.fullmatch(r"\\text\{([^{}]*[,;][^{}]*)\}", text):
        text = words[1].strip()
    if re.fullmatch(r"\\?\{\s*\\(?:emptyset|varnothing)\s*\\?\}", text):
        return [text]  # the set that holds the empty one
    if text.startswith("\\{") and text.endswith("\\}") and enclosed(text[1:-2] + "}"):
        text = text[2:-2]
    elif text.startswith("{") and text.endswith("}") and enclosed(text):
        text = text[1:-1]
    answers = []
    for piece in split(text, ",;"):
        count = piece.count("\\pm")
        if count == 1 or (count == 0 and piece.count("\\mp") == 1):
            answers += [piece.replace("\\pm", a).replace("\\mp", b) for a, b in ("+-", "-+")]
        elif count == 2 and "\\mp" not in piece:
            answers += [
                re.sub(r"\\pm", first, piece, count=1).replace("\\pm", second) for first in "+-" for second in "+-"
            ]
        else:
            answers.append(piece)
    return answers


def bracketed(text: str) -> tuple | None:
    """Shape and elements of a tuple or interval, whose order and brackets mean something."""
    text = text.strip()
    if not text or text[0] not in "([" or text[-1] not in ")]" or not enclosed(text):
        return None
    elements = split(text[1:-1], ",;")
    return ((text[0], text[-1], len(elements)), elements) if len(elements) > 1 else None


Chain = tuple[list[str], list[str]]


def chains(gold: str, answer: str) -> tuple[list[str], list[str]] | None:
    """The sides of two chains such as `a < b < c` and `c > b > a`, from the least on; beside an interval the ends of
    `a < x < b`, whatever letter stands in it. Sides that cannot be the same if the signs differ; None for no chains."""
    intervals = _interval(gold), _interval(answer)
    golds, answers = intervals[0] or _chain(gold), intervals[1] or _chain(answer)
    if golds is None or answers is None or all(intervals):
        return None
    if any(intervals):
        golds, answers = _ends(golds), _ends(answers)
    (sides, signs), (other_sides, other_signs) = golds, answers
    return (sides, other_sides) if signs == other_signs and len(sides) == len(other_sides) else ([""], [""])


def _interval(text: str) -> Chain | None:
    inside = bracketed(text)
    if inside is None or len(inside[1]) != 2 or RELATION.search(text):
        return None
    (opening, closing, _), ends = inside
    return ends, ["<" if opening == "(" else "\\le ", "<" if closing == ")" else "\\le "]


def _chain(text: str) -> Chain | None:
    sides, signs = RELATION.split(text), RELATION.findall(text)
    if len(signs) < 2 or len({sign in (">", "\\ge ") for sign in signs}) > 1 or "\\ne " in signs:
        return None
    if signs[0] in (">", "\\ge "):
        sides, signs = sides[::-1], ["<" if sign == ">" else "\\le " for sign in signs[::-1]]
    return sides, signs


def _ends(chain: Chain) -> Chain:
    """Of `a < x < b`; the chain itself where it is not like that."""
    sides, signs = chain
    letter = sides[1].strip()
    inner = len(sides) == 3 and re.fullmatch("[a-zA-Z]|\\\\[a-z]+", letter) and letter not in sides[0] + sides[2]
    return ([sides[0], sides[2]], signs) if inner else chain


def matrix(text: str) -> tuple | None:
    """Shape and cells of a matrix in any brackets, times what stands before it; a determinant is another thing."""
    text = text.strip()
    if turned := _TRANSPOSED.search(text):
        inner = text[: turned.start()]
        if turned.end() != len(text) or not (inside := matrix(inner) or _row_vector(inner)) or inside[0][0]:
            return None
        (_, lengths), cells = inside
        if len(set(lengths)) != 1:
            return None
        width = lengths[0]
        return (False, (len(lengths),) * width), [
            cells[row * width + at] for at in range(width) for row in range(len(lengths))
        ]
    if text.startswith("[["):
        return _nested_rows(text)
    match = _MATRIX.fullmatch(text)
    if not match:
        return None
    text = re.sub(r"\\hline(?![a-zA-Z])", "", match["cells"])
    rows = [row.split("&") for row in _ROW_BREAK.split(text)]
    rows = [row for row in rows if "".join(row).strip()] or rows[:1]
    determinant = match["kind"][0] in "vV" or match["open"] == "|"
    factor = re.sub(r"\\(?:cdot|times)\s*$|\*\s*$", "", match["before"].strip()).strip()
    factor = "-1" if factor == "-" else factor
    cells = [f"({factor})({cell})" if factor else cell for row in rows for cell in row]
    return (determinant, tuple(map(len, rows))), cells


def _row_vector(text: str) -> tuple | None:
    inside = bracketed(text)
    return ((False, (len(inside[1]),)), inside[1]) if inside else None


def _nested_rows(text: str) -> tuple | None:
    """`[[1, 2], [3, 4]]`, as programs write a matrix."""
    if not text.endswith("]]") or not enclosed(text):
        return None
    rows = [bracketed(row) for row in split(text[1:-1], ",;")]
    if any(row is None or row[0][:2] != ("[", "]") for row in rows):
        return None
    cells = [cell for row in rows if row for cell in row[1]]
    return (False, tuple(len(row[1]) for row in rows if row)), cells


def ratio(text: str) -> tuple | None:
    """The parts of a ratio or a time of day: as quotients, 8:34 and 4:17 would be the same."""
    parts = split(re.sub(r"(?<=[\w}])\s*(?:\\text\{\s*to\s*\}|\bto\b)\s*(?=[\w\\])", ":", text), ":")
    return (len(parts), parts) if len(parts) > 1 else None


def choice(text: str) -> tuple[str, str]:
    """The letter of a choice and its text, as in "(B) 12", "B. 12", "B: the second"; empty where there is none."""
    match = _CHOICE.fullmatch(re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).strip())
    if match is None:
        return "", ""
    said, *letters, rest = match.groups()
    letter = next(filter(None, letters))
    if letters[0] is None and letter.islower() and not said:
        return "", ""
    return letter.upper(), rest.strip()


def has_other_choices(text: str) -> bool:
    """Whether the text of a choice names another one: "B) 12 or C) 13" chooses nothing."""
    return bool(_OTHER_CHOICE.search(text))


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
    if len({name.strip() for name in names}) < max(len(names), 2) or _NAME.fullmatch(value.strip()):
        return []
    return [f"{name}={value}" for name in names] if all(_NAME.fullmatch(name.strip()) for name in names) else []


def without_index(parts: list[str], others: list[str]) -> list[str]:
    """`x_1 = 1`, `x_2 = 2` as `x = 1`, `x = 2` where the others say x: solutions of one equation in any order."""
    indexed = [match.groups() for part in parts if (match := _INDEXED.fullmatch(part))]
    letters, indices = {letter for letter, _, _ in indexed}, {index for _, index, _ in indexed}
    if len(indices) < max(len(parts), 2) or len(letters) > 1:
        return parts
    [letter] = letters
    plain = all(re.fullmatch(rf"\s*{letter}\s*=[^=]+", other) for other in others)
    return [f"{letter}={value}" for _, _, value in indexed] if plain else parts


def named_values(parts: list[str]) -> list[str]:
    """The values of `x = 1`, `y = 2` in the order of their names; empty if the parts are not all like that."""
    pairs = [pair for part in parts if (pair := re.fullmatch(rf"\s*({_NAME.pattern})\s*=([^=]+)", part))]
    if len({pair[1] for pair in pairs}) < len(parts):
        return []
    return [pair[2] for pair in sorted(pairs, key=lambda pair: pair[1].strip("\\"))]


def names_a_value(sides: list[str], *, as_answer: bool) -> bool:
    r"""Whether an equation only says what its right side is: `x = 5` is 5, and so is `f(2) = 5`; `1/2 = 0.5` is 0.5.

    As an answer, `a + b = 17` is 17, too: two unknowns say nothing else than what the question asked for. `2x = 17`,
    `\ln x = 17` and `|x| = 17` are equations to be solved, `x + y = 0` is the equation of a line, and a gold answer of
    that kind wants the equation. Of `x = 6 = 5` nobody knows what it says.
    """
    name = re.sub(r"_(?:\w|\{[^{}]*\})|'|\^\{?\\prime\}?", "", sides[0]).strip()
    name = re.sub(r"^([a-zA-Z])\s*(?:\^\{-1\}\s*)?\([^()]*\)$", r"\1", name)
    if not _TO_BE_SOLVED.search(name):
        return _close_together(sides[1:])
    plain = re.sub(r"\\[a-zA-Z]+|(?<![a-zA-Z])(?:ln|lg|log|exp|e)(?![a-zA-Z])", "", name)
    letters = set(re.findall(r"[a-zA-Z]", re.sub(r"[a-zA-Z]\s*\([^()]*\)", "f", plain)))
    if not letters:
        return _both_closed_and_equal(sides)
    if not as_answer or len(letters) < 2:
        return False
    try:
        return rational(read(sides[-1])) != 0 and not symbols(read(sides[-1])) and _close_together(sides[1:])
    except NotRead:
        return False


def _close_together(sides: list[str]) -> bool:
    """Whether the numbers in a chain of equations are one, but for rounding."""
    values = []
    for side in sides[:-1] and sides:
        try:
            tree = read(side)
            value = rational(tree)
            values += [] if symbols(tree) else [number(tree, Setting(), _BITS) if value is None else value]
        except (NotRead, Undefined, Undecided):
            pass
    try:
        numbers = [complex(value) for value in values]
    except OverflowError:
        return False
    return all(abs(value - numbers[-1]) <= _ROUNDING * abs(numbers[-1]) for value in numbers)


def _both_closed_and_equal(sides: list[str]) -> bool:
    """1/2 = 0.5 is a value, 2 + 2 = 5 is none. What is not read is let through, as it always was."""
    try:
        trees = [read(re.sub(r"\\text\{[^{}]*\}", "", side)) for side in sides]
    except NotRead:
        return True
    return all(same_value(trees[0], tree) for tree in trees[1:])
