"""The structure of an answer: members of a list or set, tuples, matrices, ratios, choices."""

import functools
import itertools
import re

from siri.rewards.grading.phrases import phrase

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
MONTH = "|".join(f"{month[:3]}(?:{month[3:]})?" for month in _MONTHS.split())
MONTH = MONTH.replace("sep(?:tember)", "sep(?:t(?:ember)?)")
_DATE = re.compile(
    rf"(?:({MONTH})\.?\s*(\d{{1,2}})|(\d{{1,2}})\s*(?:of)?\s*({MONTH})\.?)(?:,?\s*(\d{{4}}))?", re.IGNORECASE
)
_SIDE_BY_SIDE = re.compile(r"\s*(?:\([^()=]*,[^()=]*\)\s*){2,}")
_SYMMETRIC = re.compile(r"([^\\=,;]+|\\[a-z]+[A-Z]+)\\(perp|parallel|cong)(?![a-z]{2})([^=,;]+)")
_HOLDS = re.compile(r"([^\\=,;]+|\\[a-z]+[A-Z]+)\\(sup|sub)set(eqq?|neqq?)?(?![a-z]{2})([^=,;]+)")
_QUADRANT = re.compile(
    r"(?:the)?(?:(?:quadrant|q)(i{1,3}|iv|[1-4])|(i{1,3}|iv|[1-4]|first|second|third|fourth|1st|2nd|3rd|4th)quadrant)",
    re.IGNORECASE,
)
_QUADRANTS = ("i 1 1st first", "ii 2 2nd second", "iii 3 3rd third", "iv 4 4th fourth")
_ARTICLE = re.compile(
    r"^\s*(?:\\text\{\s*)?(?:(?:the|an?)\s+(?!set of)(?=[a-zA-Z]{3})|(?:it|they|this|the (?:lines|triangles|"
    r"two))\s+(?:is|are)\s+(?=[a-z]{5})|"
    r"it\s+(?=cannot\b|can't\b|does\b))(?=[a-zA-Z\s'-]*\}?\s*$)",
    re.IGNORECASE,
)
_ALL_NUMBERS = re.compile(
    r"(?:(?:the|set|of|all|any|odd|even|positive|negative|non-?negative|non-?zero|prime|composite|real|rational|"
    r"irrational|whole|natural|"
    r"integers?|numbers?|perfect|squares|cubes|multiples)\s*){3,}",
    re.IGNORECASE,
)
_DAY = re.compile(r"(?:(mon|fri|sun)|(tue)s?|(wed)(?:nes)?|(thu)(?:rs?)?|(sat)(?:ur)?)(?:day)?\.?", re.IGNORECASE)
_SIGNED_TUPLE = re.compile(r"\s*\\pm\s*\(([^()]*,[^()]*)\)\s*")
_LETTER = re.compile("[a-zA-Z]")
_FIRST = re.compile("[A-Za-z][a-z]{2,}:?")
_SHORT_WORDS = frozenset(re.findall(r"\w+", "yes no true false odd even all none dne not never always"))
_TIME = re.compile(r"(\d{1,2}(?::\d\d)?)([ap])\.?m\.?", re.IGNORECASE)
_NUMBER_SET = re.compile(
    r"(?:[nmk]\\in)?\\mathbb\{?([ZNQ])\}?((?:[_^]\{?(?:[+*]|>0)\}?)?)|(?i:(?:theset\s?of)?(?:all)?(?:the)?(positive|"
    r"negative|non-?negative)?"
    r"(integers|naturalnumbers|rationalnumbers))[nmk]?"
)
_KIND_OF_NUMBERS = re.compile(
    r"(?i:(?:theset\s?of)?(?:all)?(?:the)?(?:(even|odd|prime|composite)(?:integers|numbers|naturalnumbers)|"
    r"(prime)s))[nmk]?"
    r"|[nmk](?:is)(even|odd|prime)"
)
_TOGETHER = re.compile(r"[A-Z](?:\\(cup|cap)[A-Z])(?:\\\1[A-Z])*")
_TURNED = re.compile(r"\\(angle|triangle)([A-Z])([A-Z])([A-Z])")
_UNIT_VECTORS = re.compile(r"(?P<i>[^ijk]*?)i\s*(?:(?P<j>[-+][^ijk]*?)j\s*)?(?:(?P<k>[-+][^ijk]*?)k\s*)?")
_TRANSPOSED = re.compile(r"\s*\^\s*\{?\s*(?:T|\\top|\\intercal|\\text\{\s*T\s*\})\s*\}?")
_CHOICE = re.compile(
    r"(?P<said>(?:option|choice|answer)\s+)?"
    r"(?:\(\s*([A-Ja-j])\s*\)\s*[.:]?\s*|([A-J])\s*\)\s*|([A-J])\s*[.:]\s+|([A-J])$)(?![-+*/^=,_'])(.*)",
    re.IGNORECASE | re.DOTALL,
)
_MOST_EXPANDED = 200
RELATION = re.compile(r"\\le |\\ge |\\ne |<|>")
_OTHER_CHOICE = re.compile(
    r"\(\s*[A-Ja-j]\s*\)|\b[A-J]\s*[).:]|\b(?:or|and)\s+\(?[A-J]\b|[,;&]\s*\(?[A-J]\)?(?:$|\s+(?=[\d$\\]))|"
    r"^\(?[A-J]\)?$"
)


