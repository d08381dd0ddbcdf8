r"""Answers in words that are said in more than one way: "The curve is an ellipse", 充分不必要, "increased by 20%".

Each phrase is matched as a whole, so that any word more ("not parallel", "increasing on (0, 1)") leaves it as it is.
"""

import re

_SUBJECT = re.compile(
    r"(?:it|this|that|they|these|the (?:two )?(?:given )?(?:\w+ )?(?:function|sequence|series|lines?|planes?|vectors?|"
    r"circles?|curves?|graph|locus|figure|shape|conic(?: section)?|trajectory|path|equation|triangle|quadrilateral|"
    r"triangles|system|matrix|integral|points?|relation|map|mapping|set|"
    r"set of points|statement|proposition|claim|assertion|conclusion))\s(?:is|are|represents?|describes?|"
    r"forms?)\s",
)
_ARTICLE = re.compile(r"^(?:an?|the)\s")
_OF_FUNCTIONS = re.compile(
    r"(?:an? )?(?P<how>(?:strictly |monotonic(?:ally)? )?(?:increasing|decreasing)|odd|even)(?P<of> function)?"
)
_RELATED = re.compile(r"(?:mutually )?(?:parallel|perpendicular|skew|similar|congruent|coplanar|concentric|tangent)")
_CURVES = frozenset(
    re.findall(
        r"[a-z]+",
        "ellipse circle parabola hyperbola line point square rectangle rhombus parallelogram trapezoid trapezium kite "
        "pentagon hexagon octagon cylinder cone sphere plane ray segment triangle quadrilateral",
    )
)
_STRAIGHT = re.compile(r"straight (?=line$)")
_TRIANGLE = re.compile(
    r"(?P<sides>(?:(?:isosceles|equilateral|scalene|right(?:[ -]angled)?|acute(?:[ -]angled)?|obtuse(?:[ -]angled)?)"
    r"(?: and | |, |$)){1,2})(?P<noun>triangle)?"
)
_BY_SIDES = frozenset(("isosceles", "equilateral", "scalene"))
# Alone these are said of triangles, or of angles as "angle"; "right" may be a side.
_BY_ANGLES = frozenset(("acute", "obtuse"))
# With the noun that it is said of, or without: whatever else stands beside it ("bounded above") says more.
_QUALITIES = re.compile(
    r"periodic|aperiodic|continuous|discontinuous|differentiable|bounded|unbounded|injective|surjective|bijective|"
    r"one-to-one|consistent|inconsistent|linearly (?:in)?dependent|invertible|singular|non-?singular|collinear|"
    r"concurrent|symmetric|transitive|reflexive"
)
_CONVERGENCE = re.compile(
    r"(?:(?:it|this|the (?:given )?(?:improper )?(?:series|sequence|integral|sum)) )?(?:(?:is )?"
    r"(?:(?P<how>absolutely|conditionally) )?(?P<is>con|di)vergent|"
    r"(?P<does>con|di)verges(?: (?P<so>absolutely|conditionally))?)"
)
_NONE_OF = re.compile(
    r"(?:there (?:are|is) |(?:it|the (?:\w+ )?(?:equation|polynomial|function|quadratic)) has )?"
    r"no (?P<of>(?:real|integer|integral|rational|positive|negative|complex|distinct|equal) (?:root|solution|zero))s?"
)
_JUDGED = re.compile(r"true|false")
_UNDEFINED = re.compile(
    r"(?:the (?:\w+ )?(?:slope|gradient|expression|value|limit|function|answer|quotient|result) is )?"
    r"(?:it is )?(?:undefined|not defined)"
)
_CONDITIONS = (
    ("sufficient only", r"sufficient,? (?:but|and|yet)?,? ?(?:not (?:a )?necessary|unnecessary)|充分[而但]?[不非]必要"),
    ("necessary only", r"necessary,? (?:but|and|yet)?,? ?(?:not (?:a )?sufficient|insufficient)|必要[而但]?[不非]充分"),
    ("both", r"(?:both )?necessary and sufficient|(?:both )?sufficient and necessary|充要|充分必要|充分且必要"),
    (
        "neither",
        r"neither (?:a )?sufficient nor (?:a )?necessary|neither (?:a )?necessary nor (?:a )?sufficient|"
        r"既[不非]充分[,\uff0c]?[也又而]?[不非]必要|既[不非]必要[,\uff0c]?[也又而]?[不非]充分|非充分非必要|不充分也?不必要",
    ),
)
_CONDITION = tuple(
    (name, re.compile(rf"(?:(?:it|this) is )?(?:an? )?(?:{said})(?: conditions?|的?条件)?"))
    for name, said in _CONDITIONS
)
_DAYS = "monday|tuesday|wednesday|thursday|friday|saturday|sunday"
_WEEKDAY = re.compile(
    rf"(?:(?:it|that|the day|the date) (?:is|was|will be|falls on|fell on) |on )?(?:an? )?(?P<day>{_DAYS})"
)
_NOON = re.compile(r"(?:(?:at|it is) )?(?:12(?::00)? )?noon")
_TWELVE = re.compile(r"12:00(?: ?p\.?m\.?)?|12 ?p\.?m\.?")
_PLAIN = re.compile(r"[a-z\d][a-z\d' .:,-]*|[\u3400-\u9fff,\uff0c]+", re.IGNORECASE)
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_MOST_CHARS = 80


