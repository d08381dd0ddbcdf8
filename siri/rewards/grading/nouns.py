"""Words behind a number that are no units: what was counted, and which way.

Where both answers have such words and these differ, nobody knows that they say the same: 20 km north is no 20 km
south, profit is no loss, and no list of opposites would ever end. They agree if they are known to: in singular and
plural, where one says all that the other does and more, where one only counts ("ways", "possibilities"), or by a few
synonyms. Where the gold answer has none, those of the response have to be a noun: anything else may take the value back
("5 ruled out"), or make another number of it ("5 short").
"""

import re

from siri.rewards.grading.measures import COMPOUNDS, measure
from siri.rewards.grading.products import with_product
from siri.rewards.grading.units import without_unit

# Nouns that only say that something was counted.
_COUNTING = frozenset(
    re.findall(
        r"\w+",
        "way arrangement possibility choice solution value integer number pair combination permutation outcome element "
        "item case option total unit thing object triple triplet quadruple tuple sequence count answer selection",
    )
)
# Words that say nothing of what was counted.
_IDLE = frozenset(
    re.findall(
        r"\w+",
        "a an the of in on at is are was were be it its there all in total altogether exactly only different distinct "
        "possible such each per ordered unordered unique th st nd rd to for that which can so squared cubed",
    )
)
_SYNONYMS = """
child: kid
student: pupil
person: people human
candy: sweet
bicycle: bike
photo: photograph picture
game: match
step: move
counterclockwise: anticlockwise
car: automobile
north: northward northwards
south: southward southwards
east: eastward eastwards
west: westward westwards
increase: increased rise
decrease: decreased reduction
left: remaining
percentage: percent
"""
# Of people the first is said of the others as well.
_PEOPLE = frozenset(
    ("boy", "girl", "man", "woman", "child", "student", "teacher", "player", "son", "daughter", "adult")
)
_KINDS = {
    "person": _PEOPLE,
    "student": frozenset(("boy", "girl")),
    "child": frozenset(("boy", "girl", "son", "daughter")),
}
_NAMES = {word: name for name, words in re.findall(r"(\w+): (.+)", _SYNONYMS) for word in words.split()}
_SEVERAL = frozenset(("pair", "triple", "triplet", "quadruple", "dozen"))
_DENYING = frozenset(("no", "not", "without", "never", "neither", "nor", "except", "instead", "than"))
_DIRECTIONS = frozenset(("north", "south", "east", "west"))
_IRREGULAR = {
    "children": "child",
    "men": "man",
    "women": "woman",
    "mice": "mouse",
    "geese": "goose",
    "teeth": "tooth",
    "dice": "die",
    "vertices": "vertex",
    "indices": "index",
    "matrices": "matrix",
    "halves": "half",
    "knives": "knife",
    "wolves": "wolf",
    "leaves": "leaf",
    "loaves": "loaf",
    "shelves": "shelf",
}
_PLURALS = frozenset(_IRREGULAR) | frozenset(
    re.findall(
        r"\w+",
        "people sheep fish deer data radii foci loci polyhedra formulae bacteria staff rice money fruit water milk "
        "homework furniture total altogether each left remaining exactly only old long tall wide deep high apart north "
        "needed required available maximum minimum max min",
    )
)
# A word with one of these before it says the opposite.
_OPPOSITE = re.compile(r"(?:non|un|in|im|dis|anti|counter|mis)-?")
# Units in these spellings are rather words.
_WORDS = frozenset(("in", "a", "are", "squares"))
_BEHIND = re.compile(
    r"(?P<number>[^a-zA-Z]*\d.*?)\s*(?:\\text\{(?P<text>[^{}]*[a-zA-Z][^{}]*)\}|"
    r"(?<=[\d}\s])(?P<plain>[a-zA-Z][a-zA-Z.()/ -]*))\s*(?:\^\s*\{?[23]\}?)?"
)
_LINKING = re.compile(r"is|ss|us|less|ness|plus|minus|times|perhaps|thus|always|sometimes|yes|versus|as|was|has")
_SINGLE = re.compile(r"\s*(?:1|1\.0+|0?\.\d+|\d*\.\d+|\\frac.*|\d+\s*/\s*\d+)\s*")

