"""Extreme values: where a careless softmax overflows, cancels or hides a NaN."""

import math

import pytest
import torch
from siri_kernels import linear_grpo_loss, linear_logprob, logprob_from_logits, reference

from tests.support.kernel_cases import make_case, relative, run

ONE = torch.ones(1, 1)


def two_way(gap, dtype=torch.float32):
    """One row over three tokens with logits gap, 0, 0 through a hidden size of one."""
    return torch.tensor([[1.0]], dtype=dtype), torch.tensor([[gap], [0.0], [0.0]], dtype=dtype)


@pytest.mark.parametrize("gap", [0.0, 5.0, 17.0, 40.0, 80.0])
def test_certainty_keeps_its_last_bit(gap):
    hidden, weight = two_way(gap)
    logp, entropy = linear_logprob(hidden, weight, torch.tensor([0]), return_entropy=True)
    exact = -math.log1p(2 * math.exp(-gap))
    assert float(logp) == pytest.approx(exact, rel=1e-6, abs=0)
    p_other = math.exp(-gap) / (1 + 2 * math.exp(-gap))
    h = -exact * math.exp(exact) - 2 * p_other * math.log(p_other)
    assert float(entropy) == pytest.approx(h, rel=2e-6)
    for memory in ("fast", "lean"):
        w = weight.clone().requires_grad_()
        linear_grpo_loss(hidden, w, torch.tensor([0]), ONE[0], memory=memory).loss.backward()
        assert float(w.grad[0]) == pytest.approx(-2 * p_other, rel=2e-6, abs=0), "1 - p without cancellation"
        assert float(w.grad[1]) == pytest.approx(p_other, rel=2e-6, abs=0)


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_a_vanishing_probability(memory):
    hidden, weight = two_way(-69.0)
    w = weight.clone().requires_grad_()
    result = linear_grpo_loss(hidden, w, torch.tensor([0]), ONE[0], memory=memory)
    result.loss.backward()
    assert float(result.logp) == pytest.approx(-69 - math.log(2), rel=1e-6)
    torch.testing.assert_close(w.grad[:, 0], torch.tensor([-1.0, 0.5, 0.5]))


