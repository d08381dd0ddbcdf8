"""Structure-aware mutants of JSON data, and checkpoints whose hashes fit what was changed in them."""

import copy
import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**40, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "x", "nan", "\x00", "\x1b[2J", "../../x", "/etc/passwd", "\u2028", "9" * 200, [], {}, [[]], [None], {"": 0}),
    [[[[[[[[[[]]]]]]]]]],
]


def places(data: Any, path: tuple = ()) -> Iterator[tuple]:
    """The way to every value in JSON data; of long lists to the first and the last two."""
    yield path
    if isinstance(data, dict):
        for key, value in data.items():
            yield from places(value, (*path, key))
    elif isinstance(data, list):
        for place in sorted({0, len(data) - 2, len(data) - 1} & set(range(len(data)))):
            yield from places(data[place], (*path, place))


def changed(data: Any, path: tuple, how: str, value: Any = None) -> Any:
    """A copy with the value at `path` set, deleted, doubled or emptied."""
    if not path:
        return copy.deepcopy(value)
    data = copy.deepcopy(data)
    inner = data
    for step in path[:-1]:
        inner = inner[step]
    last = path[-1]
    if how == "set":
        inner[last] = copy.deepcopy(value)
    elif how == "delete":
        del inner[last]
    elif how == "double" and isinstance(inner[last], (list, str)):
        inner[last] = inner[last] * 2
    elif how == "shorten" and isinstance(inner[last], (list, str)):
        inner[last] = inner[last][:-1]
    else:
        inner[last] = copy.deepcopy(value)
    return data


def mutants(data: Any, count: int, seed: int) -> Iterator[tuple[str, Any]]:
    """`count` mutants, each with words that say what was done."""
    draw = random.Random(seed)
    ways = list(places(data))
    for _ in range(count):
        path = draw.choice(ways)
        how = draw.choice(("set", "set", "set", "delete", "double", "shorten"))
        value = draw.choice(ODD)
        yield f"{how} {'/'.join(map(str, path))} {json.dumps(value)[:60]}", changed(data, path, how, value)


def rehash(checkpoint: Path) -> None:
    """Make the manifest of a checkpoint fit the files that are there."""
    paths = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    listing = {
        path.relative_to(checkpoint).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in paths
    }
    (checkpoint / "manifest.json").write_text(json.dumps(listing))


def rewrite(checkpoint: Path, name: str, data: Any) -> None:
    """Put JSON data, or bytes, in a file of a checkpoint, hashes included."""
    (checkpoint / name).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    rehash(checkpoint)
