"""Whether the workers of an engine hold, tensor by tensor, what was sent to it, wherever they keep the parts of it.

The checksum of a tensor (`siri.rollout.worker.bit_sum`) is a polynomial in the positions of its rows and columns, so
that sums of parts make the sum of the whole: moved by so many rows or columns, a part counts with that power. Engines
keep tensors in four ways, which may come together:

- fused: q, k and v are one tensor, rows below rows; a worker says where they end (its blocks);
- cut by rows or by columns, each tensor-parallel worker holding its share in order;
- whole on every worker, such as norms, or on some of them (keys and values with more workers than heads);
- padded with zeros, which do not count, or repacked and dropped (as vLLM does on a CPU), which cannot be compared.
"""

from collections.abc import Sequence
from typing import Any

from siri.rollout.worker import COLUMN, ROW, WORD, Sum, Sums


def differing(sent: Sums, workers: Sequence[dict[str, Any]]) -> list[str]:
    """Names, as the engine calls them, of the tensors that are not what was sent. workers: of each, in the order of
    their ranks, the "sums" of its tensors' blocks and what is "fused" of what (`siri.rollout.worker.present`)."""
    wanted = expected(sent, workers[0]["fused"])
    held: dict[str, list[list[Sum]]] = {}
    for worker in workers:
        for name, blocks in worker["sums"].items():
            held.setdefault(name, []).append(blocks)
    return sorted(name for name, holders in held.items() if name not in wanted or not _same(wanted[name], holders))


def expected(sent: Sums, fused: dict[str, list[str]]) -> dict[str, list[Sum]]:
    """By the engine's names, the parts that each of its tensors is made of, in their order."""
    owner = {part: (whole, place) for whole, parts in fused.items() for place, part in enumerate(parts)}
    parts: dict[str, list[tuple[int, Sum]]] = {}
    for name, checksum in sent.items():
        words = name.split(".")
        place = next((owner[word][1] for word in words if word in owner), 0)
        path = ".".join(owner[word][0] if word in owner else word for word in words)
        parts.setdefault(path, []).append((place, checksum))
    return {path: [checksum for _, checksum in sorted(numbered)] for path, numbered in parts.items()}


def stacked_sum(parts: Sequence[Sum]) -> Sum:
    """The checksum of tensors laid below each other."""
    total = rows = 0
    for part, own_rows, _ in parts:
        total += pow(ROW, rows, WORD) * part
        rows += own_rows
    return [total % WORD, rows, parts[0][2]]


def _same(parts: list[Sum], holders: list[list[Sum]]) -> bool:
    """Whether workers hold a tensor made of `parts`, each in blocks."""
    if sum(rows * columns for blocks in holders for _, rows, columns in blocks) < sum(r * c for _, r, c in parts):
        return True  # repacked: what is left of it cannot be compared
    if len({tuple(tuple(block[1:]) for block in blocks) for blocks in holders}) > 1:
        return False  # nobody cuts a tensor into unlike shares
    if len(holders) == 1:
        parts, holders = [stacked_sum(parts)], [[stacked_sum(holders[0])]]
    if len(holders[0]) != len(parts):
        return False
    return all(_holds(part, [blocks[place] for blocks in holders]) for place, part in enumerate(parts))


def _holds(part: Sum, shares: list[Sum]) -> bool:
    """Whether the shares of the workers, all of one shape, are the part: each of them, or laid together."""
    total, rows, columns = part
    _, own_rows, own_columns = shares[0]
    sums = [share for share, _, _ in shares]
    if own_columns == columns and own_rows >= rows:
        return all(share == total for share in sums)
    if own_columns == columns:
        copies, left = divmod(own_rows * len(sums), rows)
        copies = copies if copies > 1 and not left else 1  # else what is more is padding
        first = sums[::copies]
        if any(share != sums[place // copies * copies] for place, share in enumerate(sums)):
            return False
        return total == sum(pow(ROW, place * own_rows, WORD) * share for place, share in enumerate(first)) % WORD
    if own_rows == rows:
        return total == sum(pow(COLUMN, place * own_columns, WORD) * share for place, share in enumerate(sums)) % WORD
    return False
