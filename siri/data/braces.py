"""The braces of a gold answer: how many are missing at its end, or whether nobody can tell what they hold."""

import re

_TOKEN = re.compile(r"\\.|[{}]", re.DOTALL)
_MOST_MISSING = 2


def missing_braces(text: str) -> int | None:
    """How many closing braces were cut off behind the last character; None where they do not pair in another way."""
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += (token[0] == "{") - (token[0] == "}")
        if depth < 0:
            return None
    return depth if depth <= _MOST_MISSING else None
