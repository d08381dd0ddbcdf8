"""The Triton implementation against the fp64 reference and the torch path, on CPU tensors."""

import math

import pytest
import torch
from siri_kernels import linear_grpo_loss, linear_logprob, logprob_from_logits, reference
from siri_kernels.rows.kernels import dlogits, narrow_view, row_stats

from tests.support import kernel_cases
from tests.support.kernel_cases import GRADIENT, KERNEL_OPTIONS, assert_same, make_case, relative, run

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HALF = 4e-3  # dlogits, dX in bf16
ONLY_FAST = ("memory", "impl")


def small_case(seed, lengths=(5, 0, 9, 1, 6), **options):
    """A row costs 10 ms in the interpreter."""
    return make_case(seed, lengths=lengths, d=16, **options)


def reference_loss(*args, **options):
    return reference.linear_grpo_loss(*args, **{k: v for k, v in options.items() if k not in ONLY_FAST})


@pytest.fixture(autouse=True)
def half_precision_gradients(monkeypatch):
    monkeypatch.setattr(kernel_cases, "GRADIENT", {**GRADIENT, torch.bfloat16: HALF, torch.float16: HALF})


IN_EVERY_DTYPE = ("grpo", "entropy-softcap", "small-chunks", "lean")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name in KERNEL_OPTIONS for dtype in (DTYPES if name in IN_EVERY_DTYPE else DTYPES[:1])],
    ids=str,
)
def test_matches_the_reference(name, dtype):
    case = small_case(list(KERNEL_OPTIONS).index(name) + 50, dtype=dtype)
    options = KERNEL_OPTIONS[name]
    result, gradients = run(linear_grpo_loss, case, impl="fallback", upstream=3.0, **options)
    expected, expected_gradients = run(reference_loss, case, upcast=True, upstream=3.0, **options)
    assert_same(result, gradients, expected, expected_gradients, dtype)


