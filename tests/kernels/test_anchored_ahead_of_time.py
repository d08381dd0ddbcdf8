"""The anchored GEMM and its companions compile for real GPUs without one: tensor cores, TMA, no spills, registers and
shared memory as planned. Speed is not claimed from any of it."""

from importlib.metadata import version

import pytest

from tests.support.compiler_reports import assert_nothing_spills, matching


@pytest.fixture(scope="module")
def hopper(compiled) -> dict[str, dict[str, int]]:
    return {name: report for (name, _), report in matching(compiled, "anchored", "sm_90").items()}


BUSY = ("softcap", "bias", "rounded", "everything")
OTHER_PLANS = ("specialized", "two-blocks")


def of(variants, *words, without=()):
    chosen = {n: r for n, r in variants.items() if all(w in n for w in words) and not any(w in n for w in without)}
    assert chosen
    return chosen.items()


def test_nothing_spills(hopper):
    for name, report in hopper.items():
        assert_nothing_spills((name, "sm_90"), report)


def test_the_gemm_uses_wgmma_and_tma(hopper):
    for name, report in of(hopper, "gemm", without=("odd D", *OTHER_PLANS)):
        # 64 of depth in four steps of 16; loads of the prologue and of the loop; two stores of half a tile each, in
        # the loop and after it
        assert report["tensor_cores"] == 4, (name, report)
        assert report["tma_loads"] >= 2, (name, report)
        assert report["tma_stores"] == (0 if "no store" in name else 4), (name, report)
    for name, report in (*of(hopper, "odd D"), *of(hopper, "redo", without=("sums",))):
        assert report["tensor_cores"] >= 4 and report["tma_loads"] == 0, (name, report)


def test_one_block_or_two_fit_a_multiprocessor(hopper):
    """Hopper: 65,536 registers and 227 KiB of shared memory for blocks, 1 KiB taken per block."""
    for name, report in of(hopper, "gemm", without=("odd D", *BUSY, *OTHER_PLANS)):  # 128 x 256 x 64, 8 warps, 4 stages
        assert 160 <= report["registers"] <= 255 and 190_000 < report["shared"] <= 232_448, (name, report)
    for name, report in of(hopper, "gemm", without=("odd D", "store", "slice", "entropy", "ragged", *OTHER_PLANS)):
        if any(word in name for word in BUSY):  # 128 x 128 x 64, 8 warps, 3 stages: two blocks by shared memory
            assert 2 * (report["shared"] + 1024) <= 233_472, (name, report)
    for name, report in of(hopper, "gemm", "bias"):  # one block by registers, since multiply-adds are written out
        most = 170 if version("triton").startswith("3.9") else 168
        assert 256 * report["registers"] <= 65_536 and report["registers"] <= most, (name, report)


def test_the_other_plans(hopper):
    """Specialised warps are really there (the compiler ignores the wish without a word), and the small tile really fits
    twice."""
    modes = ("no store", "slice", "no entropy", "T[N] ragged")
    for plan in OTHER_PLANS:
        assert {f"anchored gemm {plan}", *(f"anchored gemm {plan} {mode}" for mode in modes)} == dict(
            of(hopper, plan)
        ).keys()
    for name, report in of(hopper, "gemm", without=("specialized",)):
        assert report["register_moves"] == 0, (name, report)
    for name, report in of(hopper, "specialized"):  # 168 registers for each of 12 warps before they are moved
        assert report["register_moves"] > 0 and report["registers"] * 384 <= 65_536, (name, report)
        assert report["tensor_cores"] == 8 and report["tma_loads"] == 3 and report["shared"] <= 232_448, (name, report)
        # triton 3.6 stores both halves of a tile at once
        assert report["tma_stores"] in ((0,) if "no store" in name else (2, 4)), (name, report)
    for name, report in of(hopper, "two-blocks"):
        assert 2 * (report["shared"] + 1024) <= 233_472 and 2 * 128 * report["registers"] <= 65_536, (name, report)
        assert report["tensor_cores"] == 8 and report["tma_loads"] >= 2, (name, report)


def test_gradients_are_streamed(hopper):
    for name, report in of(hopper, "gradient", "entropy"):
        assert report["wide_loads"] >= 1 and report["wide_stores"] >= 1 and report["barriers"] >= 1, (name, report)


@pytest.mark.parametrize("name", [r"anchored gemm T\[N\]", "everything", "softcap"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_100"])
def test_older_and_newer_gpus(compiled, arch, name):
    for key, report in matching(compiled, name, arch).items():
        assert_nothing_spills(key, report)
        if "gemm" in key[0]:
            assert report["tensor_cores"] >= 4 and (report["tma_loads"] > 0) == (arch == "sm_100"), (key, report)
