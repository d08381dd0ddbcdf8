"""The anchored-exp GEMM by itself, interpreted: what it stores and what it sums, against fp64."""

import math

import pytest
import torch
from siri_kernels.rows.anchored import gemm as anchored_gemm
from siri_kernels.rows.anchored import tiles as plans
from siri_kernels.rows.protocol import stored_width

from tests.support.kernel_cases import exact_problem

BF16 = torch.bfloat16


@pytest.mark.parametrize("descriptors", [True, False])
@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("entropy", [True, False])
def test_the_gemm_alone(descriptors, store, entropy):
    hidden, weight, target_ids = exact_problem()
    n, vocab = hidden.shape[0], weight.shape[0]
    tile = plans.INTERPRETER[descriptors]
    z2 = (hidden.double() @ weight.double().T) * math.log2(math.e)
    b2 = z2.amax(1).float()
    backing = torch.full((n, stored_width(vocab)), 7.0, dtype=BF16)
    out = backing[:, :vocab] if store else None
    partials = anchored_gemm.new_partials(n, vocab, tile, hidden.device).fill_(torch.nan)
    logits = anchored_gemm.Logits(math.log2(math.e), None, None, None, False, 0)
    target = torch.full((n,), torch.nan)
    anchored_gemm.exp_gemm(
        hidden, weight, target_ids, b2, logits, out=out, partials=partials, target=target, entropy=entropy, tile=tile
    )
    u = z2 - b2.double()[:, None]
    torch.testing.assert_close(target.double(), u.gather(1, target_ids[:, None]).squeeze(1), rtol=1e-6, atol=1e-6)
    e = u.exp2().scatter(1, target_ids[:, None], 0.0)
    torch.testing.assert_close(partials[0].sum(0).double(), e.sum(1), rtol=1e-5, atol=0)
    if entropy:
        torch.testing.assert_close(partials[1].sum(0).double(), (e * u).sum(1), rtol=1e-5, atol=1e-6)
    else:
        assert partials[1].isnan().all()
    if store:
        torch.testing.assert_close(out, e.to(BF16), rtol=2**-8, atol=0)
        assert (backing[:, vocab:] == 7).all(), "written past the vocabulary"


@pytest.mark.parametrize("selected", [torch.arange(41), torch.tensor([40, 3, 17])], ids=["all rows", "three rows"])
@pytest.mark.parametrize("entropy", [True, False])
def test_the_online_mode_of_the_gemm(selected, entropy):
    """Each tile's own maximum for b, whatever b was; of the selected rows only, in their order."""
    hidden, weight, target_ids = exact_problem()
    n, vocab = hidden.shape[0], weight.shape[0]
    tile = plans.INTERPRETER[False]
    partials = anchored_gemm.new_partials(n, vocab, tile, hidden.device).fill_(torch.nan)
    logits = anchored_gemm.Logits(math.log2(math.e), None, None, None, False, 0)
    rows, count = torch.cat([selected, torch.zeros(n - len(selected), dtype=torch.int64)]), torch.tensor(len(selected))
    nothing, target = torch.full((2, n), torch.nan)
    anchored_gemm.exp_gemm(
        hidden, weight, target_ids, nothing, logits, out=None, partials=partials, target=target, entropy=entropy,
        tile=tile, online=True, rows=rows, count=count,
    )  # fmt: skip
    z2 = hidden.double() @ weight.double().T * math.log2(math.e)
    expected = torch.full((n,), torch.nan, dtype=torch.float64)
    expected[selected] = z2.gather(1, target_ids[:, None]).squeeze(1)[selected]
    torch.testing.assert_close(target.double(), expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    z2 = z2.scatter(1, target_ids[:, None], -math.inf)[selected]
    for t, part in enumerate(z2.split(tile.columns, 1)):
        u = part - part.amax(1, keepdim=True)
        total, weighted, offset = partials[:, t, : len(selected)].double()
        torch.testing.assert_close(offset, part.amax(1), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(total, u.exp2().sum(1), rtol=1e-5, atol=0)
        if entropy:
            expected = torch.where(u.isfinite(), u.exp2() * u, 0.0).sum(1)
            torch.testing.assert_close(weighted, expected, rtol=1e-5, atol=1e-5)
    assert partials[:, :, len(selected) :].isnan().all(), "other rows were touched"
