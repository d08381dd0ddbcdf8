"""The GEMMs' surroundings: what is global in torch is as the operators need it inside, and as it was outside."""

import pytest
import torch
from siri_kernels import gemm

MATMUL = torch.backends.cuda.matmul
BF16, FP16 = (f"allow_{kind}_reduced_precision_reduction" for kind in ("bf16", "fp16"))


@pytest.fixture
def as_the_caller_set_it():
    """Half-precision sums allowed in bf16; forbidden in fp16, and there splits of the depth, too."""
    before = {name: (getattr(MATMUL, name), getattr(MATMUL, f"{name}_split_k")) for name in (BF16, FP16)}
    setattr(MATMUL, BF16, True)
    setattr(MATMUL, FP16, (False, False))
    yield
    for name, values in before.items():
        setattr(MATMUL, name, values)


def state():
    return [getattr(MATMUL, name + end) for name in (BF16, FP16) for end in ("", "_split_k")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fails", [False, True])
def test_no_sums_in_half_precision(as_the_caller_set_it, dtype, fails):
    before = state()
    assert before == [True, True, False, False]
    try:
        with gemm.full_precision(dtype):
            assert state() == [False, True, False, False]
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert state() == before


def test_no_tf32():
    before = MATMUL.fp32_precision
    MATMUL.fp32_precision = "tf32"
    try:
        with gemm.full_precision(torch.float32):
            assert MATMUL.fp32_precision == "ieee"
        assert MATMUL.fp32_precision == "tf32"
    finally:
        MATMUL.fp32_precision = before
