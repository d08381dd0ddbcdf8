"""How other trainers pack sequences, beside ours: `python bench/packing_peers.py [--json OUT]` draws the comparison.

Each peer is written anew from the description of its algorithm, behind one signature,

    peer(lengths, token_budget, ranks) -> steps[s][r], a list of sequence indices (empty: the rank idles)

Only the plans are compared. What surrounds them in those projects (collectives, tensors) costs nothing here, and pad
tokens, counted in a column of their own, are not charged to the peer that adds them.
"""

import argparse
import heapq
import json
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import numpy as np

from siri.packing import R1_DISTILL_LINEAR, default_cost, pack

Steps = list[list[list[int]]]
Peer = Callable[[Sequence[int], int, int], Steps]

OVERHEAD = 600 * R1_DISTILL_LINEAR
"""What a micro-step costs besides its tokens: the linear cost of 600 tokens."""


def karmarkar_karp(weights: Sequence[float], parts: int, *, equal_size: bool = False) -> list[list[int]]:
    """Largest differencing method into `parts` sets of indices of nearly equal sums. equal_size also makes the sets
    equally large, for which len(weights) must be a multiple of parts."""
    if equal_size and len(weights) % parts:
        raise ValueError(f"{len(weights)} weights cannot be dealt equally to {parts} sets")
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    # A partial solution: sets by falling sum. It starts with one item, or with one for every set.
    width = parts if equal_size else 1
    heap, number = [], count()

    def push(sets: list[tuple[float, list[int]]]) -> None:
        sets.sort(key=lambda entry: -entry[0])
        heapq.heappush(heap, (sets[-1][0] - sets[0][0], next(number), sets))

    for start in range(0, len(order), width):
        sets = [(weights[i], [i]) for i in order[start : start + width]]
        push(sets + [(0.0, [])] * (parts - len(sets)))
    while len(heap) > 1:
        (_, _, first), (_, _, second) = heapq.heappop(heap), heapq.heappop(heap)
        push([(a[0] + b[0], a[1] + b[1]) for a, b in zip(first, reversed(second), strict=True)])
    return [members for _, members in heap[0][2]] if heap else [[] for _ in range(parts)]