def phrase(text: str) -> str:
    """What a usual phrase says, in one spelling; "" for any other text."""
    plain = _plain(text)
    if not plain:
        return ""
    for name, pattern in _CONDITION:
        if pattern.fullmatch(plain):
            return f"condition {name}"
    if _UNDEFINED.fullmatch(plain):
        return "dne"
    if match := _WEEKDAY.fullmatch(plain):
        return match["day"][:3]
    if match := _CONVERGENCE.fullmatch(plain):
        return f"{match['is'] or match['does']}verges {match['how'] or match['so'] or ''}".strip()
    if match := _NONE_OF.fullmatch(plain):
        return f"no {match['of']}"
    subject = _SUBJECT.match(plain)
    rest = plain[subject.end() :] if subject else plain
    if match := _OF_FUNCTIONS.fullmatch(rest):
        about = subject is None or re.match(r"it|this|the (?:\w+ )?(?:function|sequence|series)", subject[0])
        return f"function {match['how']}" if about else ""
    if _RELATED.fullmatch(rest) or (_JUDGED.fullmatch(rest) and (subject is None or _judges(subject[0]))):
        return rest
    if _QUALITIES.fullmatch(rest):
        return f"quality {rest}"
    shape = _STRAIGHT.sub("", _ARTICLE.sub("", rest))
    if shape in _CURVES:
        return f"shape {shape}"
    if match := _TRIANGLE.fullmatch(shape):
        sides = {
            re.split("[ -]", side)[0] for side in re.split(r" and |, | (?!angled)", match["sides"].strip()) if side
        }
        if match["noun"] or sides & (_BY_SIDES | _BY_ANGLES):
            return f"triangle {' '.join(sorted(sides))}"
    return ""


def same_hour(gold: str, answer: str) -> bool:
    """Whether one is noon in a word, and the other noon or twelve o'clock that is not said to be midnight's."""
    if "noon" not in (gold + answer).casefold():
        return False
    texts = [_plain(text) for text in (gold, answer)]
    noon = [bool(_NOON.fullmatch(text)) for text in texts]
    return any(noon) and all(is_noon or _TWELVE.fullmatch(text) for is_noon, text in zip(noon, texts, strict=True))


def _judges(subject: str) -> bool:
    return not re.search(r"function|lines?|planes?|vectors?|circles?|curves?|triangles?", subject)


def _plain(text: str) -> str:
    """The words of a text in small letters and single spaces; "" where there is anything but words."""
    if len(text) > _MOST_CHARS:
        return ""
    plain = " ".join(_TEXT.sub(r" \1 ", text).split()).rstrip(".").casefold()
    return plain if _PLAIN.fullmatch(plain) else ""
