"""The Triton paths compile for GPUs that nobody has run them on, an AMD MI300 and a consumer Blackwell, with the shared
memory that these have. Compiled is not tested: docs/kernels.md says so."""

import re

import pytest
from siri_kernels import inspect
from siri_kernels.rows.anchored.tiles import BUSY_TILES, PLANS, POINTERS
from triton import knobs
from triton.backends.compiler import GPUTarget

HARDWARE = {"gfx942": (GPUTarget("hip", "gfx942", 64), 65_536), "sm_120": (GPUTarget("cuda", 120, 32), 101_376)}
"""A target, and bytes of shared memory per block."""
NAMES = (
    *("row_stats fp32", "dlogits fp32->bf16 entropy", "tokens grpo none", "tokens finish", "rows scaled x", "scaled"),
    *("anchored gemm odd D", "anchored redo online", "anchored redo store", "anchored gradient"),
    *("anchored sums", "anchored redo sums"),
)
VARIANTS = {variant.name: variant for variant in inspect.variants() if 90 in variant.archs}


@pytest.mark.parametrize("hardware", HARDWARE)
def test_the_kernels_compile(hardware):
    target, shared = HARDWARE[hardware]
    busy = BUSY_TILES[120] if hardware == "sm_120" else POINTERS
    variants = [VARIANTS[name] for name in NAMES]
    variants.append(inspect.gemm_variant("plain", POINTERS, {"MASK": True}, ()))
    variants.append(inspect.gemm_variant("busy", busy, {"MASK": True, "HAS_BIAS": True}, ()))
    for variant in variants:
        compiled = inspect.build(variant, target)
        assert compiled.asm["hsaco" if target.backend == "hip" else "cubin"], variant.name
        assert compiled.metadata.shared <= shared, (variant.name, compiled.metadata.shared)


def test_what_is_planned_for_it_needs_no_descriptors():
    assert PLANS["flat"][120, 0] is POINTERS and not BUSY_TILES[120].descriptors and not POINTERS.descriptors


@pytest.mark.parametrize("name", ["anchored gemm", "row_stats fp32"])
def test_multiply_adds_do_not_hang_on_a_default(monkeypatch, name):
    """Triton 3.10 does not fuse them of its own accord; what a launch says counts, and most are written out."""
    counts = []
    for default in (True, False):
        monkeypatch.setattr(knobs.language, "default_fp_fusion", default)
        counts.append(
            len(re.findall(r"\bfma\.rn", inspect.build(VARIANTS[name], GPUTarget("cuda", 90, 32)).asm["ptx"]))
        )
    assert counts[0] == counts[1] >= {"anchored gemm": 256, "row_stats fp32": 24}[name]
