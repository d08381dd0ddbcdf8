"""Every guarantee of the packing plan, on random problems."""

import heapq
import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siri.packing import Plan, default_cost, pack


def check(plan: Plan, lengths, budget: int, ranks: int) -> None:
    bins = [bin_ for step in plan.steps for bin_ in step]
    assert sorted(index for bin_ in bins for index in bin_) == list(range(len(lengths))), "each sequence exactly once"
    assert all(sum(lengths[i] for i in bin_) <= budget for bin_ in bins), "hard token budget"
    assert all(len(step) == ranks for step in plan.steps), "the same number of micro-steps on every rank"
    for step, costs in zip(plan.steps, plan.costs, strict=True):
        for bin_, cost in zip(step, costs, strict=True):
            assert cost == pytest.approx(float(default_cost(np.array([lengths[i] for i in bin_], float)).sum()))
    if len(lengths) >= len(bins):
        assert all(bins), "an empty bin although there are sequences enough"
    peaks = [max(costs) for costs in plan.costs]
    assert peaks == sorted(peaks, reverse=True), "the largest micro-step first"
    # whatever the grouping, the k-th largest of the maxima is at least the ((k - 1) * ranks + 1)-th largest bin
    costs = sorted((cost for step in plan.costs for cost in step), reverse=True)
    assert peaks == costs[::ranks], "optimal grouping given the bins"


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=120),
    slack=st.integers(0, 6000),
    ranks=st.integers(1, 9),
)
def test_guarantees(lengths, slack, ranks):
    budget = max(lengths) + slack
    check(pack(lengths, token_budget=budget, ranks=ranks), lengths, budget, ranks)


def lognormal(rng, count: int, cap: int) -> list[int]:
    return np.clip(rng.lognormal(np.log(0.45 * cap), 0.7, count).astype(int), 1, cap).tolist()


