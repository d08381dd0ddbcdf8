"""Lock-step packing: which sequences go through the model together, on which rank, in which micro-step.

Under FSDP2 every layer synchronises the ranks, so an optimizer step costs the sum over micro-steps of the slowest rank,
plus a constant per micro-step. Hence: few micro-steps, bins filled by longest processing time on cost, bins of like
cost side by side in one micro-step, which is optimal for a sum of maxima once the bins are given, and in small plans
swaps that even out a micro-step. Where a long sequence sets the pace of one of few micro-steps, what the other ranks
do meanwhile is free: such plans are also made micro-step by micro-step, and the cheaper one is kept. No sequence is
cut, dropped or padded, and every rank gets the same number of micro-steps.
"""

import heapq
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Cost = Callable[[np.ndarray], np.ndarray]
Bin = tuple[float, list[int]]
"""Cost and members of what one rank runs in one micro-step."""

# FLOPs of one sequence through DeepSeek-R1-Distill-Qwen-1.5B: 2 per weight and token, and causal attention, which runs
# about 1.6x slower per FLOP than the matrix products.
R1_DISTILL_LINEAR = 2 * 1.54e9
R1_DISTILL_QUADRATIC = 1.6 * 2 * 28 * 12 * 128

LOOK_AHEAD = 4
"""How many of the cheapest bins are tried before the emptiest of all is taken."""
CARE = 64
"""Plans of at most so many sequences a rank get a second fill and swaps between bins; larger ones are even without."""
SWAPS = 50
"""Most swaps in one micro-step."""
FEW = 8
"""Plans of at most so many micro-steps are also made micro-step by micro-step,"""
WORTH = 0.01
"""unless they are within this share of what no plan can beat."""
EVEN = 1e-3
"""Swaps end once the costliest rank is within this share of the mean."""


@dataclass(frozen=True)
class Plan:
    """steps[s][r] is the list of sequence indices that rank r runs in micro-step s; the costliest micro-step is first,
    so that memory peaks at once."""

    steps: list[list[list[int]]]
    costs: list[list[float]]
    """costs[s][r]: predicted cost of the bin, in the unit of the cost function."""

    @property
    def lockstep_efficiency(self) -> float:
        """Useful cost / (ranks * elapsed cost): 1.0 means that no rank ever waits."""
        elapsed = sum(max(ranks) for ranks in self.costs)
        useful = sum(sum(ranks) for ranks in self.costs)
        return useful / (elapsed * len(self.costs[0])) if elapsed else 1.0


def default_cost(lengths: np.ndarray) -> np.ndarray:
    """a * n + b * n^2 of DeepSeek-R1-Distill-Qwen-1.5B, in FLOPs of a forward pass."""
    return R1_DISTILL_LINEAR * lengths + R1_DISTILL_QUADRATIC * lengths**2