Said = tuple[tuple[str, ...], tuple[str, ...]]


def said_behind(text: str) -> Said | None:
    """The words behind a number, over and under "per"; None where there are none."""
    match = _match(text)
    if match is None:
        return None
    over, _, under = _spelled(match["text"] or match["plain"]).partition(" per ")
    said = tuple(_stems(part) for part in (over, under))
    return (said[0], said[1]) if any(said) else None


def _match(text: str) -> re.Match | None:
    match = _BEHIND.fullmatch(text.strip()) if re.search("[a-zA-Z]", text) else None
    if match is None or "\\text{" in match["number"].replace("\\text{degree}", ""):
        return None
    if with_product(text.strip()):  # units in every word
        return None
    return match if without_unit(text)[0] != text.strip() else None


def _spelled(words: str) -> str:
    words = words.replace(".", "").replace("/", " per ")
    for pattern, unit in COMPOUNDS:
        words = pattern.sub(unit, words)
    return words


def _stems(text: str) -> tuple[str, ...]:
    """Words in the singular, in one order but where they are directions; no units, and no words that say nothing."""
    words = [word.casefold() for word in re.findall(r"[a-zA-Z]+(?:-[a-zA-Z]+)*", text)]
    stems = dict.fromkeys(_stem(word) for word in words if word not in _IDLE and not _is_a_unit(word))
    return tuple(stems) if _DIRECTIONS.intersection(stems) else tuple(sorted(stems))


def _is_a_unit(word: str) -> bool:
    return word not in _WORDS and measure(word) is not None


def _stem(word: str) -> str:
    if word in _IRREGULAR:
        word = _IRREGULAR[word]
    elif len(word) > 3 and word.endswith("ies"):
        word = f"{word[:-3]}y"
    elif len(word) > 4 and re.search("(?:[sxz]|ch|sh)es$", word):
        word = word[:-2]
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    return _NAMES.get(word, word)


def same_words(gold: Said, answer: Said) -> bool:
    """Whether the words behind two numbers are known to say the same."""
    return all(map(_agree, gold, answer))


def _agree(golds: tuple[str, ...], answers: tuple[str, ...]) -> bool:
    if golds == answers:
        return True
    if any(_is_opposite(a, b) or _is_opposite(b, a) for a in golds for b in answers):
        return False
    left, right = set(golds) - _COUNTING, set(answers) - _COUNTING
    if _DENYING.intersection({*golds} ^ {*answers}) or _DIRECTIONS.intersection(left ^ right):
        return False  # no profit, north and north west
    if (left or right) and _SEVERAL.intersection({*golds} ^ {*answers}):
        return False  # pairs of socks are not socks
    if left == right and len(left) > 1 and _DIRECTIONS.intersection(left):
        return False  # north of east is not east of north
    for kind, names in _KINDS.items():
        if kind in left | right and (left | right) & names:
            left, right = ({kind if word in names else word for word in words} for words in (left, right))
    return left <= right or right <= left


def _is_opposite(word: str, other: str) -> bool:
    prefix = _OPPOSITE.match(word)
    return prefix is not None and _stem(word[prefix.end() :]) == other


def counts_only(text: str) -> bool:
    """Whether the words behind a number say what was counted: a noun in the plural stands among them, or in the
    singular behind one and parts of one; in brackets it has to be the last word."""
    match = _match(text)
    if match is None:
        return True
    said = _spelled(match["text"] or match["plain"])
    words = re.findall(r"[a-zA-Z]+(?:-[a-zA-Z]+)*", said)
    if said.strip().startswith("("):
        words = words[-1:]
    if any(_is_a_unit(word) or _is_plural(word.casefold()) for word in words):
        return True
    last = words[-1].casefold() if words else ""
    singular = _SINGLE.fullmatch(match["number"]) and not said.strip().startswith("(")
    return bool(singular) and not re.match("un|in|non", last) and not last.endswith(("ly", "ed", "ing", "ful"))


def _is_plural(word: str) -> bool:
    last = word.rpartition("-")[2]
    if last in _PLURALS or _stem(last) in _COUNTING or last in ("st", "nd", "rd", "th"):
        return True
    return len(last) > 3 and last.endswith("s") and not _LINKING.search(last[-4:])