def verl(lengths: Sequence[int], token_budget: int, ranks: int) -> Steps:
    """Karmarkar-Karp over the ranks (equal counts), then in each rank over M micro-batches; M grows by one on all ranks
    until every micro-batch fits. Cost 24576 n + n^2 whatever the model. Small micro-batches run first and last."""
    work = [24576.0 * n + float(n) ** 2 for n in lengths]
    shares = karmarkar_karp(work, ranks, equal_size=len(lengths) % ranks == 0)
    micro_batches = max(-(-sum(lengths[i] for i in share) // token_budget) for share in shares)
    while True:
        plans = []
        for share in shares:
            parts = karmarkar_karp([work[i] for i in share], micro_batches)
            plan = [[share[i] for i in part] for part in parts]
            if max(_tokens(bin_, lengths) for bin_ in plan) > token_budget:
                break
            plan.sort(key=lambda bin_: -sum(work[i] for i in bin_))
            plans.append(plan[::2][::-1] + plan[1::2])
        if len(plans) == ranks:
            return _by_step(plans)
        micro_batches += 1


def trl(lengths: Sequence[int], token_budget: int, ranks: int) -> Steps:
    """Streaming, in order of arrival: each sequence joins the rank with the least sum of squared lengths that has room;
    when none has, the micro-step is closed. Sequences over the budget are dropped."""
    steps: Steps = []
    rows: list[list[int]] = [[] for _ in range(ranks)]
    squares, tokens = [0] * ranks, [0] * ranks
    for index, length in enumerate(lengths):
        if length > token_budget:
            continue
        fitting = [rank for rank in range(ranks) if tokens[rank] + length <= token_budget]
        if not fitting:
            steps.append(rows)
            rows, squares, tokens, fitting = [[] for _ in range(ranks)], [0] * ranks, [0] * ranks, [0]
        rank = min(fitting, key=squares.__getitem__)
        rows[rank].append(index)
        squares[rank] += length * length
        tokens[rank] += length
    return [*steps, rows] if any(rows) else steps


def nemo_rl(lengths: Sequence[int], token_budget: int, ranks: int) -> Steps:
    """Modified first-fit decreasing on tokens; one sequence is moved into each bin that is missing to a multiple of the
    ranks; bins are dealt round-robin."""
    bins = modified_first_fit_decreasing(lengths, token_budget)
    while len(bins) % ranks:
        fullest = max(bins, key=len)
        bins.append([fullest.pop()] if len(fullest) > 1 else [])
    return [bins[start : start + ranks] for start in range(0, len(bins), ranks)]


def modified_first_fit_decreasing(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Johnson and Garey's five phases by size (over 1/2, 1/3, 1/6 of the budget, and the rest). What is left after the
    fourth goes, by falling length, into the emptiest of the new bins, or opens one: worst fit, as NeMo-RL has it."""
    rest = sorted(range(len(lengths)), key=lambda i: (lengths[i], -i))  # rising, so that pop() takes the largest
    large = [i for i in reversed(rest) if 2 * lengths[i] > budget]
    medium = [i for i in rest if budget < 3 * lengths[i] and 2 * lengths[i] <= budget]
    small = [i for i in rest if budget < 6 * lengths[i] and 3 * lengths[i] <= budget]
    tiny = [i for i in rest if 6 * lengths[i] <= budget]
    bins, room = [[i] for i in large], [budget - lengths[i] for i in large]

    def largest_fitting(items: list[int], space: int) -> int | None:
        place = bisect_right(items, space, key=lambda i: lengths[i])
        return items.pop(place - 1) if place else None

    def put(index: int, item: int) -> None:
        bins[index].append(item)
        room[index] -= lengths[item]

    with_medium = set()
    for index in range(len(bins)):
        if (item := largest_fitting(medium, room[index])) is not None:
            put(index, item)
            with_medium.add(index)
    for index in reversed(range(len(bins))):
        if index in with_medium or len(small) < 2 or lengths[small[0]] + lengths[small[1]] > room[index]:
            continue
        put(index, small.pop(0))
        if (item := largest_fitting(small, room[index])) is not None:
            put(index, item)
    left = sorted(medium + small + tiny, key=lambda i: (lengths[i], -i))
    for index in range(len(bins)):
        while (item := largest_fitting(left, room[index])) is not None:
            put(index, item)
    opened: list[tuple[int, int]] = []  # (-room, bin)
    for item in reversed(left):
        if opened and -opened[0][0] >= lengths[item]:
            space, index = heapq.heappop(opened)
            bins[index].append(item)
        else:
            space, index = -budget, len(bins)
            bins.append([item])
        heapq.heappush(opened, (space + lengths[item], index))
    return bins


def prime_rl(lengths: Sequence[int], token_budget: int, ranks: int) -> Steps:
    """First-fit decreasing on tokens; the costliest bins are split (longest processing time) up to a multiple of the
    ranks; Karmarkar-Karp deals bins to ranks in equal counts; swaps of bins between the ranks then even out the sums.
    Each rank runs its bins in the order in which they were opened."""
    cost = default_cost(np.asarray(lengths, dtype=np.float64)).tolist()
    bins = first_fit_decreasing(lengths, token_budget)
    while len(bins) % ranks:
        splittable = [bin_ for bin_ in bins if len(bin_) > 1]
        if not splittable:
            bins.append([])
            continue
        costliest = max(splittable, key=lambda bin_: sum(cost[i] for i in bin_))
        bins.remove(costliest)
        halves: list[list[int]] = [[], []]
        for item in sorted(costliest, key=lambda i: -cost[i]):
            min(halves, key=lambda bin_: sum(cost[i] for i in bin_)).append(item)
        bins += halves
    work = [sum(cost[i] for i in bin_) for bin_ in bins]
    shares = _swap(karmarkar_karp(work, ranks, equal_size=True), work)
    return _by_step([[bins[b] for b in sorted(share)] for share in shares])


def first_fit_decreasing(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """The longest sequence left goes into the first bin that has room, or opens one."""
    bins: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        index = next((b for b, space in enumerate(room) if space >= lengths[item]), len(bins))
        if index == len(bins):
            bins.append([])
            room.append(budget)
        bins[index].append(item)
        room[index] -= lengths[item]
    return bins


def _swap(shares: list[list[int]], work: Sequence[float]) -> list[list[int]]:
    """Swap bins between the ranks of the largest and the least sum as long as that brings the two closer."""
    sums = [sum(work[b] for b in share) for share in shares]
    while True:
        high, low = int(np.argmax(sums)), int(np.argmin(sums))
        gap = sums[high] - sums[low]
        delta = np.subtract.outer([work[b] for b in shares[high]], [work[b] for b in shares[low]])
        best = int(np.abs(gap - 2 * delta).argmin())
        i, j = divmod(best, len(shares[low]))
        if abs(gap - 2 * delta[i, j]) >= gap * (1 - 1e-9):
            return shares
        shares[high][i], shares[low][j] = shares[low][j], shares[high][i]
        sums[high] -= delta[i, j]
        sums[low] += delta[i, j]


def torchtitan(lengths: Sequence[int], token_budget: int, ranks: int) -> Steps:
    """Next fit, in order of arrival: a row is closed by the first sequence that does not fit. Rows are dealt
    round-robin (and padded to the budget, see PADDED). Sequences over the budget are dropped."""
    rows: list[list[int]] = []
    room = 0
    for index, length in enumerate(lengths):
        if length > token_budget:
            continue
        if length > room:
            rows.append([])
            room = token_budget
        rows[-1].append(index)
        room -= length
    rows += [[] for _ in range(-len(rows) % ranks)]
    return [rows[start : start + ranks] for start in range(0, len(rows), ranks)]


def siri(lengths: Sequence[int], token_budget: int, ranks: int) -> Steps:
    """Ours, `siri.packing.pack`."""
    return pack(lengths, token_budget=token_budget, ranks=ranks).steps


PEERS: dict[str, Peer] = {
    "siri": siri,
    "verl": verl,
    "prime-rl": prime_rl,
    "NeMo-RL": nemo_rl,
    "TRL": trl,
    "torchtitan": torchtitan,
}
PADDED = {"torchtitan"}
"""Peers whose rows are padded to the budget."""


def measure(peer: str, lengths: Sequence[int], token_budget: int, ranks: int) -> dict[str, float]:
    """One plan in figures: lock-step efficiency (useful cost / (ranks * elapsed cost), each micro-step as long as its
    costliest rank plus OVERHEAD), micro-steps, bins over the budget, sequences dropped, pad tokens as a share of the
    real ones, CPU milliseconds."""
    start = time.process_time()
    steps = PEERS[peer](lengths, token_budget, ranks)
    milliseconds = (time.process_time() - start) * 1e3
    cost = default_cost(np.asarray(lengths, dtype=np.float64))
    costs = np.array([[cost[bin_].sum() if bin_ else 0.0 for bin_ in step] for step in steps])
    bins = [bin_ for step in steps for bin_ in step]
    tokens = [_tokens(bin_, lengths) for bin_ in bins]
    pads = sum(token_budget - used for used in tokens) if peer in PADDED else 0
    return {
        "efficiency": float(costs.sum() / (ranks * (costs.max(axis=1) + OVERHEAD).sum())),
        "micro_steps": len(steps),
        "violations": sum(used > token_budget for used in tokens),
        "dropped": len(lengths) - sum(map(len, bins)),
        "pad_share": pads / sum(tokens),
        "ms": milliseconds,
    }


def lognormal_lengths(seed: int, sequences: int, cap: int) -> list[int]:
    """Lengths in tokens: median 0.45 of the cap, sigma 0.7, cut at the cap."""
    lengths = np.random.default_rng(seed).lognormal(np.log(0.45 * cap), 0.7, sequences)
    return np.clip(lengths.astype(int), 1, cap).tolist()


CASES = [
    (cap, sequences, ranks)
    for cap in (8192, 16384, 32768)
    for sequences, ranks in ((128, 8), (256, 8), (1024, 8), (2048, 64))
]


def compare(cases: Sequence[tuple[int, int, int]] = CASES, seeds: int = 5) -> list[dict]:
    """One row for each case (cap, sequences, ranks) and peer: the figures of `measure`, mean over the seeds."""
    rows = []
    for cap, sequences, ranks in cases:
        budget = max(36864, cap + 1024)
        for peer in PEERS:
            runs = [measure(peer, lognormal_lengths(seed, sequences, cap), budget, ranks) for seed in range(seeds)]
            means = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
            case = {"cap": cap, "sequences": sequences, "ranks": ranks, "token_budget": budget}
            rows.append({**case, "peer": peer, "seeds": seeds, **means})
    return rows


def print_comparison(rows: Sequence[dict]) -> None:
    """A table: cases down, algorithms across; each cell says efficiency, micro-steps and milliseconds."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Lock-step efficiency %, micro-steps, milliseconds; mean over seeds", show_lines=True)
    table.add_column("cap x sequences x ranks", no_wrap=True)
    for peer in PEERS:
        table.add_column(peer, justify="right")
    cases: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        cases.setdefault((row["cap"], row["sequences"], row["ranks"]), {})[row["peer"]] = row
    for (cap, sequences, ranks), by_peer in cases.items():
        best = max(row["efficiency"] for row in by_peer.values())
        table.add_row(f"{cap // 1024}K x {sequences} x {ranks}", *(_cell(by_peer[peer], best) for peer in PEERS))
    Console().print(table)


def _cell(row: dict, best: float) -> str:
    share = f"{100 * row['efficiency']:.2f}"
    lines = [f"[bold green]{share}[/]" if row["efficiency"] == best else share]
    lines += [f"{row['micro_steps']:.1f} steps", f"{row['ms']:.1f} ms"]
    lines += [
        f"[red]{row[key]:.1f} {name}[/]" for key, name in (("violations", "over"), ("dropped", "lost")) if row[key]
    ]
    return "\n".join(lines + ([f"[red]+{100 * row['pad_share']:.0f}% pad[/]"] if row["pad_share"] else []))


def _tokens(members: Sequence[int], lengths: Sequence[int]) -> int:
    return sum(lengths[i] for i in members)


def _by_step(plans: list[list[list[int]]]) -> Steps:
    """plans[r][s] -> steps[s][r]."""
    return [list(step) for step in zip(*plans, strict=True)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Lock-step efficiency of packing algorithms.")
    parser.add_argument("--seeds", type=int, default=5, help="random problems for each case")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    results = compare(seeds=options.seeds)
    print_comparison(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
