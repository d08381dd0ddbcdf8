"""Every Triton kernel compiles for real GPUs without one; the compiler reports neither spills nor narrow streams.

Every variant that a launch can ask for on sm_90, the leanest and the fullest of each kernel on sm_80 and sm_100;
`python -m siri_kernels.inspect` prints all for all three.
"""

import pytest
from siri_kernels import inspect

from tests.support.compiler_reports import ANCHORED, ROWS, TOKENS, Reports, assert_nothing_spills, matching, reports


@pytest.fixture(scope="module")
def variants(compiled) -> Reports:
    everything = matching(compiled, r"^(?!.*anchored)", "sm_90")
    return everything | matching(compiled, f"{ROWS}|{TOKENS}", "sm_80", "sm_100")


def test_every_variant_is_there(variants):
    """Dtypes of logits and of their gradient, softcap, temperature per row, entropy gradient, rows that start anywhere;
    every setting of the loss's kernel."""
    hopper = {name for name, arch in variants if arch == "sm_90"}
    assert len([name for name in hopper if name.startswith("row_stats")]) == 2 * 5 + 3
    assert len([name for name in hopper if name.startswith("dlogits")]) == 2 * (3 * 5 + 3)
    assert (
        len([name for name in hopper if name.startswith("tokens")]) == 2 * 2 * 2 * 4 + 2 * 2 * 4 + 2
    )  # and finish, metrics
    for arch in ("sm_80", "sm_100"):
        assert {name for name, a in variants if a == arch} <= hopper
        assert {name.split()[0] for name, a in variants if a == arch} == {"row_stats", "dlogits", "tokens"}


def test_nothing_spills(variants):
    for key, report in variants.items():
        assert_nothing_spills(key, report)
        assert 16 <= report["registers"] <= 64, (key, report)
        assert report["shared"] <= 1024, (key, report)


def test_logits_are_streamed(variants):
    for (name, arch), report in variants.items():
        if name.startswith("tokens") or "odd V" in name:
            continue
        assert report["wide_loads"] >= 1, (name, arch, report)
        if name.startswith("dlogits"):
            assert report["wide_stores"] >= 2, (name, arch, report)


def test_no_warp_writes_over_what_another_has_not_read(variants):
    for key, report in variants.items():
        if key[0].startswith("dlogits"):
            assert report["barriers"] >= 1, key


def test_sizes_of_one():
    """A launch makes constants of integers that are 1: one row, one token in the vocabulary, one tile."""
    anchored = r"anchored (gemm( odd D)?|redo \w+|gradient|sums)"
    names = rf"^(row_stats fp32|dlogits fp32->bf16|tokens (finish|grpo none)|{anchored})$"
    variants = reports("--arch", "90", "--ones", "--match", names, "--jobs", "2")
    assert len(variants) == 11


@pytest.mark.parametrize("arguments", [["--only", "nosuch"], ["--arch", "75"], ["--match", "("]], ids=" ".join)
def test_nothing_to_show_is_said(arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["inspect", *arguments])
    with pytest.raises(SystemExit) as ended:
        inspect.main()
    assert ended.value.code == 2 and "error: " in capsys.readouterr().err


@pytest.mark.parametrize("arch", ["sm_80", "sm_100"])
def test_the_anchored_kernels_of_older_and_newer_gpus(compiled, arch):
    """Those that `test_anchored_ahead_of_time.py` does not look at there."""
    for key, report in matching(compiled, ANCHORED, arch).items():
        assert_nothing_spills(key, report)
        if "gemm" in key[0] or key[0].startswith(("anchored redo online", "anchored redo store")):
            assert report["tensor_cores"] >= 4, (key, report)
        if " entropy" in key[0]:
            assert report["wide_loads"] >= 1 and report["wide_stores"] >= 1, (key, report)
