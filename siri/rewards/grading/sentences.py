r"""Sentences around one value: "There are 12 ways", "\text{The area is }12", "minimum value 12".

A label is dropped by its form: a noun that a question may ask for, with what may stand beside it. Every other word may
say that the number is another one ("half: 5", "answer squared: 5", "nonsolutions = 5"), so it stays.
"""

import re

_NOUNS = frozenset(
    re.findall(
        r"\w+",
        "answer result solution value number total sum product difference quotient ratio remainder count amount "
        "quantity "
        "area volume perimeter circumference radius diameter length width height depth breadth side base "
        "hypotenuse leg "
        "altitude median midpoint distance displacement speed velocity acceleration time duration rate cost price "
        "profit "
        "loss revenue income salary wage discount interest tax balance money weight mass density pressure force energy "
        "power work temperature charge current voltage resistance frequency wavelength period amplitude phase mean "
        "average "
        "mode range variance deviation probability chance expectation percentage percent fraction proportion age "
        "year day "
        "date month hour angle measure slope gradient intercept vertex center centre focus directrix eccentricity "
        "equation "
        "line point coordinate coordinates abscissa ordinate integer integers digit digits term coefficient "
        "constant degree "
        "determinant rank trace eigenvalue eigenvalues roots zeros solutions values answers numbers minimum "
        "maximum min max "
        "limit supremum infimum derivative integral function formula expression sequence set domain range interval "
        "bound "
        "side sides vertices edges faces diagonals angles people students children workers ways pairs triples subsets "
        "arrangements permutations combinations possibilities outcomes choices divisors factors multiples primes "
        "bound gcd lcm hcf capacity size dimension dimensions score mark marks grade population yield output share "
        "part "
        "portion circumradius inradius apothem semiperimeter curvature torsion norm magnitude modulus argument ans "
        "option "
        "choice position rank order height altitude tension torque momentum impulse efficiency concentration "
        "volume mode"
        " lhs rhs figure shape name letter word matrix vector plane circle parabola locus graph curve function fps",
    )
)
_BESIDE = frozenset(
    re.findall(
        r"\w+",
        "the a an its their his her our your this that these those so thus hence therefore and final correct exact "
        "required "
        "desired smallest largest least greatest lowest highest biggest maximum minimum maximal minimal max min "
        "total overall "
        "only unique surface lateral curved expected mean average positive negative integer real such possible "
        "common greatest "
        "cross sectional conditional absolute initial last first new original original resulting new side base arc "
        "chord "
        "edge shortest longest fastest slowest earliest latest cheapest optimal best closest nearest sample "
        "standard central "
        "inscribed circumscribed shaded remaining general particular limiting constant leading prime whole "
        "natural rational distinct different ordered actual true sample simple combined present current average "
        "selling marked list net gross annual monthly weekly daily ending starting",
    )
)
# Between a noun and what it is of; the rest is free but for words that make another number of it.
_OF = frozenset(
    ("of", "in", "for", "between", "that", "which", "from", "on", "with", "at", "to", "by", "who", "when", "per")
)
_NO_REST = re.compile(
    r"\b(?:not?|non\w*|never|without|half|twice|double\w*|triple\w*|square[ds]?|cubed?|minus|plus|less|more|except|"
    r"wrong|invalid|"
    r"incorrect|false|un\w+|times|over|above|below|error|guess\w*|maybe|perhaps|or|isn|isnt|doesn|doesnt|reciprocal|"
    r"inverse|"
    r"opposite|negat\w+|complement|log\w*)\b",
    re.IGNORECASE,
)
_VERB = (
    r"(?:is|are|was|were|equals|will be|must be|should be|has to be|comes (?:out )?to|becomes|is equal to|are equal to)"
)
_COUNTED = r"(?:(?:exactly|only|precisely|a total of|in total|just)\s*)"
_LABEL = r"(?P<label>[A-Za-z][A-Za-z' -]*?)"
_PLAIN = _LABEL.replace("label", "plain")
# Up to a value: what stands before it in words, in \text or not.
_THERE = re.compile(
    rf"\s*(?:\\text\{{\s*)?(?:(?:so|thus|hence|therefore),?\s+)?(?:there\s+(?:is|are|were|was|will be|must be)|"
    rf"it\s+is|it\s*'s|"
    rf"(?:this|that)\s+is|(?:he|she|they|we|it|I|you)\s+(?:has|have|had|gets?|got|needs?|"
    rf"needed))\s*{_COUNTED}?(?P<closed>\}})?\s*"
    r"(?=-?[\d$\\])(?!\\text)",
    re.IGNORECASE,
)
_ONLY = re.compile(rf"\s*\\text\{{\s*{_COUNTED}\}}\s*(?=-?[\d$\\])(?!\\text)", re.IGNORECASE)
_ONLY_IN = re.compile(rf"\s*\\text\{{\s*{_COUNTED}(?=-?\d[^{{}}]*\}})", re.IGNORECASE)
_SENTENCE = re.compile(
    rf"\s*(?:\\text\{{\s*{_LABEL}\s*(?P<said>{_VERB}\s*:?|:)?\s*{_COUNTED}?\}}\s*(?P<colon>:)?|"
    rf"{_PLAIN}\s+{_VERB}\s*)\s*"
    r"(?=\(?-?[\d$\\.])(?!\\text)",
    re.IGNORECASE,
)
_INSIDE = re.compile(
    rf"\s*\\text\{{\s*{_LABEL}\s+{_VERB}\s*:?\s*{_COUNTED}?(?P<rest>-?\d[^{{}}]*)\}}\s*", re.IGNORECASE
)
# "The value of" x "is".
_AROUND = re.compile(
    rf"\s*\\text\{{\s*{_LABEL}\s+of\s*\}}\s*(?P<name>[a-zA-Z](?:_\w)?|\\(?:angle|triangle)\s*[A-Z]+|[A-Z]{{2,6}})\s*"
    rf"\\text\{{\s*{_VERB}\s*:?\s*\}}\s*",
    re.IGNORECASE,
)
_AMOUNT = re.compile(r"^(-?\d[\d.,/]*)\s+([a-zA-Z].*?)\s*$")
_NO_VALUE = frozenset(("answer", "result", "value", "number", "solution", "ans"))
_NAMED = re.compile(r"\s*(?:\\(max|min)|\\text\{([^{}]*)\})\s*=")
_MOST_CHARS = 120


