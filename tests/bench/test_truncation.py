"""bench/truncation.py: a sum that is cut off comes out too small by what its model says, a rounded one does not."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "bench" / "truncation.py"


def cut_off(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x w^T whose sum is fp32, and cut off towards 0 after every 16 products."""
    a, b = x.double().numpy(), w.double().numpy()
    total = np.zeros((len(a), len(b)), np.float32)
    for start in range(0, a.shape[1], 16):
        part = total + a[:, start : start + 16] @ b[:, start : start + 16].T
        near = part.astype(np.float32)
        total = np.where(np.abs(near) > np.abs(part), np.nextafter(near, np.float32(0)), near)
    return torch.from_numpy(total)


@pytest.fixture(scope="module")
def truncation():
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize("width", [512, 1536])
@pytest.mark.parametrize("shared", [True, False], ids=["offset", "random"])
def test_the_model_says_what_a_cut_sum_loses(truncation, width, shared):
    x, w = truncation["operands"](64, width, "cpu", shared=shared)
    exact = x.double() @ w.double().T
    shift = truncation["relative_shift"]
    share = shift(cut_off(x, w), exact) / (truncation["MODEL"] * width)
    # a random sum wanders before it gets where it ends, so that less is cut off on its way
    assert 0.9 < share < 1.1 if shared else 0.5 < share < 0.95
    assert abs(shift(truncation["by_torch"](x, w), exact)) < 0.05 * abs(truncation["MODEL"] * width)


def test_it_runs_where_there_is_no_gpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["truncation.py", "--widths", "64"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "model" in lines[1] and "common offset" in lines[2]
