"""bench/truncation.py: a sum that is cut off comes out too small by what its model says, a rounded one does not."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "bench" / "truncation.py"


MEASURED = {
    (256, True): -3.16e-7,
    (256, False): -1.82e-7,
    (896, True): -1.54e-6,
    (896, False): -7.20e-7,
    (1536, True): -3.15e-6,
    (1536, False): -1.29e-6,
}
"""width, whether logits share an offset -> the shift that an H100 and an H200 showed; bench/results has wider ones"""


@pytest.fixture(scope="module")
def truncation():
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize(("width", "shared"), MEASURED, ids=str)
def test_the_model_says_what_a_gpu_showed(truncation, width, shared):
    """Of other operands, whose generator is a CPU's: within a seventh."""
    x, w = truncation["operands"](64, width, "cpu", shared=shared)
    exact = x.double() @ w.double().T
    shift = truncation["relative_shift"]
    measured = MEASURED[width, shared]
    assert shift(truncation["cut_off"](x, w), exact) == pytest.approx(measured, rel=1 / 7)
    assert abs(shift(truncation["by_torch"](x, w), exact)) < 0.05 * abs(measured)


def test_a_product_is_cut_off_when_it_is_aligned(truncation):
    """By hand: beside a sum of 1, whose last bit is 2^-23, a product keeps bits down to 2^-25, and the sum after each
    step its 24; what the second step adds is too small for the sum, not for the step."""
    x = torch.zeros(1, 32, dtype=torch.float64)
    x[0, :3] = torch.tensor([1.0, 2.0**-25, 2.0**-24 + 2.0**-26])
    x[0, 16:] = 2.0**-25
    ones = torch.ones(1, 32, dtype=torch.float64)
    assert float(truncation["cut_off"](x[:, :16], ones[:, :16])) == 1.0  # 2^-25 + 2^-24, less than a last bit
    assert float(truncation["cut_off"](x, ones)) == 1 + 2.0**-21  # 16 of 2^-25
    assert float(truncation["cut_off"](-x, ones)) == -1 - 2.0**-21, "towards 0, not down"
    assert float(truncation["cut_off"](x, ones, pairs=True)) == 1 + 2.0**-21
    assert float(truncation["cut_off"](torch.zeros(1, 16), torch.ones(1, 16))) == 0


@pytest.mark.parametrize("kind", ["peaked", "offset", "dominated"])
def test_the_factor_makes_the_modelled_errors_smaller(truncation, kind):
    chosen = truncation["CUT_OFF"][90]
    none, mended, more = truncation["modelled_errors"](kind, 1536, 96, [0.0, chosen, 2 * chosen]).values()
    assert mended[0] < 5e-5 and mended[1] < 1e-4
    if kind != "offset":  # which is taken from all logits alike, factor or not
        assert mended[0] < 0.5 * none[0] and mended[0] < 0.5 * more[0]


def test_it_runs_where_there_is_no_gpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["truncation.py", "--widths", "64"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "model" in lines[1] and "common offset" in lines[2]
