"""Host work of a step: at most a quarter of what it was when all tokens went through lists on every rank."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import host_cost


@pytest.mark.quiet
def test_tokens_stay_arrays_and_words_are_counted_once():
    row = host_cost.measure(512, 2000)
    assert row["share"] <= 0.25, row
