"""pytest-benchmark timings of the head's forward and of one loss step, every contestant in the same run."""

import pytest
import torch
from kernel_problems import forwards, problem, steps

IMPLS = ("siri", "siri-small", "siri-lean", "eager", "torch.compile", "cce", "cce-exact", "liger-grpo")


@pytest.fixture(scope="module")
def case(size):
    return problem(size)


def timed(benchmark, function):
    def call():
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    benchmark.pedantic(call, rounds=5, warmup_rounds=2)


@pytest.mark.parametrize("impl", ["siri", "eager"])
def bench_forward(benchmark, case, impl):
    benchmark.group = "log-prob and entropy, forward"
    timed(benchmark, forwards(case)[impl])


@pytest.mark.parametrize("impl", IMPLS)
def bench_step(benchmark, case, impl):
    contestants = steps(case, compiled=case.hidden.is_cuda)
    if impl not in contestants:
        pytest.skip(f"{impl} is not installed, or needs a GPU")
    benchmark.group = "GRPO loss, forward and backward"
    timed(benchmark, contestants[impl])
