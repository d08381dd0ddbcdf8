"""Time of one packing plan (goals: 5 ms for 1,024 sequences, 25 ms for 4,096, 1 s for 100,000) and of the peers' plans,
whose quality `python bench/packing_peers.py` compares."""

import packing_peers
import pytest

from siri.packing import pack


@pytest.mark.parametrize("cap", [8192, 16384, 32768])
@pytest.mark.parametrize("count", [1024, 4096, 100_000])
def test_pack(benchmark, count, cap):
    lengths = packing_peers.lognormal_lengths(0, count, cap)
    benchmark.extra_info["sequences"] = count
    plan = benchmark(pack, lengths, token_budget=max(36864, cap + 1024), ranks=8)
    benchmark.extra_info["lockstep_efficiency"] = plan.lockstep_efficiency


@pytest.mark.parametrize("peer", packing_peers.PEERS)
def test_peer(benchmark, peer):
    benchmark(packing_peers.PEERS[peer], packing_peers.lognormal_lengths(0, 1024, 32768), 36864, 8)
