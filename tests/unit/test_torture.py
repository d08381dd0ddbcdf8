"""`make torture`'s table, share and end."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = """
def test_passes(fault, long):
    fault("a disk that is full", f"{long(1, 200)} times", "told")

def test_fails(fault):
    fault("a disk that is gone", "once", "nobody knows")
    assert False
"""


def said(folder: Path, *options: str) -> str:
    (folder / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", folder, "-p", "tests.support.torture"]
    command += ["-p", "no:cacheprovider", "-p", "no:benchmark", "--torture", *options, folder / "test_it.py"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


def test_what_passed_is_in_the_table_with_the_share_that_was_tried(tmp_path):
    text = said(tmp_path, "--share", "10")
    assert (
        "a disk that is full  20 times  told" in text and "nobody knows" not in text.partition("what came of them")[2]
    )
    assert "make torture: 1 passed, 1 failed, 0 error, 0 skipped in " in text and "long forms at 10 %" in text


def test_what_has_not_begun_in_time_is_left_out_and_named(tmp_path):
    text = said(tmp_path, "--minutes", "0")
    assert "2 skipped" in text and "test_it.py::test_fails: Skipped: the 0 minutes are over" in text
