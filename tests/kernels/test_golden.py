"""The numbers of the kernels stand where they stood (tests/golden/kernels.py), and one that moves is named."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden"


def compare(folder: Path) -> tuple[int, str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, folder / "kernels.py"], capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout + done.stderr[-3000:]


def test_no_number_of_the_kernels_has_moved():
    code, text = compare(GOLDEN)
    assert code == 0 and "nothing moved" in text, text


def test_a_number_that_moved_is_named_on_any_machine(tmp_path):
    golden = json.loads((GOLDEN / "kernels.json").read_text())
    golden["machine"]["processor"] = "another"
    value = float.fromhex(golden["cases"]["lean, torch"]["loss"][0])
    golden["cases"]["lean, torch"]["loss"] = [(value * (1 + 2e-6)).hex()]
    (tmp_path / "kernels.json").write_text(json.dumps(golden))
    shutil.copy(GOLDEN / "kernels.py", tmp_path)
    code, text = compare(tmp_path)
    assert code == 1 and "compared to 1e-06" in text, text
    assert [line for line in text.splitlines() if " moved by " in line] == [
        "lean, torch: loss moved by 2.0e-06, more than 1e-06"
    ], text