def is_label(words: str) -> bool:
    """Whether words before a value are what may have been asked for."""
    return label_of(words) is not None


def label_of(words: str) -> str | None:
    """What is said to have the value, in one spelling, "" for no more than "the answer"; None where the words may make
    another number of it."""
    plain = [word.casefold() for word in re.findall(r"[A-Za-z]+", words.replace("'s", " "))]
    place = next((at for at, word in enumerate(plain) if word in _OF), len(plain))
    head, rest = plain[:place], plain[place:]
    if not head or (head[-1] not in _NOUNS) or not all(word in _BESIDE or word in _NOUNS for word in head):
        return None
    if rest and (len(rest) < 2 or _NO_REST.search(" ".join(rest))):
        return None
    told = [
        word for word in head if word not in ("the", "a", "an", "final", "correct", "so", "thus", "hence", "therefore")
    ]
    told = [word.removesuffix("imum") for word in told if word not in _NO_VALUE]
    return " ".join(told + rest)


def called(text: str) -> str:
    """What a value is called by a label or a name in words; "" for nothing."""
    if match := _NAMED.match(text):
        return match[1] or label_of(match[2]) or ""
    return labelled(text)[0]


def labelled(text: str) -> tuple[str, str]:
    """The label of a value, "" for none or one that says nothing, and the text without it."""
    if len(text) > 4 * _MOST_CHARS or not re.search(r"[A-Za-z]{2}", text):
        return "", text
    for pattern in (_THERE, _ONLY):
        if match := pattern.match(text):
            rest = text[match.end() :]
            opened = match[0].count("{") > match[0].count("}")
            return "", f"\\text{{{rest}" if opened else rest
    if match := _ONLY_IN.match(text):
        return "", f"\\text{{{text[match.end() :]}"
    if match := _INSIDE.fullmatch(text):
        label = label_of(match["label"])
        return ("", text) if label is None else (label, _AMOUNT.sub(r"\1\\text{ \2}", match["rest"]))
    match = _AROUND.match(text) or _SENTENCE.match(text)
    if match is None:
        return "", text
    groups = match.groupdict()
    words = groups.get("label") or groups.get("plain") or ""
    label = label_of(f"{words} of {groups['name']}") if groups.get("name") else label_of(words)
    rest = text[match.end() :]
    if label is None or len(words) > _MOST_CHARS or not rest.strip():
        return "", text
    if not (groups.get("said") or groups.get("colon") or groups.get("plain") or groups.get("name")) and rest[0] == "(":
        return "", text  # a function of several letters
    return label, rest
