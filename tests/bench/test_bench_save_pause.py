"""A checkpoint that is written in the background stops nobody."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import save_pause


@pytest.mark.quiet
def test_a_save_in_the_background_does_not_hold_the_step():
    row = save_pause.measure(300 * 10**6)
    assert row["now_pause_s"] < row["before_pause_s"] / 2, row
