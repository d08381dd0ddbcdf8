"""The check before the first use on a GPU, run in the interpreter: it passes what is right and finds what is not."""

import pytest
import torch
from siri_kernels import self_check
from siri_kernels.rows.anchored import rows as rows_anchored


@pytest.mark.parametrize("head", [(False, False, False, False), (True, True, False, True)], ids=str)
def test_the_self_check_finds_nothing(head):
    """Its problem is one that correct kernels pass with room to spare, and it leaves no trace."""
    state = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        fault = self_check.interpreted(head, vocab_tail=37 * head[0])
    assert fault is None and torch.equal(torch.get_rng_state(), state)


def broken(name):
    """A fault in one kernel, as a device might show it."""
    if name == "does not compile":

        def exp_gemm(*_, **__):
            raise RuntimeError("PassManager::run failed\nand a page of IR")

        return {"exp_gemm": exp_gemm}, "RuntimeError: PassManager::run failed"
    if name == "no redo":
        return {"online_sums": lambda *_: None}, "log-prob off by nan"
    if name == "wrong sums":

        def sums(partials, *args):
            return rows_anchored_sums(partials * (1 + 1e-3), *args)

        return {"sums": sums}, "log-prob off by"
    if name == "wrong gradient":

        def gradient(e, *args):
            factor = rows_anchored_gradient(e, *args)
            e[3] = 0
            return factor

        return {"gradient": gradient}, "dX off by"

    def exp_gemm(*args, **options):  # another order of sums when nothing is stored
        rows_anchored_exp_gemm(*args, **options)
        if options["out"] is None and not options.get("online"):
            options["partials"].mul_(1 + 2e-7)

    return {"exp_gemm": exp_gemm}, "differ between passes"


rows_anchored_sums, rows_anchored_gradient = rows_anchored.sums, rows_anchored.gradient
rows_anchored_exp_gemm = rows_anchored.exp_gemm


@pytest.mark.parametrize("name", ["does not compile", "no redo", "wrong sums", "wrong gradient", "another order"])
def test_the_self_check_finds(name, monkeypatch):
    changes, words = broken(name)
    for function, replacement in changes.items():
        monkeypatch.setattr(rows_anchored, function, replacement)
    fault = self_check.interpreted((False,) * 4)
    assert fault is not None and words in fault and "\n" not in fault