@pytest.mark.parametrize(
    ("count", "cap", "goal"),
    [(128, 8192, 0.97), (128, 16384, 0.97), (128, 32768, 0.955), (256, 8192, 0.98), (256, 16384, 0.98),
     (256, 32768, 0.975), (1024, 8192, 0.98), (1024, 16384, 0.98), (1024, 32768, 0.98)],
)  # fmt: skip
def test_lockstep_efficiency_with_micro_step_overhead(count, cap, goal):
    budget, overhead = max(36864, cap + 1024), 600 * 2 * 1.54e9
    efficiency = []
    for seed in range(5):
        lengths = lognormal(np.random.default_rng(seed), count, cap)
        plan = pack(lengths, token_budget=budget, ranks=8)
        check(plan, lengths, budget, 8)
        elapsed = sum(max(costs) + overhead for costs in plan.costs)
        efficiency.append(sum(map(sum, plan.costs)) / (8 * elapsed))
        bound = max(-(-sum(lengths) // (budget * 8)), -(-sum(2 * n > budget for n in lengths) // 8))
        assert len(plan.steps) <= bound + max(1, 0.15 * bound)
    assert np.mean(efficiency) >= goal


BUDGET = 36864
FEW_AND_LONG = {  # ranks, long sequences, how many short ones of which lengths
    "8 ranks, one of 17,400": (8, [17_400], 480, (400, 800)),
    "64 ranks, one of 16,500": (64, [16_500], 800, (1000, 5000)),
    "16 ranks, two giants": (16, [17_000, 16_500], 190, (2500, 4500)),
    "32 ranks, one of each kind": (32, [36_000, 24_000, 12_000], 2400, (300, 900)),
}


def least_elapsed(lengths: list[int], ranks: int) -> float:
    """What no plan under BUDGET can beat: the costliest sequence is in the first micro-step, which holds at most what
    its bins do, each beside one of the g longest or without them, filled with the densest of the rest in fractions;
    the remainder is shared evenly."""
    tokens = np.array(sorted(lengths, reverse=True), float)
    costs = default_cost(tokens)

    def filled(room: float, g: int) -> float:
        share = np.clip((room - np.concatenate([[0], np.cumsum(tokens[g:])[:-1]])) / tokens[g:], 0, 1)
        return float((share * costs[g:]).sum())

    total, longest = float(costs.sum()), float(costs[0])
    bounds = [total / ranks, longest]
    for g in range(1, min(ranks, len(lengths) - 1, 4) + 1):
        beside = sum(min(longest, costs[i] + filled(BUDGET - tokens[i], g)) for i in range(g))
        row = beside + (ranks - g) * min(longest, filled(BUDGET, g))
        bounds.append(longest + (total - row) / ranks)
    return max(bounds)


def annealed(plan: Plan, lengths: list[int], ranks: int, rng, moves: int = 4000) -> float:
    """The least elapsed cost that annealing comes to from a plan, by moves and swaps between any two bins."""
    bins = [list(bin_) for step in plan.steps for bin_ in step]
    weights = default_cost(np.array(lengths, float))
    costs = np.array([weights[bin_].sum() for bin_ in bins])
    tokens = [sum(lengths[i] for i in bin_) for bin_ in bins]
    current = best = float(np.sort(costs)[::-1][::ranks].sum())
    for move in range(moves):
        heat = 0.01 * best * (1 - move / moves) + 1e-9
        a, b = rng.integers(0, len(bins), 2)
        if a == b or not bins[a]:
            continue
        i, j = rng.integers(len(bins[a])), rng.integers(-len(bins[b]), len(bins[b]) + 1)  # none in return below 0
        x, y = bins[a][i], bins[b][j] if 0 <= j < len(bins[b]) else None
        length = lengths[x] - (0 if y is None else lengths[y])
        cost = weights[x] - (0 if y is None else weights[y])
        if tokens[b] + length > BUDGET or tokens[a] - length > BUDGET:
            continue
        costs[[a, b]] += [-cost, cost]
        new = float(np.sort(costs)[::-1][::ranks].sum())
        if new > current and rng.random() >= np.exp((current - new) / heat):
            costs[[a, b]] -= [-cost, cost]
            continue
        current, best = new, min(best, new)
        tokens[a], tokens[b] = tokens[a] - length, tokens[b] + length
        bins[a].remove(x)
        bins[b].append(x)
        if y is not None:
            bins[b].remove(y)
            bins[a].append(y)
    return best


def elapsed(plan: Plan) -> float:
    return sum(max(costs) for costs in plan.costs)


@pytest.mark.parametrize("name", FEW_AND_LONG)
def test_a_long_sequence_in_few_micro_steps_costs_the_others_nothing(name):
    ranks, long, count, (low, high) = FEW_AND_LONG[name]
    for seed in range(5):
        lengths = long + np.random.default_rng(seed).integers(low, high + 1, count).tolist()
        plan = pack(lengths, token_budget=BUDGET, ranks=ranks)
        check(plan, lengths, BUDGET, ranks)
        assert len(plan.steps) == 2
        assert elapsed(plan) <= 1.05 * least_elapsed(lengths, ranks)


def test_few_micro_steps_are_within_a_twentieth_of_the_best():
    """200 problems of up to three long sequences among short ones, the micro-steps filled to 95 % at most: within 5 %
    of what no plan can beat, or, where that says too little, of what annealing makes of the plan."""
    rng = np.random.default_rng(5)
    beside_the_bound = 0
    for _ in range(200):
        ranks = int(rng.choice([2, 4, 8, 16, 32, 64]))
        lengths = rng.integers(9000, 36_000, rng.integers(0, 4)).tolist()
        low = int(rng.integers(100, 3000))
        high = low + int(rng.integers(50, 4000))
        while sum(lengths) < 0.5 * ranks * BUDGET:
            lengths += rng.integers(low, high, 10).tolist()
        most = 0.95 * rng.integers(1, 5) * ranks * BUDGET * rng.uniform(0.5, 1)
        while sum(lengths) + 10 * high < most:
            lengths += rng.integers(low, high, 10).tolist()
        plan = pack(lengths, token_budget=BUDGET, ranks=ranks)
        check(plan, lengths, BUDGET, ranks)
        if elapsed(plan) > 1.05 * least_elapsed(lengths, ranks):
            beside_the_bound += 1
            assert elapsed(plan) <= 1.05 * annealed(plan, lengths, ranks, rng), (ranks, lengths)
    assert beside_the_bound <= 20, "the bound is of use"


def test_grouping_of_the_bins_is_optimal():
    """No other way of dealing the plan's own bins to micro-steps has a smaller sum of maxima (all ways are tried)."""
    rng = np.random.default_rng(7)
    for _ in range(20):
        lengths = rng.integers(1, 2000, 24).tolist()
        plan = pack(lengths, token_budget=5000, ranks=2)
        costs = [cost for step in plan.costs for cost in step]
        assert len(costs) <= 8
        best = min(
            sum(max(order[i : i + 2]) for i in range(0, len(order), 2)) for order in itertools.permutations(costs)
        )
        assert sum(max(step) for step in plan.costs) == pytest.approx(best, rel=1e-12)


def heap_s() -> float:
    """Seconds of CPU for 20,000 numbers in a heap and out of it: 10 ms on the machine of the goals."""
    start, heap = time.process_time(), []
    for number in range(20_000):
        heapq.heappush(heap, number * 7919 % 20_011 / 3)
    while heap:
        heapq.heappop(heap)
    return time.process_time() - start


@pytest.mark.parametrize(("count", "goal"), [(1024, 0.5), (4096, 2.5), (100_000, 100.0)])
def test_plans_are_made_in_the_time_of_the_goal(count, goal):
    """5 ms, 25 ms and 1 s, in times of `heap_s`, turn about: other machines, and other work on this one, slow down
    both."""
    lengths = lognormal(np.random.default_rng(0), count, 32768)
    times, units = [], []
    for _ in range(3 if count > 10_000 else 15):
        units.append(heap_s())
        start = time.process_time()
        plan = pack(lengths, token_budget=36864, ranks=8)
        times.append(time.process_time() - start)
    assert min(times) < goal * min(units)
    check(plan, lengths, 36864, 8)


def test_the_plan_follows_the_cap_under_one_budget():
    """In compression the cap halves and the budget stays: half the micro-steps, as evenly filled."""
    plans = {}
    for cap in (16384, 8192):
        lengths = lognormal(np.random.default_rng(3), 1024, cap)
        plans[cap] = pack(lengths, token_budget=36864, ranks=8)
        check(plans[cap], lengths, 36864, 8)
        assert plans[cap].lockstep_efficiency > 0.99
    assert 0.45 < len(plans[8192].steps) / len(plans[16384].steps) < 0.6


def test_plan_is_deterministic():
    lengths = lognormal(np.random.default_rng(0), 500, 16384)
    assert pack(lengths, token_budget=36864, ranks=8) == pack(lengths, token_budget=36864, ranks=8)


def test_fewer_sequences_than_bins_leaves_empty_lists():
    plan = pack([5, 7, 3], token_budget=10, ranks=4)
    check(plan, [5, 7, 3], 10, 4)
    assert sorted(map(len, plan.steps[0])) == [0, 1, 1, 1]


def test_own_cost_function_is_used():
    plan = pack([1, 2, 3, 4], token_budget=100, ranks=2, cost=lambda n: np.ones_like(n))
    assert [len(bin_) for bin_ in plan.steps[0]] == [2, 2]


@pytest.mark.parametrize(
    ("lengths", "options", "says"),
    [
        ([], {"token_budget": 5}, "at least one"),
        ([3, 9], {"token_budget": 8}, "sequence 1 has 9 tokens"),
        ([3, 0], {"token_budget": 8}, "sequence 1 has 0 tokens"),
        ([3], {"token_budget": 0}, "token_budget >= 1"),
        ([3], {"token_budget": 4, "ranks": 0}, "ranks >= 1"),
    ],
)
def test_bad_input(lengths, options, says):
    with pytest.raises(ValueError, match=says):
        pack(lengths, **options)
