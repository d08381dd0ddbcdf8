"""Lock-step packing: which sequences go through the model together, on which rank, in which micro-step.

Under FSDP2 every layer synchronises the ranks, so an optimizer step costs the sum over micro-steps of the slowest rank,
plus a constant per micro-step. Hence: as few micro-steps as the token budget allows, bins filled by longest processing
time on cost, and bins of like cost side by side in one micro-step, which is optimal for a sum of maxima once the bins
are given. No sequence is cut, dropped or padded, and every rank gets the same number of micro-steps.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Cost = Callable[[np.ndarray], np.ndarray]

# FLOPs of one sequence through DeepSeek-R1-Distill-Qwen-1.5B: 2 per weight and token, and causal attention, which runs
# about 1.6x slower per FLOP than the matrix products.
R1_DISTILL_LINEAR = 2 * 1.54e9
R1_DISTILL_QUADRATIC = 1.6 * 2 * 28 * 12 * 128

LOOK_AHEAD = 8
"""How many of the cheapest bins are tried before a sequence counts as not fitting any of them."""


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

    micro_steps = _least_micro_steps(sizes, token_budget, ranks)
    while True:
        bins, tokens_left = _fill(order, size_list, weight_list, micro_steps * ranks, token_budget)
        if not tokens_left:
            break
        # What is left over now mostly fits into bins of its own; in plans of hundreds of micro-steps, half a per cent
        # too many costs less than looking for the last one.
        micro_steps += max(1, tokens_left // (token_budget * ranks), micro_steps // 200)
    bins.sort(key=lambda one: (-one[0], one[1]))
    rows = [bins[start : start + ranks] for start in range(0, len(bins), ranks)]
    return Plan([[one[1] for one in row] for row in rows], [[one[0] for one in row] for row in rows])


def _least_micro_steps(sizes: np.ndarray, budget: int, ranks: int) -> int:
    """Lower bound: the tokens must fit, and no two sequences over half the budget share a bin."""
    bins = max(-(-int(sizes.sum()) // budget), int((2 * sizes > budget).sum()), 1)
    return -(-bins // ranks)


def _fill(
    order: list[int], sizes: list[int], weights: list[float], count: int, budget: int
) -> tuple[list[tuple[float, list[int]]], int]:
    """Longest processing time into `count` bins of `budget` tokens: the next costliest sequence goes into the cheapest
    bin that has room. Returns (cost, members) of each bin and the tokens that found no room."""
    heap = [(0.0, index) for index in range(count)]
    load = [0.0] * count
    room = [budget] * count
    emptiest = [(-budget, index) for index in range(count)]  # by room; an entry is brought up to date when it is on top
    members: list[list[int]] = [[] for _ in range(count)]
    tokens_left = 0
    for item in order:
        size, passed_over = sizes[item], []
        while heap and len(passed_over) < LOOK_AHEAD:
            cost, index = heap[0]
            if cost != load[index]:  # the bin was filled out of turn since
                heapq.heapreplace(heap, (load[index], index))
            elif room[index] < size:
                passed_over.append(heapq.heappop(heap))
            else:
                break
        else:
            # The cheap bins are full of tokens: the emptiest of all decides whether this many bins can do.
            while -emptiest[0][0] != room[emptiest[0][1]]:
                heapq.heapreplace(emptiest, (-room[emptiest[0][1]], emptiest[0][1]))
            index = emptiest[0][1]
        for entry in passed_over:
            heapq.heappush(heap, entry)
        if room[index] < size:
            tokens_left += size
            continue
        load[index] += weights[item]
        if heap[0][1] == index:
            heapq.heapreplace(heap, (load[index], index))
        members[index].append(item)
        room[index] -= size
    return list(zip(load, members, strict=True)), tokens_left