CLIPS = ("clip_low_fraction", "clip_high_fraction")
BRANCHES = {
    "clip": ({}, CLIPS),
    "dual": ({"dual_clip": 1.3}, (*CLIPS, "dual_clip_fraction")),
    "tis": ({"importance": "tis", "importance_cap": 1.2}, ("importance_clipped_fraction",)),
    "icepop": (
        {"importance": "icepop", "importance_low": 0.7, "importance_cap": 2.0},
        ("importance_clipped_fraction",),
    ),
    "cispo": ({"loss": "cispo", "clip_low": 0.2}, CLIPS),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_every_branch_of_the_loss_is_taken(name):
    """By some tokens and not by others; a comparison in which a clip never acts compares nothing."""
    options, fractions = BRANCHES[name]
    case = make_case(300, lengths=(48,), d=8, vocab=11, spread=0.5, per_token=True)
    result, gradients = run(linear_grpo_loss, case, impl="fallback", **options)
    expected, expected_gradients = run(reference_loss, case, upcast=True, **options)
    assert all(0 < float(expected.metrics[fraction]) < 1 for fraction in fractions), expected.metrics
    assert_same(result, gradients, expected, expected_gradients, torch.float32)


def test_the_torch_path_and_the_triton_path_agree():
    case = small_case(70)
    for options in ({}, {"entropy_coef": 0.1, "importance": "icepop"}, {"loss": "cispo"}):
        mine, my_gradients = run(linear_grpo_loss, case, impl="triton", **options)
        torch_result, torch_gradients = run(linear_grpo_loss, case, impl="torch", **options)
        assert_same(mine, my_gradients, torch_result, torch_gradients, torch.float32)


@pytest.mark.parametrize("lengths", [(), (0,), (1,), (3, 0, 14)], ids=str)
def test_ragged_lengths(lengths):
    case = small_case(71, lengths=lengths, per_token=True)
    result, gradients = run(linear_grpo_loss, case, impl="fallback")
    expected, expected_gradients = run(reference_loss, case, upcast=True)
    assert_same(result, gradients, expected, expected_gradients, torch.float32)


def test_more_blocks_of_tokens_than_one(monkeypatch):
    monkeypatch.setattr("siri_kernels.loss.triton.BLOCK", 16)
    case = make_case(72, lengths=(30, 15), d=4, vocab=9)
    tensors = {k: v for k, v in case.loss_tensors().items() if k != "bias"}
    result, gradients = run(linear_grpo_loss, case, tensors=tensors, impl="fallback")
    expected, expected_gradients = run(reference_loss, case, tensors=tensors, upcast=True)
    assert_same(result, gradients, expected, expected_gradients, torch.float32)


def test_keep_and_forward_all():
    case = small_case(73)
    keep = torch.arange(case.hidden.shape[0])[case.mask][::2].flip(0)
    for forward_all in (True, False):
        for options in ({}, {"memory": 16 * 61 * 4}, {"memory": "lean"}):
            result, gradients = run(
                linear_grpo_loss, case, keep=keep, forward_all=forward_all, impl="fallback", **options
            )
            expected, expected_gradients = run(reference_loss, case, upcast=True, keep=keep, forward_all=forward_all)
            assert_same(result, gradients, expected, expected_gradients, torch.float32)


def test_per_token_temperature_and_an_own_loss():
    case = small_case(74)
    temperature = torch.linspace(0.5, 2.0, case.hidden.shape[0])
    leaves = [x.clone().requires_grad_() for x in (case.hidden, case.weight, case.bias)]
    exact = [x.double().requires_grad_() for x in (case.hidden, case.weight, case.bias)]
    logp, entropy = linear_logprob(
        *leaves[:2], case.target_ids, bias=leaves[2], temperature=temperature, return_entropy=True, impl="triton"
    )
    z = reference.logits(*exact[:2], bias=exact[2], temperature=temperature.double())
    exact_logp, exact_entropy = reference.logprob_and_entropy(z, case.target_ids)
    (logp.exp() * entropy).sum().backward()
    (exact_logp.exp() * exact_entropy).sum().backward()
    torch.testing.assert_close(logp.double(), exact_logp, rtol=1e-5, atol=1e-5)
    assert all(relative(x.grad, y.grad) < 1e-5 for x, y in zip(leaves, exact, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", [1, 2, 31, 4097, 151_936])
def test_rows_of_logits(vocab, dtype):
    g = torch.Generator().manual_seed(vocab)
    logits = (torch.randn(3, vocab, generator=g) * 3).to(dtype)
    target_ids = torch.randint(vocab, (3,), generator=g)
    mine, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    logp, entropy = logprob_from_logits(mine, target_ids, temperature=0.8, return_entropy=True, impl="triton")
    exact_logp, exact_entropy = reference.logprob_and_entropy(exact / 0.8, target_ids)
    torch.testing.assert_close(logp.double(), exact_logp, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.double(), exact_entropy, rtol=2e-5, atol=2e-5)
    (logp.sum() + 0.3 * entropy.sum()).backward()
    (exact_logp.sum() + 0.3 * exact_entropy.sum()).backward()
    assert mine.grad.dtype == dtype and relative(mine.grad, exact.grad) <= GRADIENT[dtype]


def test_more_vocabulary_than_one_block(monkeypatch):
    monkeypatch.setattr("siri_kernels.rows.kernels.block_size", lambda vocab, largest: 32)
    logits = torch.randn(5, 150) * torch.tensor([[1.0], [30.0], [1e4], [-1e4], [0.0]])
    logits[1] = logits[1].sort().values  # the maximum moves in every block
    target_ids = torch.tensor([149, 0, 70, 31, 32])
    mine, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    logp, entropy = logprob_from_logits(mine, target_ids, return_entropy=True, impl="triton")
    exact_logp, exact_entropy = reference.logprob_and_entropy(exact, target_ids)
    torch.testing.assert_close(logp.double(), exact_logp, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(entropy.double(), exact_entropy, rtol=1e-5, atol=1e-5)
    (logp + entropy).sum().backward()
    (exact_logp + exact_entropy).sum().backward()
    assert relative(mine.grad, exact.grad) < 1e-5


def test_only_the_rows_are_written():
    """Poisoned surroundings: padding columns and neighbouring rows stay as they were."""
    rows, vocab = 4, 50
    backing = torch.full((rows + 2, 64), 7.0)
    z = backing[1:-1, :vocab]
    z.copy_(torch.randn(rows, vocab))
    exact = z.double().requires_grad_()
    target_ids = torch.tensor([0, 49, 25, 7])
    stats = row_stats(z, target_ids, 1.0, None)
    logp, entropy = reference.logprob_and_entropy(exact, target_ids)
    g = torch.tensor([1.0, -2.0, 0.0, 1e-3])
    (g * logp).sum().backward()
    log_sum = torch.logsumexp(z - stats[0][:, None], 1)
    out = narrow_view(backing, torch.bfloat16)[1:-1, :vocab]
    dlogits(
        z, out, target_ids, 1.0, None, 0, stats[0], log_sum, logp.float().detach(), entropy.float().detach(), g, None
    )
    assert relative(out, exact.grad) < HALF
    assert float(out[2].abs().sum()) == 0
    assert (backing[0] == 7).all() and (backing[-1] == 7).all() and (backing[1:-1, vocab:] == 7).all()


@pytest.mark.parametrize("gap", [0.0, 17.0, 40.0, 80.0, -69.0])
def test_certainty_keeps_its_last_bit(gap):
    hidden, weight = torch.ones(1, 1), torch.tensor([[gap], [0.0], [0.0]])
    w = weight.clone().requires_grad_()
    result = linear_grpo_loss(hidden, w, torch.tensor([0]), torch.ones(1), impl="fallback")
    result.loss.backward()
    others = 2 * math.exp(-gap)
    assert float(result.logp) == pytest.approx(-math.log1p(others), rel=3e-6, abs=0)
    assert float(w.grad[0]) == pytest.approx(-others / (1 + others), rel=3e-6, abs=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_nan_is_seen_or_harmless(bad):
    case = small_case(75)
    row = int(case.mask.nonzero()[0])
    case.hidden[row, 0] = bad
    tensors = {"mask": case.mask, "cu_seqlens": case.cu_seqlens}
    result, gradients = run(linear_grpo_loss, case, tensors=tensors, impl="fallback")
    assert result.loss.isnan() and result.logp[row].isnan() and gradients[1].isnan().any()
    assert float(result.metrics["nonfinite_tokens"]) == 1 and result.metrics["ratio_max"].isnan()
    case.mask[row] = False
    result, gradients = run(linear_grpo_loss, case, tensors=tensors, impl="fallback")
    assert result.loss.isfinite() and all(x.isfinite().all() for x in gradients)


def test_a_distant_old_policy_is_clamped():
    case = small_case(78, spread=40.0)
    options = {"clip_low": None, "clip_high": None, "importance": "tis"}
    result, gradients = run(linear_grpo_loss, case, impl="fallback", **options)
    expected, expected_gradients = run(reference_loss, case, upcast=True, **options)
    assert float(result.metrics["ratio_max"]) == pytest.approx(math.exp(20), rel=1e-5)
    for name, value in expected.metrics.items():
        assert float(result.metrics[name]) == pytest.approx(float(value), rel=1e-4), name
    assert all(relative(x, y) < 1e-4 for x, y in zip(gradients, expected_gradients, strict=True))


def test_a_large_common_offset_costs_no_precision():
    g = torch.Generator().manual_seed(0)
    logits = 1e4 + torch.randint(-6, 7, (6, 40), generator=g)
    target_ids = torch.randint(40, (6,), generator=g)
    mine, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    logp, entropy = logprob_from_logits(mine, target_ids, return_entropy=True, impl="triton")
    exact_logp, exact_entropy = reference.logprob_and_entropy(exact, target_ids)
    (logp + entropy).sum().backward()
    (exact_logp + exact_entropy).sum().backward()
    torch.testing.assert_close(logp.double(), exact_logp, rtol=1e-5, atol=1e-5)
    assert relative(mine.grad, exact.grad) < 1e-5


def test_banned_tokens():
    case = small_case(76)
    case.target_ids = case.target_ids.clamp(max=39)
    case.bias[40:] = -torch.inf
    result, gradients = run(linear_grpo_loss, case, impl="fallback", entropy_coef=0.1)
    case.weight, case.bias = case.weight[:40], case.bias[:40]
    expected, expected_gradients = run(reference_loss, case, upcast=True, entropy_coef=0.1)
    torch.testing.assert_close(result.entropy.double(), expected.entropy, rtol=1e-5, atol=1e-5)
    assert relative(gradients[0], expected_gradients[0]) < 1e-5 and float(gradients[1][40:].abs().sum()) == 0


def test_bf16_logits_are_the_rollouts():
    case = small_case(77, dtype=torch.bfloat16)
    result = linear_grpo_loss(
        case.hidden,
        case.weight,
        case.target_ids,
        case.advantages,
        cu_seqlens=case.cu_seqlens,
        logit_dtype="bf16",
        impl="fallback",
    )
    rounded = (case.hidden.float() @ case.weight.float().T).to(torch.bfloat16).float()
    expected = rounded.log_softmax(-1).gather(-1, case.target_ids[:, None]).squeeze(-1)
    torch.testing.assert_close(result.logp, expected, rtol=1e-5, atol=1e-5)


def test_offsets_past_32_bits():
    """Rows 2^30 elements apart: the third starts past 2^31, where a 32-bit offset would read and write elsewhere. The
    pages in between are never touched."""
    vocab, stride = 61, 2**30 + 64
    z = torch.empty(2 * stride + vocab, dtype=torch.bfloat16).as_strided((3, vocab), (stride, 1))
    z.copy_(torch.randn(3, vocab))
    exact = z.double().requires_grad_()
    target_ids = torch.tensor([0, 60, 7])
    logp, entropy = reference.logprob_and_entropy(exact, target_ids)
    stats = row_stats(z, target_ids, 1.0, None)
    torch.testing.assert_close(stats[0].double(), exact.detach().amax(1))
    torch.testing.assert_close(stats[3].double(), exact.detach().gather(1, target_ids[:, None]).squeeze(1))
    log_sum = torch.logsumexp(exact.detach() - stats[0][:, None], 1)
    g = torch.tensor([1.0, -2.0, 3.0])
    (g * logp).sum().backward()
    saved = [x.detach().float() for x in (stats[0], log_sum, logp, entropy)]
    dlogits(z, z, target_ids, 1.0, None, 0, *saved, g, None)
    assert all(relative(x, y) < HALF for x, y in zip(z, exact.grad, strict=True))
