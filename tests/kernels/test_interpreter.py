"""Runs the Triton kernels in the interpreter, in a process of their own (see interpreter/conftest.py)."""

import os
import subprocess
import sys
from pathlib import Path


def test_the_triton_kernels_in_the_interpreter():
    folder = Path(__file__).parent / "interpreter"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(folder)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
