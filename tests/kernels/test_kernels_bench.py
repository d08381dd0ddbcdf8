"""The benchmark program runs at its tiny size, so that it works on the day a GPU is at hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"


def test_the_table_of_goals(tmp_path):
    out = tmp_path / "new" / "kernels.json"
    command = [str(BENCH / "gpu.sh"), "kernels"]
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "OUT": str(out.parent),
        "SIZES": "tiny",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(out.read_text())
    assert {"device", "versions", "commit", "rows", "goals"} <= record.keys()
    assert {"op", "impl", "size", "ms", "ratio_to_gemm", "extra_bytes", "max_error"} <= record["rows"][0].keys()
    assert {row["impl"] for row in record["rows"]} >= {"gemm", "gemms", "siri", "siri-lean", "eager"}
    errors = [row["max_error"] for row in record["rows"] if row["impl"] == "siri"]
    assert all(0 < error < 2e-5 for error in errors)
    assert all(goal["better"] in ("lower", "higher") and goal["id"].endswith(".tiny") for goal in record["goals"])


def test_a_part_that_comes_later_and_one_that_does_not_exist():
    run = lambda part: subprocess.run([str(BENCH / "gpu.sh"), part], capture_output=True, text=True)  # noqa: E731
    later, unknown = run("train"), run("speed")
    assert later.returncode == 0 and later.stdout.count("\n") == 1
    assert unknown.returncode == 2 and "usage" in unknown.stderr
