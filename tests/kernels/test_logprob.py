"""linear_logprob, logprob_from_logits and grpo_loss: differentiable pieces for losses of one's own."""

import math

import pytest
import torch
from siri_kernels import grpo_loss, linear_grpo_loss, linear_logprob, logprob_from_logits, reference

from tests.support.kernel_cases import GRADIENT, VALUE, make_case, relative

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def own_loss(logp, entropy):
    """Any differentiable function of both."""
    weight = torch.linspace(-1, 2, logp.numel(), dtype=logp.dtype)
    return (weight * logp).sum() + (logp.exp() * entropy).sum() + 0.3 * entropy.square().sum()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.7}, {"softcap": 3.0, "temperature": 1.5}], ids=["plain", "temperature", "softcap"]
)
def test_linear_logprob(dtype, options):
    case = make_case(1, dtype=dtype)

    def outcome(leaves, function):
        leaves = [x.clone().requires_grad_() for x in leaves]
        logp, entropy = function(*leaves)
        own_loss(logp, entropy).backward()
        return logp.detach(), entropy.detach(), [x.grad for x in leaves]

    leaves = (case.hidden, case.weight, case.bias)
    logp, entropy, gradients = outcome(
        leaves,
        lambda h, w, b: linear_logprob(
            h, w, case.target_ids, bias=b, anchor=case.rollout_logp, return_entropy=True, **options
        ),
    )
    exact_logp, exact_entropy, exact_gradients = outcome(
        [x.double() for x in leaves],
        lambda h, w, b: reference.logprob_and_entropy(reference.logits(h, w, bias=b, **options), case.target_ids),
    )
    assert logp.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(logp.double(), exact_logp, rtol=VALUE[dtype], atol=VALUE[dtype])
    torch.testing.assert_close(entropy.double(), exact_entropy, rtol=VALUE[dtype], atol=VALUE[dtype])
    assert all(relative(x, y) <= GRADIENT[dtype] for x, y in zip(gradients, exact_gradients, strict=True))


def test_linear_logprob_gradcheck():
    case = make_case(2, lengths=(3, 2), d=3, vocab=5, dtype=torch.float64)
    temperature = torch.rand(5, dtype=torch.float64) + 0.5
    inputs = [x.clone().requires_grad_() for x in (case.hidden, case.weight, case.bias)]
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_logprob(h, w, case.target_ids, bias=b, temperature=temperature, return_entropy=True),
        inputs,
    )


def test_only_the_entropy_or_nothing_at_all():
    case = make_case(3, dtype=torch.float64)
    weight = case.weight.clone().requires_grad_()
    linear_logprob(case.hidden, weight, case.target_ids, return_entropy=True)[1].sum().backward()
    expected = case.weight.clone().requires_grad_()
    reference.logprob_and_entropy(reference.logits(case.hidden, expected), case.target_ids)[1].sum().backward()
    assert relative(weight.grad, expected.grad) < 1e-11
    empty = linear_logprob(case.hidden[:0], weight, case.target_ids[:0])
    assert empty.shape == (0,)
    empty.sum().backward()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7,), (3, 5), (0, 4), (2, 3, 2)], ids=str)
def test_logprob_from_logits(dtype, shape):
    g = torch.Generator().manual_seed(len(shape))
    logits = (torch.randn(*shape, 83, generator=g) * 4).to(dtype)
    target_ids = torch.randint(83, shape, generator=g)
    temperature = torch.rand(shape, generator=g) + 0.5
    for t in (1.0, 0.8, temperature):
        mine = logits.clone().requires_grad_()
        logp, entropy = logprob_from_logits(mine, target_ids, temperature=t, return_entropy=True)
        assert logp.shape == shape
        own_loss(logp.flatten(), entropy.flatten()).backward()
        exact = logits.double().flatten(0, -2).clone().requires_grad_()
        scale = t.double().flatten()[:, None] if isinstance(t, torch.Tensor) else t
        exact_logp, exact_entropy = reference.logprob_and_entropy(exact / scale, target_ids.flatten())
        own_loss(exact_logp, exact_entropy).backward()
        torch.testing.assert_close(logp.flatten().double(), exact_logp, rtol=VALUE[dtype], atol=VALUE[dtype])
        torch.testing.assert_close(entropy.flatten().double(), exact_entropy, rtol=VALUE[dtype], atol=VALUE[dtype])
        assert relative(mine.grad.flatten(0, -2), exact.grad) <= GRADIENT[dtype]
        assert mine.grad.dtype == dtype


def test_logits_that_are_a_view():
    logits = torch.randn(4, 6, 31)[:, :-1]
    target_ids = torch.randint(31, (4, 5))
    expected = logits.log_softmax(-1).gather(-1, target_ids[..., None]).squeeze(-1)
    torch.testing.assert_close(logprob_from_logits(logits, target_ids), expected)


