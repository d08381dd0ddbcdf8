"""bench/truncation.py: a sum that is cut off comes out too small by what its model says, a rounded one does not."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "bench" / "truncation.py"


NAMES = ("with the factor", "of the product", "exact target")


@pytest.fixture(scope="module")
def truncation():
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize("width", [512, 1536])
@pytest.mark.parametrize("shared", [True, False], ids=["offset", "random"])
def test_the_model_says_what_a_cut_sum_loses(truncation, width, shared):
    x, w = truncation["operands"](64, width, "cpu", shared=shared)
    exact = x.double() @ w.double().T
    shift = truncation["relative_shift"]
    share = shift(truncation["cut_off"](x, w), exact) / (truncation["MODEL"] * width)
    # a random sum wanders before it gets where it ends, so that less is cut off on its way
    assert 0.9 < share < 1.1 if shared else 0.5 < share < 0.95
    assert abs(shift(truncation["by_torch"](x, w), exact)) < 0.05 * abs(truncation["MODEL"] * width)


@pytest.mark.parametrize("kind", ["peaked", "offset", "dominated"])
def test_the_factor_makes_the_modelled_errors_smaller(truncation, kind):
    errors = truncation["modelled_errors"](kind, 1536, 48)
    for mended, product, exact in zip(*(errors[name] for name in NAMES), strict=True):  # log-probs, then entropies
        assert mended < 0.5 * max(product, exact) and mended < product < 1.2e-4


def test_it_runs_where_there_is_no_gpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["truncation.py", "--widths", "64"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "model" in lines[1] and "common offset" in lines[2]
