"""Structure-aware mutation of JSON: of the right form, but for one thing, somewhere, that is not as it should be."""

import copy
import random
from typing import Any

JUNK: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**64), 10**400, 0.5, -0.0, 1e308, 1e-320),
    *(float("nan"), float("inf"), -float("inf"), "", "1", "NaN", "null", "\x00\x1b[2J", "\ud800", "x" * 5000),
    *([], {}, [[]], [None], {"": None}, {"error": ""}, {"a": {"b": {"c": []}}}, [0] * 3000),
]


def mutated(draw: random.Random, value: Any, times: int = 1) -> Any:
    """A copy of a JSON value with so many changes: something replaced, dropped, doubled, wrapped or made deep."""
    value = copy.deepcopy(value)
    for _ in range(times):
        holder, key = _place(draw, value)
        if holder is None:
            return draw.choice(JUNK)
        kind = draw.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == 2:
            holder[key] = [holder[key]]
        elif kind == 3 and type(holder[key]) in (int, float) and abs(holder[key]) < 2**64:
            holder[key] = draw.choice((-holder[key] - 1, holder[key] * 10**9, str(holder[key]), holder[key] + 0.5))
        else:
            holder[key] = copy.deepcopy(draw.choice(JUNK))
    return value


def damaged(draw: random.Random, body: bytes) -> bytes:
    """Bytes with a bit flipped, a piece cut out, doubled or replaced, or nested beyond any parser's depth."""
    a, b = sorted(draw.randint(0, len(body)) for _ in range(2))
    return draw.choice(
        (
            body[:a] + bytes([draw.randrange(256)]) + body[a + 1 :],
            body[:a],
            body[:a] + body[a:b] * 3 + body[b:],
            body[:a] + b"[" * 100_000 + body[b:],
            body[:a] + b"9" * 5000 + body[b:],
            body[:a] + b'{"a":' * 50_000 + body[b:],
        )
    )


def _place(draw: random.Random, value: Any) -> tuple[Any, Any]:
    """A holder in the value and a key or index of it, any one as likely as any other; (None, None) where none is."""
    places, waiting = [], [value]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in list(keys)[:50]:
            places.append((holder, key))
            waiting.append(holder[key])
    return draw.choice(places) if places else (None, None)