@pytest.mark.parametrize("loss", ["grpo", "gspo", "cispo"])
def test_the_pieces_make_the_whole(loss):
    case = make_case(4, dtype=torch.float64)
    tensors = {k: v for k, v in case.loss_tensors().items() if k not in ("bias", "old_logp")}
    options = {"loss": loss, "entropy_coef": 0.1, "importance": "tis", "aggregation": "seq_mean"}
    results = []
    for fused in (True, False):
        weight = case.weight.clone().requires_grad_()
        args = (case.hidden, weight, case.target_ids)
        if fused:
            result = linear_grpo_loss(*args, case.advantages, old_logp=case.old_logp, **tensors, **options)
        else:
            logp, entropy = linear_logprob(*args, return_entropy=True)
            result = grpo_loss(logp, case.old_logp, case.advantages, entropy=entropy, **tensors, **options)
        result.loss.backward()
        results.append((result, weight.grad))
    (whole, gradient), (pieces, pieces_gradient) = results
    torch.testing.assert_close(whole.loss, pieces.loss)
    assert relative(pieces_gradient, gradient) < 1e-11
    assert all(torch.equal(whole.metrics[k], pieces.metrics[k]) for k in whole.metrics)


def worked(logp, old, advantage, **options):
    """Loss and dL/dlogp of one token."""
    logp = torch.tensor([logp], dtype=torch.float64, requires_grad=True)
    result = grpo_loss(logp, torch.tensor([old], dtype=torch.float64), torch.tensor([advantage]), **options)
    result.loss.backward()
    return result.loss.item(), logp.grad.item(), result.metrics


def test_worked_examples():
    """By hand, so that a mistake shared by the reference and the implementations would show."""
    up, down = math.log(1.5), math.log(0.5)
    assert worked(up, 0.0, 2.0)[:2] == pytest.approx((-1.28 * 2, 0))  # clipped above
    assert worked(up, 0.0, -2.0)[:2] == pytest.approx((1.5 * 2, 1.5 * 2))  # not a bound for A < 0
    assert worked(down, 0.0, 2.0)[:2] == pytest.approx((-0.5 * 2, -0.5 * 2))
    assert worked(down, 0.0, -2.0)[:2] == pytest.approx((0.8 * 2, 0))  # clipped below
    assert worked(down, 0.0, -2.0, clip_low=None)[:2] == pytest.approx((0.5 * 2, 0.5 * 2))
    assert worked(math.log(9), 0.0, -2.0, dual_clip=3.0)[:2] == pytest.approx((3 * 2, 0))
    assert worked(up, 0.0, 2.0, loss="cispo")[:2] == pytest.approx((-1.28 * 2 * up, -1.28 * 2))
    rollout = {"rollout_logp": torch.tensor([-math.log(3)], dtype=torch.float64)}  # w = exp(old - rollout) = 3
    assert worked(down, 0.0, 2.0, importance="tis", **rollout)[:2] == pytest.approx((-2 * 0.5 * 2, -2 * 0.5 * 2))
    assert worked(down, 0.0, 2.0, importance="icepop", importance_cap=2.0, **rollout)[:2] == (0, 0)
    metrics = worked(up, 0.0, 2.0, importance="tis", **rollout)[2]
    expected = {
        "clip_high_fraction": 1,
        "clip_low_fraction": 0,
        "approx_kl": 0.5 - up,
        "ratio_max": 1.5,
        "tokens": 1,
        "nonfinite_tokens": 0,
        "logp_mean": up,
        "mismatch_k1": -math.log(3),
        "mismatch_k3": 2 - math.log(3),
        "mismatch_max": math.log(3),
        "importance_mean": 2,
        "importance_clipped_fraction": 1,
    }
    assert {k: v.item() for k, v in metrics.items()} == pytest.approx(expected)


def test_worked_aggregations():
    """Two sequences of 2 and 3 tokens, one masked; on-policy, so that each term is -A."""
    advantages, cu = torch.tensor([1.0, 2.0]), torch.tensor([0, 2, 5])
    mask = torch.tensor([True, True, True, True, False])

    def value(**options):
        return grpo_loss(torch.zeros(5), None, advantages, cu_seqlens=cu, mask=mask, **options).loss.item()

    assert value() == pytest.approx(-(1 + 1 + 2 + 2) / 4)
    assert value(aggregation="seq_mean") == pytest.approx(-(1 + 2) / 2)
    assert value(aggregation="seq_sum") == pytest.approx(-(2 + 4) / 2)
    assert value(aggregation="seq_mean_fixed", fixed_length=10) == pytest.approx(-(2 + 4) / 20)
    assert value(denominator=8) == pytest.approx(-6 / 8)
    assert value(aggregation="seq_mean", denominator=torch.tensor(4)) == pytest.approx(-3 / 4)


def test_a_sequence_ratio_is_the_geometric_mean():
    logp = torch.tensor([0.3, -0.1, 0.9], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([True, True, False])
    old, advantage = torch.zeros(3, dtype=torch.float64), torch.tensor([2.0])
    options = {"loss": "gspo", "clip_high": 0.28, "aggregation": "token_mean"}
    result = grpo_loss(logp, old, advantage, cu_seqlens=torch.tensor([0, 3]), mask=mask, **options)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(-2 * math.exp(0.1))
    assert logp.grad.tolist() == pytest.approx([-math.exp(0.1), -math.exp(0.1), 0])
