"""Every Triton kernel compiles for real GPUs without one; the compiler reports neither spills nor narrow streams."""

import os
import subprocess
import sys

import pytest


def reports(*arguments) -> dict[tuple[str, str], dict[str, int]]:
    """(kernel, arch) -> the compiler's numbers, from a process in which Triton is not interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "siri_kernels.inspect", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    head, *lines = done.stdout.splitlines()
    columns = head.split()[2:]
    rows = [line.rsplit(maxsplit=len(columns) + 1) for line in lines]
    return {(name, arch): dict(zip(columns, map(int, numbers), strict=True)) for name, arch, *numbers in rows}


SELECTIONS = {
    "sm_90": ("--arch", "90", "--skip", "anchored"),
    "dlogits": ("--arch", "80", "100", "--only", "fp32->bf16"),
    "row_stats": ("--arch", "80", "100", "--only", "row_stats"),
}


@pytest.mark.parametrize("selection", SELECTIONS)
def test_the_compilers_report(selection):
    found = reports(*SELECTIONS[selection])
    assert len(found) >= 4
    for key, report in found.items():
        name = key[0]
        assert report["spills"] == 0 and report["stack"] == 0, (key, report)
        assert 16 <= report["registers"] <= 128, (key, report)
        assert report["shared"] <= 1024, (key, report)
        if not name.startswith("tokens"):
            assert report["wide_loads"] >= 1, (key, report)
        if name.startswith("dlogits"):
            assert report["wide_stores"] >= 2, (key, report)
            assert report["barriers"] >= 1, f"{key}: nothing keeps a warp from writing over what another has not read"
