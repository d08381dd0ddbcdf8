"""The peers' algorithms do what their descriptions say, and our plans are at least as good as each of theirs."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))

import packing_peers as peers

from siri.packing import least_micro_steps, pack


@pytest.mark.parametrize("peer", peers.PEERS)
@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=60), slack=st.integers(0, 4000), ranks=st.integers(1, 6)
)
def test_every_sequence_once_within_the_budget(peer, lengths, slack, ranks):
    budget = max(lengths) + slack
    steps = peers.PEERS[peer](lengths, budget, ranks)
    bins = [bin_ for step in steps for bin_ in step]
    assert all(len(step) == ranks and any(step) for step in steps)
    assert sorted(index for bin_ in bins for index in bin_) == list(range(len(lengths)))
    assert max(sum(lengths[i] for i in bin_) for bin_ in bins) <= budget


def sums(parts, weights):
    return sorted((sum(weights[i] for i in part) for part in parts), reverse=True)


@pytest.mark.parametrize(
    ("weights", "parts", "expected"),
    [
        ([8, 7, 6, 5, 4], 2, [16, 14]),  # the textbook case: the method misses the perfect 15 and 15
        ([8, 7, 6, 5, 4], 3, [11, 11, 8]),
        ([5, 5, 5, 5], 4, [5, 5, 5, 5]),
        ([9], 3, [9, 0, 0]),
        ([], 2, [0, 0]),
    ],
)
def test_karmarkar_karp(weights, parts, expected):
    assert sums(peers.karmarkar_karp(weights, parts), weights) == expected


def test_karmarkar_karp_with_equal_counts():
    weights = [100, 1, 1, 1, 1, 1]
    assert sorted(map(len, peers.karmarkar_karp(weights, 2))) != [3, 3]
    parts = peers.karmarkar_karp(weights, 2, equal_size=True)
    assert list(map(len, parts)) == [3, 3]
    assert sums(peers.karmarkar_karp([8, 7, 6, 5], 2, equal_size=True), [8, 7, 6, 5]) == [13, 13]
    with pytest.raises(ValueError, match="6 weights cannot be dealt equally to 4 sets"):
        peers.karmarkar_karp(weights, 4, equal_size=True)


def test_karmarkar_karp_is_near_the_best_two_way_split():
    rng = np.random.default_rng(3)
    for _ in range(20):
        weights = rng.integers(1, 1000, 12).tolist()
        best = min(
            max(sum(side), sum(weights) - sum(side))
            for size in range(13)
            for side in itertools.combinations(weights, size)
        )
        larger = sums(peers.karmarkar_karp(weights, 2), weights)[0]
        assert best <= larger <= 7 / 6 * best  # Fischetti and Martello's bound


def as_lengths(steps, lengths):
    return [[[lengths[i] for i in bin_] for bin_ in step] for step in steps]


@pytest.mark.parametrize(
    ("peer", "lengths", "budget", "ranks", "expected"),
    [
        # 18 tokens fit into 2 bins of 10 by their sum only, so verl has to plan again with 3
        ("verl", [6, 6, 6], 10, 1, [[[6]], [[6]], [[6]]]),
        # small micro-batches first and last
        ("verl", [9, 8, 7, 6], 10, 1, [[[7]], [[9]], [[8]], [[6]]]),
        # 3 joins the rank with the smaller sum of squares, 6 finds room nowhere, 99 is dropped
        ("TRL", [5, 4, 99, 3, 6], 8, 2, [[[5], [4, 3]], [[6], []]]),
        ("torchtitan", [5, 4, 99, 3, 6], 8, 2, [[[5], [4, 3]], [[6], []]]),
        # next fit does not go back to the row that 5 left half empty
        ("torchtitan", [5, 6, 3], 8, 3, [[[5], [6], [3]]]),
        # first fit does
        ("prime-rl", [5, 6, 3], 9, 2, [[[6, 3], [5]]]),
        # one bin too few: the costliest is split
        ("prime-rl", [4, 3, 2], 9, 2, [[[3, 2], [4]]]),
        # one bin too few: one sequence moves over
        ("NeMo-RL", [4, 3, 2], 9, 2, [[[4, 3], [2]]]),
        # a medium one beside the first that has room, two small ones beside the last, the tiny one where there is room
        ("NeMo-RL", [70, 60, 58, 35, 22, 18, 1], 100, 3, [[[70, 1], [60, 35], [58, 18, 22]]]),
    ],
)
def test_plans_by_hand(peer, lengths, budget, ranks, expected):
    assert as_lengths(peers.PEERS[peer](lengths, budget, ranks), lengths) == expected


def test_what_goes_wrong_is_counted(monkeypatch):
    monkeypatch.setitem(peers.PEERS, "bad", lambda lengths, budget, ranks: [[[0, 1], [2]]])
    figures = peers.measure("bad", [6, 6, 6, 6], 10, 2)
    assert (figures["violations"], figures["dropped"], figures["micro_steps"], figures["pad_share"]) == (1, 1, 1, 0)
    assert peers.measure("torchtitan", [6, 6], 10, 2)["pad_share"] == pytest.approx(8 / 12)


def test_efficiency_by_hand(monkeypatch):
    monkeypatch.setattr(peers, "default_cost", lambda lengths: lengths)
    monkeypatch.setattr(peers, "OVERHEAD", 2.0)
    monkeypatch.setitem(peers.PEERS, "one", lambda lengths, budget, ranks: [[[0], [1]], [[2], []]])
    assert peers.measure("one", [8, 6, 4], 10, 2)["efficiency"] == pytest.approx(18 / (2 * (8 + 2 + 4 + 2)))


GOALS = {
    (8192, 128, 8): 0.97, (16384, 128, 8): 0.97, (32768, 128, 8): 0.955,
    (8192, 256, 8): 0.98, (16384, 256, 8): 0.98, (32768, 256, 8): 0.975,
}  # fmt: skip


@pytest.mark.parametrize("case", peers.CASES, ids=lambda case: "x".join(map(str, case)))
def test_ours_reaches_its_goal_and_no_peer_is_better(case):
    by_peer = {row["peer"]: row for row in peers.compare([case], seeds=5)}
    ours = by_peer.pop("siri")
    assert (ours["violations"], ours["dropped"], ours["pad_share"]) == (0, 0, 0)
    if case[2] == 8:
        assert ours["efficiency"] >= GOALS.get(case, 0.98)
    for name, row in by_peer.items():
        assert ours["efficiency"] >= row["efficiency"], name


def test_the_lower_bound_is_one():
    """No packing of small random problems beats it (every packing is tried), and it says more than the tokens' sum."""

    def fewest_bins(left, budget, rooms=()):
        if not left:
            return len(rooms)
        size, rest = left[0], left[1:]
        options = [fewest_bins(rest, budget, (*rooms, budget - size))]
        for place, room in enumerate(rooms):
            if room >= size and room not in rooms[:place]:
                options.append(fewest_bins(rest, budget, (*rooms[:place], room - size, *rooms[place + 1 :])))
        return min(options)

    rng = np.random.default_rng(0)
    sharper = 0
    for _ in range(60):
        sizes = rng.integers(1, 21, 7)
        bound = least_micro_steps(sizes, 20, 1)
        simple = max(-(-int(sizes.sum()) // 20), int((2 * sizes > 20).sum()), 1)
        assert simple <= bound <= fewest_bins(tuple(sorted(sizes.tolist(), reverse=True)), 20)
        sharper += bound > simple
    assert sharper, "no problem on which the bound says more than the simple one"
    assert least_micro_steps(np.array([6, 6, 5, 5, 5]), 10, 1) == 4  # 5 fits beside no 6: 2 + 3 halves
    assert least_micro_steps(np.array([10, 10, 10]), 20, 1) == 2


def test_small_plans_are_within_a_fifth_of_a_per_cent_of_perfect_balance():
    for seed in range(5):
        lengths = peers.lognormal_lengths(seed, 128, 8192)
        assert pack(lengths, token_budget=36864, ranks=8).lockstep_efficiency > 0.998
