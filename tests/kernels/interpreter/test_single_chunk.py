"""What the anchored path does between its GEMMs, interpreted: dW of a single chunk in the backward, rows scaled and put
in their places, gradients narrowed."""

import pytest
import torch
from siri_kernels import linear_grpo_loss, reference
from siri_kernels.chunked import Needs
from siri_kernels.loss.spec import LossSettings
from siri_kernels.ops import grpo as ops_grpo
from siri_kernels.ops.grpo import linear_grpo, linear_grpo_weight
from siri_kernels.ops.settings import GrpoSettings, HeadSettings, Placement, WeightSettings
from siri_kernels.rows.scaling import scale_rows, scaled

from tests.support.kernel_cases import make_case, relative, run

BF16 = torch.bfloat16


def problem(seed):
    case = make_case(seed, lengths=(5, 0, 19, 1, 15), d=72, vocab=333, dtype=BF16)
    case.bias = case.bias.float()
    return case


# without a clip at a temperature: old_logp is that of 1, and all rows but a single row would be clipped
UNCLIPPED = {"clip_low": None, "clip_high": None, "temperature": 0.7}


@pytest.mark.parametrize("options", [{}, {"entropy_coef": 0.05}, {"softcap": 2.5}, UNCLIPPED], ids=str)
@pytest.mark.parametrize("kept", ["all", "some"])
def test_a_single_chunk_forms_the_weights_gradient_in_the_backward(monkeypatch, rows_alike, options, kept):
    """In the weight's dtype, of E as it was left; several chunks add up in fp32. The same numbers, under any upstream
    gradient."""
    case = problem(179)
    n = len(case.target_ids)
    rows = torch.arange(n) if kept == "all" else torch.arange(n)[torch.randperm(n)[: n - 7]]
    late, weight_gradient = [], ops_grpo.late_weight_gradient
    monkeypatch.setattr(
        ops_grpo, "late_weight_gradient", lambda *args, **named: late.append(1) or weight_gradient(*args, **named)
    )
    outcomes = [
        run(linear_grpo_loss, case, impl="anchored", upstream=-3.0, keep=rows, memory=memory, **options)
        for memory in ("fast", 12_000)
    ]
    assert late == [1]
    (single, gradients), (several, others) = outcomes
    assert torch.equal(single.logp, several.logp) and gradients[1].dtype == BF16
    _, expected_gradients = run(reference.linear_grpo_loss, case, upcast=True, upstream=-3.0, keep=rows, **options)
    for x, y, exact in zip(gradients, others, expected_gradients, strict=True):
        assert relative(x, exact) <= 4e-3 and relative(y, exact) <= 4e-3 and float(exact.norm()) > 0


def test_a_main_grad_takes_the_weights_gradient_of_a_single_chunk():
    case = problem(180)
    rows = torch.arange(len(case.target_ids))
    _, (_, expected, _) = run(linear_grpo_loss, case, impl="anchored", keep=rows, upstream=2.0)
    main_grad = torch.ones(case.weight.shape)
    _, (_, nothing, _) = run(linear_grpo_loss, case, impl="anchored", keep=rows, upstream=2.0, main_grad=main_grad)
    assert nothing is None and relative(main_grad - 1, expected.double()) < 4e-3


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_rows_are_scaled_and_put_in_their_places(dtype):
    """In one pass; when asked a factor of 0 is 0 whatever the row holds; other rows stay as they were."""
    x = torch.randn(70, 33).to(dtype)
    x[3] = torch.nan
    factor = torch.randn(70)
    factor[3] = 0
    expected = torch.where(factor[:, None] == 0, 0.0, x.float() * factor[:, None])
    out = scale_rows(x, factor, torch.empty(70, 33, dtype=BF16), clear=True)
    assert torch.equal(out, expected.to(BF16))
    rows = torch.randperm(100)[:70]
    out = scale_rows(x, factor, torch.full((100, 33), 7.0), rows, upstream=torch.tensor(2.0).double(), clear=True)
    torch.testing.assert_close(out[rows], 2 * expected)
    assert int((out == 7).all(1).sum()) == 30
    out = scale_rows(x, factor, torch.full((100, 33), 7.0), slice(5, 75))
    assert out[8].isnan().all()
    out[8] = 0
    torch.testing.assert_close(out[5:75], expected)
    assert (out[:5] == 7).all() and (out[75:] == 7).all()


def test_a_gradient_is_scaled_and_narrowed():
    x = torch.randn(257, 300)
    assert torch.equal(scaled(x, torch.tensor(-0.3), BF16), (x * torch.tensor(-0.3)).to(BF16))
    assert scaled(x[:0], torch.tensor(1.0), BF16).shape == (0, 300)


@pytest.mark.parametrize("kept", ["all", "some"])
def test_opcheck(kept):
    """The operators of a single chunk, with their fake outputs."""
    case = make_case(181, lengths=(9,), d=16, vocab=70, dtype=BF16)
    weight, hidden = case.weight.requires_grad_(), case.hidden.requires_grad_()
    keep = None if kept == "all" else torch.tensor([4, 1, 7, 2])
    matrices = {"hidden": hidden, "weight": weight, "bias": None, "target_ids": case.target_ids, "keep": keep}
    tokens = {"advantages": torch.randn(9), "old_logp": case.old_logp, "rollout_logp": case.rollout_logp}
    nothing = dict.fromkeys(
        ("mask", "cu_seqlens", "temperature_N", "denominator", "main_grad", "keep_lengths", "offset")
    )
    needs, placement = Needs(hidden=True, weight=True, bias=False), Placement("anchored", 1 << 20, columns=70)
    settings = GrpoSettings(HeadSettings(), LossSettings(), placement, needs, late_weight=True)
    arguments, options = linear_grpo.flat({**matrices, **tokens, **nothing, "settings": settings})
    # aot_dispatch compares numbers of what is uninitialised: the columns between a row of E and the next
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    results = torch.library.opcheck(linear_grpo.library_operator, arguments, options, test_utils=utilities)
    assert set(results.values()) == {"SUCCESS"}
    left = {"e": torch.randn(9 if keep is None else 4, 128).to(BF16), "factor": torch.randn(9 if keep is None else 4)}
    rest = {"hidden": hidden.detach(), "upstream": torch.tensor(2.0), "keep": keep, "settings": WeightSettings(70, 4)}
    arguments, options = linear_grpo_weight.flat({**left, **rest})
    results = torch.library.opcheck(linear_grpo_weight.library_operator, arguments, options)
    assert set(results.values()) == {"SUCCESS"}
    d_weight = linear_grpo_weight(**left, **rest).d_weight
    x = hidden.detach().double()[slice(None) if keep is None else keep][:, 4:]
    exact = 2 * left["e"].double()[:, :70].T @ (left["factor"].double()[:, None] * x)
    assert relative(d_weight, exact) < 4e-3


def test_a_compiled_step_of_a_single_chunk():
    case, rows = problem(182), torch.arange(40)
    options = {"impl": "anchored", "keep": rows, "bias": case.bias, "cu_seqlens": case.cu_seqlens}

    def step(x, w):
        return linear_grpo_loss(x, w, case.target_ids, case.advantages, **options).loss * 3

    gradients = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        x, w = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_()
        function(x, w).backward()
        gradients.append((x.grad, w.grad))
    assert all(torch.equal(a, b) and float(a.norm()) > 0 for a, b in zip(*gradients, strict=True))
