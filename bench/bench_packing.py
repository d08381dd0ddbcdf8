"""Time of one packing plan: goals are 5 ms for 1,024 sequences, 25 ms for 4,096, 1 s for 100,000."""

import numpy as np
import pytest

from siri.packing import pack


@pytest.mark.parametrize("cap", [8192, 32768])
@pytest.mark.parametrize("count", [1024, 4096, 100_000])
def test_pack(benchmark, count, cap):
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(0.45 * cap), 0.7, count).astype(int), 1, cap).tolist()
    benchmark.extra_info["sequences"] = count
    plan = benchmark(pack, lengths, token_budget=max(36864, cap + 1024), ranks=8)
    benchmark.extra_info["lockstep_efficiency"] = plan.lockstep_efficiency
