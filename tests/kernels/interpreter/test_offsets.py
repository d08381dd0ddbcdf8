"""What a pass hands to the next one over the same tokens, the offsets from which it measured, and what tensor cores
that cut their sums off do to log-probs: by a model of them, in the interpreter."""

import math

import numpy as np
import pytest
import torch
from siri_kernels import linear_grpo_loss, linear_logprob
from siri_kernels.rows.anchored import gemm, tiles
from siri_kernels.rows.anchored import rows as rows_anchored
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from tests.kernels.interpreter.test_anchored import exact_logp, far_case
from tests.support.kernel_cases import exact_problem, make_case, relative, run

BF16 = torch.bfloat16
STEP = 16
"""depth of one instruction: its products and the sum so far are cut off towards 0 two bits below the last of the
largest of them, and what they come to is cut off to fp32 (bench/truncation.py has what GPUs showed of that)"""
D, V, N = 1536, 256, 24
OFFSET = 30.0


def last_bit(x: np.ndarray) -> np.ndarray:
    """what the last bit of fp32 is worth"""
    return np.exp2(np.frexp(x)[1] - 24.0)


def add_step(total: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """total [n, m] and the products of left [n, k] and right [k, m], in fp64"""
    products = left[:, :, None] * right[None]
    unit = last_bit(np.maximum(np.abs(products).max(1), np.abs(total))) / 4
    total = (np.trunc(products / unit[:, None]).sum(1) + np.trunc(total / unit)) * unit
    return np.trunc(total / last_bit(total)) * last_bit(total)


def truncating_dot(builder, a, b, d, input_precision, max_num_imprecise_acc):
    acc = d.data.astype(np.float64)
    for start in range(0, a.data.shape[-1], STEP):
        part = slice(start, start + STEP)
        acc = add_step(acc, a.data[:, part].astype(np.float64), b.data[part].astype(np.float64))
    return TensorHandle(acc.astype(np.float32), d.dtype.scalar)


@pytest.fixture
def truncating(monkeypatch):
    monkeypatch.setattr(InterpreterBuilder, "create_dot", truncating_dot)


def hard_problem(kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `bench/kernel_problems.py` has them: all logits shifted alike, or another token with nearly everything."""
    g = torch.Generator().manual_seed(3)
    weight = torch.randn(V, D, generator=g) * D**-0.5
    hidden = torch.randn(N, D, generator=g)
    target_ids = torch.randint(V, (N,), generator=g)
    if kind == "offset":
        direction = torch.randn(D, generator=g)
        direction /= direction.norm()
        weight += direction
        hidden += (OFFSET - hidden @ direction)[:, None] * direction
    else:
        hidden += OFFSET * weight[(target_ids + 1) % V]
    return hidden.to(BF16), weight.to(BF16), target_ids


def model_logits(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[N, V] fp64: what the truncating model makes of the product."""
    acc = np.zeros((len(hidden), len(weight)))
    x, w = hidden.double().numpy(), weight.double().numpy()
    for start in range(0, x.shape[1], STEP):
        acc = add_step(acc, x[:, start : start + STEP], w[:, start : start + STEP].T)
    return torch.from_numpy(acc)


@pytest.mark.parametrize("given", [False, True], ids=["anchor", "offset"])
def test_a_common_offset_does_not_show_through_the_cut(truncating, given):
    """An exact dot product for the target alone is off by what the H100 showed (5.6e-5); a column of the same product
    is not, whichever number the row is measured from."""
    hidden, weight, target_ids = hard_problem("offset")
    exact, _ = exact_logp(hidden, weight, target_ids)
    z = model_logits(hidden, weight)
    exact_target = (hidden.double() * weight.double()[target_ids]).sum(1)
    assert 3e-5 < float((exact_target - z.logsumexp(1) - exact).abs().max()) < 2e-4
    anchor = {"anchor": exact.float() + 0.1}
    logp, offset = linear_logprob(hidden, weight, target_ids, **anchor, return_offset=True, impl="anchored")
    if given:
        nudged = offset + torch.linspace(-2, 2, N)  # of weights a step away
        logp = linear_logprob(hidden, weight, target_ids, offset=nudged, impl="anchored")
    assert float((logp - exact).abs().max()) < 1.5e-5


@pytest.mark.parametrize("given", [False, True], ids=["anchor", "offset"])
def test_a_dominating_token_is_cut_off_whatever_the_anchor(truncating, given):
    """Its own logit, nearly the whole log-sum-exp, has lost some units of its last digit, 2 ** -19 each, and no other
    logit of the row has lost as much: no anchor undoes that, as no exact target does."""
    hidden, weight, target_ids = hard_problem("dominated")
    exact, _ = exact_logp(hidden, weight, target_ids)
    z = model_logits(hidden, weight)
    exact_target = (hidden.double() * weight.double()[target_ids]).sum(1)
    inherent = float((exact_target - z.logsumexp(1) - exact).abs().max())
    assert 3e-5 < inherent < 2e-4
    logp, offset = linear_logprob(hidden, weight, target_ids, anchor=exact.float(), return_offset=True, impl="anchored")
    if given:
        logp = linear_logprob(hidden, weight, target_ids, offset=offset, impl="anchored")
    assert 0.7 * inherent < float((logp - exact).abs().max()) < 1.3 * inherent
    assert float(((logp - exact) / exact).abs().max()) < 5e-6, "of a log-prob of -30"


def test_a_factor_gives_back_what_was_cut_off(truncating, monkeypatch):
    """In the mean: what is left is a part of what an exact target leaves. The same factor counts in every pass."""
    hidden, weight, target_ids = hard_problem("dominated")
    exact, _ = exact_logp(hidden, weight, target_ids)
    exact_target = (hidden.double() * weight.double()[target_ids]).sum(1)
    inherent = float((exact_target - model_logits(hidden, weight).logsumexp(1) - exact).abs().max())
    monkeypatch.setattr(gemm, "compensation", lambda device, d_model: 1 + tiles.CUT_OFF[90] * d_model)
    options = {"impl": "anchored", "anchor": exact.float()}
    logp, offset = linear_logprob(hidden, weight, target_ids, return_offset=True, **options)
    assert float((logp - exact).abs().max()) < 0.4 * inherent
    again = linear_grpo_loss(hidden, weight, target_ids, torch.ones(N), old_logp=logp, offset=offset, impl="anchored")
    assert torch.equal(again.logp, logp) and float(again.metrics["ratio_max"]) == 1


@pytest.mark.parametrize("options", [{"softcap": 40.0}, {"logit_dtype": "bf16"}, {"bias": torch.ones(V)}], ids=str)
def test_no_factor_where_a_logit_is_not_the_product(monkeypatch, options):
    monkeypatch.setattr(gemm, "compensation", lambda *_: pytest.fail("what is cut off is another share"))
    hidden, weight, target_ids = hard_problem("dominated")
    linear_grpo_loss(hidden, weight, target_ids, torch.ones(N), impl="anchored", **options)


def test_the_factor_of_a_device(monkeypatch):
    """sm_90 alone has one, and the interpreter's sums need none."""
    device = torch.device("cuda", 0)
    assert tiles.compensation(device, 1536) == 1.0
    monkeypatch.setattr(tiles, "INTERPRETED", False)
    for arch, expected in ((80, 1.0), (90, 1 + 1.61e-6), (100, 1.0)):
        monkeypatch.setattr(tiles, "capability", lambda _, arch=arch: arch)
        assert tiles.compensation(device, 1536) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("memory", ["fast", "lean", 10_000])
def test_the_offsets_of_a_pass_give_its_log_probs_again(monkeypatch, memory):
    """Bit for bit, through any packing and without the kernel that made them."""
    hidden, weight, target_ids = exact_problem(n=50)
    rollout_logp = exact_logp(hidden, weight, target_ids)[0].float() + 0.3 * torch.randn(50)
    options = {"impl": "anchored", "memory": memory}
    old_logp, offset = linear_logprob(hidden, weight, target_ids, anchor=rollout_logp, return_offset=True, **options)
    kept = offset.clone()
    monkeypatch.setattr(rows_anchored, "offsets", lambda *_: pytest.fail("they were given"))
    per_token = {"old_logp": old_logp, "rollout_logp": rollout_logp, "offset": offset}
    for order in (torch.arange(50), torch.randperm(50), torch.arange(13, 40)):
        tensors = {name: x[order] for name, x in per_token.items()}
        leaf = hidden[order].requires_grad_()
        result = linear_grpo_loss(leaf, weight, target_ids[order], torch.randn(len(order)), **tensors, **options)
        assert result.metrics["ratio_max"] == 1 and torch.equal(result.logp, old_logp[order])
        again = linear_logprob(hidden[order], weight, target_ids[order], offset=offset[order], **options)
        assert torch.equal(again, old_logp[order])
    assert torch.equal(offset, kept), "they are the caller's"


def test_offsets_of_other_weights_serve_as_well():
    """A step later the sums are no longer near 1, and nothing else has changed."""
    case = make_case(5, d=40, vocab=150, dtype=BF16)
    case.bias = case.bias.float()
    _, offset = linear_logprob(
        case.hidden, case.weight, case.target_ids, bias=case.bias, anchor=case.rollout_logp, return_offset=True,
        impl="anchored",
    )  # fmt: skip
    case.weight = (case.weight.float() + 0.1 * torch.randn_like(case.weight.float())).to(BF16)
    mine, gradients = run(linear_grpo_loss, case, impl="anchored", offset=offset, entropy_coef=0.1)
    exact, expected = run(linear_grpo_loss, case, upcast=True, impl="torch", entropy_coef=0.1)
    torch.testing.assert_close(mine.logp.double(), exact.logp, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine.entropy.double(), exact.entropy, rtol=1e-5, atol=2e-5)
    assert all(relative(x, y) < 4e-3 for x, y in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("off", [math.nan, math.inf, -math.inf, -1e4, -200.0, -60.0, 60.0, 200.0, 1e4], ids=str)
@pytest.mark.parametrize("kind", ["usual", "far"])
def test_any_offset(kind, off):
    """Rows without one, or with one that has nothing to do with them, are redone, and lose nothing."""
    hidden, weight, target_ids = exact_problem() if kind == "usual" else far_case()
    exact, exact_entropy = exact_logp(hidden, weight, target_ids)
    z = hidden.double() @ weight.double().T
    offset = (z.logsumexp(1) / math.log(2) + off).float()
    leaf, exact_leaf = hidden.clone().requires_grad_(), hidden.double().requires_grad_()
    advantages = torch.linspace(-1, 1, len(hidden))
    result = linear_grpo_loss(leaf, weight, target_ids, advantages, offset=offset, impl="anchored")
    result.loss.backward()
    torch.testing.assert_close(result.logp.double(), exact, rtol=1e-6, atol=2e-5 if abs(off) > 60 else 1e-5)
    torch.testing.assert_close(result.entropy.double(), exact_entropy, rtol=2e-5, atol=1e-4)
    linear_grpo_loss(exact_leaf, weight.double(), target_ids, advantages.double(), impl="torch").loss.backward()
    assert relative(leaf.grad, exact_leaf.grad) < 4e-3