def squeezed(text: str) -> str:
    """Without spaces, but for those between digits: "1 5" is not 15."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)


@functools.lru_cache(1024)
def key(text: str) -> str:
    """What is compared as text: no spaces, no text commands; words and choice letters without case."""
    given = text
    if " " in text:
        text = _ARTICLE.sub(lambda match: "\\text{" if "{" in match[0] else "", text, count=1)
    plain = re.sub(r"(?<=[a-zA-Z])\.$", "", squeezed(re.sub(r"\\text\{([^{}]*)\}", r"\1", text)))
    if not _LETTER.search(plain):
        return plain if plain.isascii() else phrase(given) or plain
    if _NO_SUCH.fullmatch(plain):
        return "dne"
    if said := phrase(given):
        return said
    if "\\" in plain and (relation := _relation(plain)):
        return relation
    if "uadrant" in plain and (quadrant := _QUADRANT.fullmatch(plain)):
        name = next(filter(None, quadrant.groups())).lower()
        return f"quadrant {next(each for each in _QUADRANTS if name in each.split())[0:3]}"
    if day := date(plain):
        return day
    if time := _TIME.fullmatch(plain):
        return f"{time[1]} {time[2].lower()}m"
    if kind := _KIND_OF_NUMBERS.fullmatch(plain):
        return f"numbers {next(filter(None, kind.groups())).lower()}"
    if numbers := _NUMBER_SET.fullmatch(plain):
        return _number_set(numbers)
    if " " in text and _ALL_NUMBERS.fullmatch(words := without_text(text).lower()):
        return " ".join(sorted({word for word in words.split() if word not in ("the", "set", "of", "all", "any")}))
    if together := _TOGETHER.fullmatch(plain):
        sign = together[1]
        return f"\\{sign}".join(sorted(plain.split(f"\\{sign}")))
    if turned := _TURNED.fullmatch(plain):
        sign, first, middle, last = turned.groups()
        letters = sorted(turned.groups()[1:]) if sign == "triangle" else [*sorted((first, last)), middle]
        return f"{sign} {''.join(letters)}"
    if day := _DAY.fullmatch(plain):
        return next(filter(None, day.groups())).lower()
    letter = re.fullmatch(r"\(([A-Za-z])\)", plain)
    if letter:
        return letter[1].upper()
    if _is_spoken(plain):
        return plain.casefold()
    # words begin with a capital or not, and a colon behind them says nothing
    first = _FIRST.match(plain) if " " in text else None
    return first[0].lower().removesuffix(":") + plain[first.end() :] if first else plain


def _relation(text: str) -> str:
    """A relation in one order of its sides: that of a to b as that of b to a; "" for none."""
    if match := _SYMMETRIC.fullmatch(text):
        first, sign, second = match.groups()
        return f"\\{sign} ".join(sorted((first, second)))
    if match := _HOLDS.fullmatch(text):
        first, sign, equal, second = match.groups()
        first, second = (first, second) if sign == "sub" else (second, first)
        return f"{first}\\subset{equal or ''} {second}"
    return ""


def _is_spoken(text: str) -> bool:
    """Whether it is a word, whose case means nothing, and no product of letters: AB is not ab."""
    if not re.fullmatch(r"[A-Za-z]{2,}", text):
        return False
    word = text.casefold()
    if word in _SHORT_WORDS:
        return True
    if len(word) == 3:  # a name, such as Bob
        return bool(re.fullmatch("[A-Z]?[a-z]+", text) and re.fullmatch("[^aeiou][aeiou][^aeiou]", word))
    vowel = re.search("[aeiouy]", word[1:])
    return len(word) > 3 and bool(vowel) and list(word) != sorted(word) and not re.fullmatch("[A-F]+", text.upper())


def date(text: str) -> str:
    """A day of a month, and its year, in one spelling; "" for whatever else."""
    match = _DATE.fullmatch(re.sub(r"\\text\{([^{}]*)\}", r"\1", text).strip()) if _LETTER.search(text) else None
    return " ".join(((match[1] or match[4])[:3].lower(), match[2] or match[3], match[5] or "")) if match else ""


def _number_set(match: re.Match) -> str:
    r"""\mathbb{Z}^+ and "all positive integers" by one name."""
    letter, part, kind, word = match.groups()
    if letter:
        positive = bool(part) and not (letter == "Z" and "*" in part)
        return "numbers positive Z" if positive and letter in "ZN" else f"numbers {letter}{part or ''}"
    name = {"i": "Z", "n": "N", "r": "Q"}[word[0].lower()]
    return f"numbers {kind.lower().replace('-', '')} {name}" if kind else f"numbers {name}"


def components(gold: str, answer: str) -> tuple[list[str], list[str]] | None:
    r"""The parts of a vector that one side writes as a tuple and the other by i, j and k: (1, -2) is i - 2j."""
    for tuple_, other, turned in ((bracketed(gold), answer, False), (bracketed(answer), gold, True)):
        match = _UNIT_VECTORS.fullmatch(re.sub(r"\{\s*([ijk])\s*\}", r"\1", other))
        if not tuple_ or not match or tuple_[0][:2] != ("(", ")") or not (match["j"] or match["k"]):
            continue
        parts = [_coefficient(match[letter]) for letter in "ijk"[: len(tuple_[1])]]
        if len(parts) != (3 if match["k"] else 2) or len(tuple_[1]) != len(parts):
            continue  # (1, 2, 0) is no vector of the plane
        return (parts, tuple_[1]) if turned else (tuple_[1], parts)
    return None


def _coefficient(text: str | None) -> str:
    if text is None:
        return "0"
    text = text.strip()
    return f"{text}1" if text in ("", "+", "-") else text.removeprefix("+")


def without_text(text: str) -> str:
    """With words for what stands in \\text, but for the sign of degrees."""
    return re.sub(r"\\text\{(?!degree\})([^{}]*)\}", r" \1 ", text).strip()


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


def side_by_side(text: str) -> list[str]:
    """The pairs of "(2, 3)(2, 7)"; empty for whatever else."""
    return re.findall(r"\([^()]*\)", text) if _SIDE_BY_SIDE.fullmatch(text) else []


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
        if signed := _SIGNED_TUPLE.fullmatch(piece):
            elements = split(signed[1], ",")
            answers += [f"({signed[1]})", "(" + ",".join(f"-({element})" for element in elements) + ")"]
        elif count == 1 or (count == 0 and piece.count("\\mp") == 1):
            answers += [piece.replace("\\pm", a).replace("\\mp", b) for a, b in ("+-", "-+")]
        elif count == 2 and "\\mp" not in piece:
            answers += [
                re.sub(r"\\pm", first, piece, count=1).replace("\\pm", second) for first in "+-" for second in "+-"
            ]
        else:
            answers.append(piece)
    return _shortened(answers)


def _shortened(parts: list[str]) -> list[str]:
    """Of `0, 1, 2, ..., n` only what says how it goes on: the first two and the last."""
    place = next((i for i, part in enumerate(parts) if part.strip() in ("\\ldots", "...")), 0)
    before = parts[:place]
    if place < 2 or not all(re.fullmatch(r"\s*-?\d{1,9}\s*", part) for part in before):
        return parts
    values = [int(part) for part in before]
    steps = {b - a for a, b in itertools.pairwise(values)}
    if expanded := _expanded(values, steps, parts[place + 1 :]):
        return expanded
    return [*before[:2], *parts[place:]] if len(steps) == 1 and place > 2 else parts


def _expanded(values: list[int], steps: set[int], rest: list[str]) -> list[str]:
    """All of 1, 2, ..., 5; empty where it does not end, or takes other steps."""
    last = rest[0].strip() if len(rest) == 1 else ""
    if len(steps) != 1 or not re.fullmatch(r"-?\d{1,6}", last):
        return []
    [step] = steps
    if (
        not step
        or (len(values) < 3 and abs(step) > 1)
        or (int(last) - values[-1]) % step
        or not 0 < (int(last) - values[0]) // step < _MOST_EXPANDED
    ):
        return []
    return [str(value) for value in range(values[0], int(last) + step // abs(step), step)]


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