@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_logits(size, memory):
    case = make_case(1)
    case.hidden = case.hidden * size
    options = {"cu_seqlens": case.cu_seqlens}
    result, gradients = run(linear_grpo_loss, case, tensors=options, memory=memory, entropy_coef=0.1)
    expected, expected_gradients = run(reference.linear_grpo_loss, case, tensors=options, upcast=True, entropy_coef=0.1)
    torch.testing.assert_close(result.logp.double(), expected.logp, rtol=1e-6, atol=0.05)  # fp32 logits of 1e5
    assert all(x.isfinite().all() for x in gradients)
    assert relative(gradients[0], expected_gradients[0]) < 0.05


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_a_large_common_offset_costs_no_precision(memory):
    """Whole-number logits around 10^4 are exact in fp32; what is added to them must not round at 10^-3."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.cat([torch.full((20, 1), 1e4), torch.randint(-2, 3, (20, 3), generator=g)], 1)
    weight = torch.cat([torch.ones(30, 1), torch.randint(-2, 3, (30, 3), generator=g)], 1)
    target_ids, advantages = torch.randint(30, (20,), generator=g), torch.randn(20, generator=g)
    gradients = []
    for function, dtype in ((linear_grpo_loss, torch.float32), (reference.linear_grpo_loss, torch.float64)):
        x = hidden.to(dtype, copy=True).requires_grad_()
        options = {"memory": memory} if dtype == torch.float32 else {}
        function(x, weight.to(dtype), target_ids, advantages.to(dtype), entropy_coef=0.1, **options).loss.backward()
        gradients.append(x.grad[:, 1:])
    assert relative(*gradients) < 1e-5


def test_huge_advantages_and_zero_ones():
    case = make_case(2, per_token=True)
    case.advantages = case.advantages.sign() * 1e6
    case.advantages[:20] = 0
    result, gradients = run(linear_grpo_loss, case)
    expected, expected_gradients = run(reference.linear_grpo_loss, case, upcast=True)
    assert float(result.loss.detach()) == pytest.approx(float(expected.loss.detach()), rel=1e-5)
    assert all(relative(x, y) < 1e-5 for x, y in zip(gradients, expected_gradients, strict=True))


def test_a_distant_old_policy_is_clamped():
    case = make_case(3, spread=200.0)
    result, gradients = run(linear_grpo_loss, case, clip_low=None, clip_high=None, importance="tis")
    expected, expected_gradients = run(
        reference.linear_grpo_loss, case, upcast=True, clip_low=None, clip_high=None, importance="tis"
    )
    assert float(result.metrics["ratio_max"]) == pytest.approx(math.exp(20), rel=1e-5)
    assert float(result.loss.detach()) == pytest.approx(float(expected.loss.detach()), rel=1e-4)
    assert all(relative(x, y) < 1e-4 for x, y in zip(gradients, expected_gradients, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_a_nan_that_counts_is_seen_and_one_that_does_not_is_harmless(bad, memory):
    case = make_case(4)
    row = int(case.mask.nonzero()[0])
    case.hidden[row, 0] = bad
    options = {"mask": case.mask, "cu_seqlens": case.cu_seqlens}
    result, gradients = run(linear_grpo_loss, case, tensors=options, memory=memory)
    assert result.loss.isnan() and result.logp[row].isnan() and gradients[1].isnan().any()
    assert float(result.metrics["nonfinite_tokens"]) == 1
    case.mask[row] = False
    result, gradients = run(linear_grpo_loss, case, tensors=options, memory=memory)
    assert result.loss.isfinite() and all(x.isfinite().all() for x in gradients)
    assert float(result.metrics["nonfinite_tokens"]) == 0


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_banned_tokens(memory):
    """A bias of -inf removes a token; the rest behaves as if it had never been there."""
    case = make_case(5, dtype=torch.float64)
    case.target_ids = case.target_ids.clamp(max=39)
    case.bias[40:] = -torch.inf
    result, gradients = run(linear_grpo_loss, case, memory=memory, entropy_coef=0.1)
    case.weight, case.bias = case.weight[:40], case.bias[:40]
    expected, expected_gradients = run(reference.linear_grpo_loss, case, entropy_coef=0.1)
    torch.testing.assert_close(result.logp, expected.logp)
    torch.testing.assert_close(result.entropy, expected.entropy)
    assert relative(gradients[0], expected_gradients[0]) < 1e-11
    assert relative(gradients[1][:40], expected_gradients[1]) < 1e-11 and float(gradients[1][40:].abs().sum()) == 0


def test_logits_with_banned_tokens_and_a_banned_target():
    logits = torch.tensor([[0.0, 1.0, -torch.inf], [0.0, 1.0, -torch.inf]], requires_grad=True)
    logp, entropy = logprob_from_logits(logits, torch.tensor([0, 2]), return_entropy=True)
    assert logp[0].item() == pytest.approx(-math.log1p(math.e)) and logp[1].item() == -math.inf
    assert entropy.isfinite().all()
    (logp[0] + entropy.sum()).backward()
    assert logits.grad.isfinite().all() and float(logits.grad[0, 2]) == 0


def test_one_vocabulary_entry_and_repeated_ids():
    case = make_case(6, vocab=1)
    result, gradients = run(linear_grpo_loss, case, entropy_coef=1.0)
    assert float(result.logp.abs().max()) == 0 and float(result.entropy.abs().max()) == 0
    assert all(float(x.abs().sum()) == 0 for x in gradients)
    case = make_case(7)
    case.target_ids[:] = 5
    _, gradients = run(linear_grpo_loss, case)
    _, expected = run(reference.linear_grpo_loss, case, upcast=True)
    assert all(relative(x, y) < 1e-5 for x, y in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("vocab", [31, 123, 124, 160, 1003])
def test_a_vocabulary_of_any_size_in_bf16_without_a_bias(vocab, memory):
    """Logits so far apart that what lies beside a row of the gradient, read as bf16, is NaN somewhere."""
    g = torch.Generator().manual_seed(vocab)
    hidden, weight = torch.randn(141, 31, generator=g).bfloat16(), torch.randn(vocab, 31, generator=g).bfloat16()
    target_ids, advantages = torch.randint(vocab, (141,), generator=g), torch.randn(141, generator=g)
    gradients = []
    for function, dtype, wide, options in (
        (linear_grpo_loss, torch.bfloat16, torch.float32, {"memory": memory}),
        (reference.linear_grpo_loss, torch.float64, torch.float64, {}),
    ):
        x, w = (tensor.to(dtype, copy=True).requires_grad_() for tensor in (hidden, weight))
        function(x, w, target_ids, advantages.to(wide), **options).loss.backward()
        gradients.append((x.grad, w.grad))
    for gradient, exact in zip(*gradients, strict=True):
        assert relative(gradient, exact) < 1e-2
