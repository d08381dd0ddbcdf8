"""pytest-benchmark timings of every op of the public API against every peer installed here, in the same run.

Who is compared with whom, and who is left out where, is in `kernel_contestants`; the GEMMs that an op cannot do without
run beside it.
"""

import pytest
import torch
from kernel_contestants import FLOORS, OPS, contestants
from kernel_measure import gemms
from kernel_problems import clear, problem


def everybody(op, p):
    floor = FLOORS.get(op)
    return contestants(op, p) | ({floor: gemms(p)[floor]} if floor else {})


def pytest_generate_tests(metafunc):
    tiny = problem((16, 8, 32))  # names depend on the machine, not on the size
    metafunc.parametrize(("op", "impl"), [(op, impl) for op in OPS for impl in everybody(op, tiny)])


@pytest.fixture(scope="module")
def case(size):
    return problem(size)


def bench_op(benchmark, case, op, impl):
    function = everybody(op, case)[impl]

    def call():
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    benchmark.group = op
    try:
        benchmark.pedantic(call, rounds=5, warmup_rounds=2)
    except torch.OutOfMemoryError:
        pytest.skip(f"{impl} runs out of memory at this size")
    finally:
        clear(case)
        if "logits" not in op:
            case.release()
