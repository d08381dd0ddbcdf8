"""Numbers in a base: 1011_2, 3F_{16}, "212 base three"."""

import re

_BASES = {
    name: base
    for base, name in enumerate(
        re.findall(
            r"\w+", "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
        ),
        2,
    )
}
_IN_BASE = re.compile(
    rf"(?:\\overline\{{(?=\w+\}}))?\(?(-?[0-9A-Fa-f]+)\)?\}}?(?:_\{{?\(?|\(?base)(\d+|{'|'.join(_BASES)})\)?\}}?"
)


def in_base(text: str) -> tuple[str, str] | None:
    """The digits of a number in a base, and the base."""
    plain = re.sub(r"(?<=\d)[,\s]+(?=\d)|\s", "", re.sub(r"\\text\{([^{}]*)\}", r"\1", text))
    match = _IN_BASE.fullmatch(plain)
    if match is None or re.fullmatch("[a-f]", match[1]):  # a_{12} is a name
        return None
    digits, base = match[1].upper(), int(_BASES.get(match[2], match[2]))
    return (digits, str(base)) if 2 <= base <= 36 and int(max(digits.lstrip("-")), 16) < base else None


def same_number(sides: list[str], others: list[str]) -> bool | None:
    """Whether a chain of numbers in bases, as 51_{10} = 201_5, is one number, and the other chain or number is among
    what it says; None where neither is such a chain."""
    texts = sides, others
    chains = [[in_base(side) or _decimal(side) for side in each] for each in texts]
    if not any(
        len(each) > 1 and all(each) and any(map(in_base, given)) for each, given in zip(chains, texts, strict=True)
    ):
        return None
    numbers = {int(number[0], int(number[1])) for each in chains for number in each if number}
    if not all(map(all, chains)) or len(numbers) > 1:
        return False
    golds, answers = map(set, chains)
    return golds <= answers or answers <= golds


def _decimal(text: str) -> tuple[str, str] | None:
    digits = text.strip()
    return (digits, "10") if re.fullmatch(r"-?\d{1,40}", digits, re.ASCII) else None