def pack(lengths: Sequence[int], *, token_budget: int, ranks: int = 1, cost: Cost | None = None) -> Plan:
    """Plan the micro-steps of one optimizer step.

    lengths: tokens of each sequence. token_budget: most tokens one rank may hold in one micro-step. cost: array of
    lengths -> array of floats. A list in the plan is empty only when there are fewer sequences than micro-steps times
    ranks. Raises ValueError when a sequence is longer than the budget or no sequence is given.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.size == 0:
        raise ValueError("pack needs at least one sequence")
    if ranks < 1 or token_budget < 1:
        raise ValueError(f"pack needs ranks >= 1 and token_budget >= 1; got {ranks} and {token_budget}")
    if sizes.min() < 1:
        raise ValueError(f"sequence {int(sizes.argmin())} has {sizes.min()} tokens; every sequence needs at least one")
    if sizes.max() > token_budget:
        raise ValueError(
            f"sequence {int(sizes.argmax())} has {sizes.max()} tokens, over the token budget of {token_budget}; raise "
            "token_budget or lower the cap"
        )
    weights = np.asarray((cost or default_cost)(sizes.astype(np.float64)), dtype=np.float64)
    order = np.lexsort((np.arange(sizes.size), -sizes, -weights)).tolist()
    size_list, weight_list = sizes.tolist(), weights.tolist()

    micro_steps = least_micro_steps(sizes, token_budget, ranks)
    bins = _fill(order, size_list, weight_list, micro_steps * ranks, ranks, token_budget)
    rows = _rows(bins, ranks)
    careful = len(order) <= CARE * ranks
    if careful and len(rows) > micro_steps:
        # bins opened late hold short sequences only; with all open from the start, they mix
        rows = _cheaper(rows, _rows(_fill(order, size_list, weight_list, len(bins), ranks, token_budget), ranks))

    def evened(plan: list[list[Bin]]) -> list[list[Bin]]:
        return _rows([weighed for row in plan for weighed in _swap(row, sizes, weights, token_budget)], ranks)

    rows = evened(rows) if careful else rows
    if 1 < len(rows) <= FEW and _elapsed(rows) > (1 + WORTH) * max(weights.sum() / ranks, weights.max()):
        for count in sorted({micro_steps, len(rows)}):
            other = _rows(_fill_by_row(order, size_list, weight_list, count, ranks, token_budget), ranks)
            rows = _cheaper(rows, evened(other) if careful else other)
    return Plan([[members for _, members in row] for row in rows], [[cost for cost, _ in row] for row in rows])


def _elapsed(rows: list[list[Bin]]) -> float:
    return sum(row[0][0] for row in rows)


def _cheaper(rows: list[list[Bin]], other: list[list[Bin]]) -> list[list[Bin]]:
    """The plan of fewer micro-steps, or of less cost; the first of two that are alike."""
    return min(rows, other, key=lambda plan: (len(plan), _elapsed(plan)))


def _rows(bins: list[Bin], ranks: int) -> list[list[Bin]]:
    """Bins of like cost side by side, the costliest first."""
    bins = sorted(bins, key=lambda weighed: (-weighed[0], weighed[1]))
    return [bins[start : start + ranks] for start in range(0, len(bins), ranks)]


def least_micro_steps(sizes: np.ndarray, budget: int, ranks: int) -> int:
    """Lower bound of Martello and Toth: sequences over half the budget never share a bin; for every length k, those of
    k tokens and more that are no longer than half fit only beside the long ones that leave k free."""
    falling = np.sort(sizes)[::-1]
    tokens = np.concatenate([[0], np.cumsum(falling)])
    long = int(np.searchsorted(-falling, -budget / 2))
    bins = max(-(-int(tokens[-1]) // budget), long)
    if lengths := np.unique(falling[long:]).tolist():
        alone = np.searchsorted(-falling[:long], np.array(lengths) - budget)  # longer than budget - k
        counted = np.searchsorted(-falling, -np.array(lengths), side="right")
        beside = (long - alone) * budget - (tokens[long] - tokens[alone])
        short = tokens[counted] - tokens[long]
        bins = max(bins, long + int(np.max(-((beside - short) // budget))))
    return -(-bins // ranks)


def _fill(order: list[int], sizes: list[int], weights: list[float], count: int, ranks: int, budget: int) -> list[Bin]:
    """Longest processing time into `count` bins of `budget` tokens: the next costliest sequence goes into the cheapest
    bin that has room. Where none has, a micro-step of `ranks` bins is opened."""
    heap = [(0.0, index) for index in range(count)]
    load = [0.0] * count
    room = [budget] * count
    emptiest = [(-budget, index) for index in range(count)]  # by room; an entry is brought up to date when it is on top
    members: list[list[int]] = [[] for _ in range(count)]
    for item in order:
        size = sizes[item]
        passed_over: list[tuple[float, int]] = []
        while heap and len(passed_over) < LOOK_AHEAD:
            cost, index = heap[0]
            if cost != load[index]:  # the bin was filled out of turn since
                heapq.heapreplace(heap, (load[index], index))
            elif room[index] < size:
                passed_over.append(heapq.heappop(heap))
            else:
                break
        else:
            while -emptiest[0][0] != room[emptiest[0][1]]:
                heapq.heapreplace(emptiest, (-room[emptiest[0][1]], emptiest[0][1]))
            index = emptiest[0][1]
            if room[index] < size:
                index = len(load)
                for new in range(index, index + ranks):
                    load.append(0.0)
                    room.append(budget)
                    members.append([])
                    heapq.heappush(heap, (0.0, new))
                    heapq.heappush(emptiest, (-budget, new))
        for entry in passed_over:
            heapq.heappush(heap, entry)
        load[index] += weights[item]
        if heap[0][1] == index:
            heapq.heapreplace(heap, (load[index], index))
        members[index].append(item)
        room[index] -= size
    return _none_empty(load, members, weights)


def _fill_by_row(
    order: list[int], sizes: list[int], weights: list[float], count: int, ranks: int, budget: int
) -> list[Bin]:
    """Longest processing time into `count` micro-steps one after the other, each up to what it has to last: as long as
    the costliest sequence that is left, or as an even share of all that is left. What fits nowhere opens more."""
    load: list[float] = []
    members: list[list[int]] = []
    left, rest = order, sum(weights[item] for item in order)
    while left:
        rows_left = count - len(load) // ranks
        limit = max(weights[left[0]], rest / (ranks * rows_left)) if rows_left > 1 else float("inf")
        costs, bins, left = _fill_row(left, sizes, weights, limit * (1 + 1e-9), ranks, budget)
        rest -= sum(costs)
        load += costs
        members += bins
    return _none_empty(load, members, weights)


def _fill_row(
    order: list[int], sizes: list[int], weights: list[float], limit: float, ranks: int, budget: int
) -> tuple[list[float], list[list[int]], list[int]]:
    """One micro-step whose bins cost no more than the limit: costs, members, and the sequences that are left."""
    heap = [(0.0, rank) for rank in range(ranks)]
    room = [budget] * ranks
    members: list[list[int]] = [[] for _ in range(ranks)]
    left: list[int] = []
    falling = [-weights[item] for item in order]
    at = 0
    while at < len(order):
        if heap[0][0] - falling[at] > limit:  # nobody has time for it: go on where somebody has
            skipped = max(at + 1, bisect_left(falling, heap[0][0] - limit, at))
            left += order[at:skipped]
            at = skipped
            continue
        item = order[at]
        passed_over: list[tuple[float, int]] = []
        while room[heap[0][1]] < sizes[item]:
            passed_over.append(heapq.heappop(heap))
            if not heap or len(passed_over) == LOOK_AHEAD:
                break
        if heap and room[heap[0][1]] >= sizes[item] and heap[0][0] + weights[item] <= limit:
            cost, rank = heap[0]
            heapq.heapreplace(heap, (cost + weights[item], rank))
            members[rank].append(item)
            room[rank] -= sizes[item]
        else:
            left.append(item)
        for entry in passed_over:
            heapq.heappush(heap, entry)
        at += 1
    costs = [0.0] * ranks
    for cost, rank in heap:
        costs[rank] = cost
    return costs, members, left


def _none_empty(load: list[float], members: list[list[int]], weights: list[float]) -> list[Bin]:
    """The bins; where there are sequences enough, the costliest give one away to those that have none."""
    if sum(map(len, members)) >= len(members):
        for index in (index for index, items in enumerate(members) if not items):
            donor = max((other for other, items in enumerate(members) if len(items) > 1), key=load.__getitem__)
            item = members[donor].pop()
            members[index].append(item)
            load[index] = weights[item]
            load[donor] -= weights[item]
    return list(zip(load, members, strict=True))


def _swap(row: list[Bin], sizes: np.ndarray, weights: np.ndarray, budget: int) -> list[Bin]:
    """The bins of one micro-step, evened out: the costliest one swaps a sequence for a cheaper one of another bin, or
    gives it away, as long as the larger of the two bins shrinks and both hold the budget."""
    load = np.array([cost for cost, _ in row])
    items = np.array([item for _, members in row for item in members], dtype=np.int64)
    owner = np.repeat(np.arange(len(row)), [len(members) for _, members in row])
    room = budget - np.bincount(owner, sizes[items], len(row))
    # every bin offers nothing as well, in return for a sequence that it is given
    size, weight = (np.concatenate([values[items], np.zeros(len(row))]) for values in (sizes, weights))
    owner = np.concatenate([owner, np.arange(len(row))])
    for _ in range(SWAPS):
        high = int(load.argmax())
        if load[high] <= (1 + EVEN) * load.mean():
            break
        mine, others = np.flatnonzero(owner[: items.size] == high), np.flatnonzero(owner != high)
        less = weight[mine, None] - weight[others]
        shorter = size[mine, None] - size[others]
        larger = np.maximum(load[high] - less, load[owner[others]] + less)
        larger[(shorter > room[owner[others]]) | (-shorter > room[high])] = np.inf
        i, j = divmod(int(larger.argmin()), others.size)
        if not larger[i, j] < load[high] * (1 - 1e-9):
            break
        other = int(owner[others[j]])
        owner[mine[i]] = other
        if others[j] < items.size:
            owner[others[j]] = high
        load[[high, other]] += np.array([-1, 1]) * less[i, j]
        room[[high, other]] += np.array([1, -1]) * shorter[i, j]
    return [
        (float(weights[members].sum()), members.tolist())
        for members in (items[owner[: items.size] == index] for index in range(len(row)))
    ]
