"""bench/trl_step.py runs at its tiny size, so that it works on the day a GPU is at hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


def test_trl_step(tmp_path):
    pytest.importorskip("trl", reason="trl is not installed")
    environment = {"PYTHON": sys.executable, "OUT": str(tmp_path), "SIZES": "tiny", "OMP_NUM_THREADS": "1"}
    environment["SIRI_TEST_WARNINGS"] = ""  # TRL asks transformers for what is deprecated there
    done = subprocess.run(
        [str(BENCH / "gpu.sh"), "trl"], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    data = json.loads((tmp_path / "results.json").read_text())
    assert {"device", "versions", "commit", "rows", "goals"} <= data.keys() and data["versions"]["trl"]
    rows = {(row["op"], row["impl"]): row for row in data["rows"]}
    assert rows.keys() == {(op, impl) for op in ("trl_step", "trl_step half") for impl in ("trl", "trl + siri")}
    for (_, impl), row in rows.items():
        assert row["ms"] > 0 and row["size"] == "tiny" and row["ratio_to_gemm"] is None
        assert (row["max_error"] is None) == (impl == "trl") and (row["max_error"] or 0) < 1e-5
