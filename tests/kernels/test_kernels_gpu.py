"""What only a GPU can show: the compiled kernels, determinism, packing, synchronisation, memory, sizes past 32 bits."""

import pytest
import torch
from kernel_cases import GRADIENT, KERNEL_OPTIONS, VALUE, make_case, relative, run
from siri_kernels import linear_grpo_loss, linear_logprob, logprob_from_logits, reference, selection

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
HALF = 4e-3
REFERENCE = {torch.float32: 1e-4, torch.bfloat16: HALF, torch.float16: HALF}


@pytest.fixture(autouse=True)
def the_fallback(monkeypatch):
    """Is what "auto" means in this file, wherever it runs; test_kernels_anchored_gpu.py has the other."""
    monkeypatch.setattr(selection, "AUTO_ARCHS", ())


def on_gpu(case):
    for name, value in vars(case).items():
        if isinstance(value, torch.Tensor):
            setattr(case, name, value.cuda())
    return case


def check(case, dtype, **options):
    result, gradients = run(linear_grpo_loss, case, **options)
    plain = {k: v for k, v in options.items() if k != "memory"}
    expected, expected_gradients = run(reference.linear_grpo_loss, case, upcast=True, **plain)
    torch.testing.assert_close(result.logp.double(), expected.logp, rtol=0, atol=2e-5, equal_nan=True)
    torch.testing.assert_close(result.entropy.double(), expected.entropy, rtol=0, atol=1e-4, equal_nan=True)
    torch.testing.assert_close(result.loss.double(), expected.loss, rtol=1e-4, atol=1e-5)
    for name, value in expected.metrics.items():
        torch.testing.assert_close(result.metrics[name].double(), value, rtol=1e-4, atol=1e-5, msg=name)
    for x, y in zip(gradients, expected_gradients, strict=True):
        assert relative(x, y) <= REFERENCE[dtype]


@pytest.mark.parametrize("dtype", list(REFERENCE), ids=str)
@pytest.mark.parametrize("name", KERNEL_OPTIONS)
def test_matches_the_reference(name, dtype):
    case = on_gpu(
        make_case(list(KERNEL_OPTIONS).index(name), lengths=(90, 0, 311, 1, 240), d=128, vocab=1031, dtype=dtype)
    )
    check(case, dtype, **{**KERNEL_OPTIONS[name], **({"memory": 1 << 20} if "memory" in KERNEL_OPTIONS[name] else {})})


@pytest.mark.parametrize("vocab", [1, 2, 151_936, 152_064, 128_256, 248_320])
def test_vocabularies(vocab):
    check(on_gpu(make_case(vocab, lengths=(33, 64), d=64, vocab=vocab, dtype=torch.bfloat16)), torch.bfloat16)


def test_more_rows_than_a_grid_dimension():
    case = on_gpu(make_case(1, lengths=(70_001,), d=64, vocab=97, dtype=torch.bfloat16))
    check(case, torch.bfloat16)


def test_offsets_past_32_bits():
    """rows * V > 2^31: the last rows are as right as the first."""
    logits = torch.randn(16_000, 151_936, device="cuda", dtype=torch.bfloat16)
    target_ids = torch.randint(151_936, (16_000,), device="cuda")
    logp, entropy = logprob_from_logits(logits, target_ids, return_entropy=True)
    exact_logp, exact_entropy = reference.logprob_and_entropy(logits[-8:].double(), target_ids[-8:])
    torch.testing.assert_close(logp[-8:].double(), exact_logp, rtol=0, atol=VALUE[torch.bfloat16] * 2)
    torch.testing.assert_close(entropy[-8:].double(), exact_entropy, rtol=0, atol=1e-4)


def large_case(n=6000, d=512, vocab=32_000):
    g = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(n, d, device="cuda", generator=g, dtype=torch.bfloat16).requires_grad_()
    weight = (torch.randn(vocab, d, device="cuda", generator=g) / d**0.5).bfloat16().requires_grad_()
    target_ids = torch.randint(vocab, (n,), device="cuda", generator=g)
    return hidden, weight, target_ids, torch.randn(n, device="cuda", generator=g)


def test_a_rerun_is_identical():
    outcomes = []
    for _ in range(2):
        hidden, weight, target_ids, advantages = large_case()
        result = linear_grpo_loss(hidden, weight, target_ids, advantages, memory=100 << 20)
        result.loss.backward()
        outcomes.append((result.loss.detach(), result.logp, hidden.grad, weight.grad))
    assert all(torch.equal(x, y) for x, y in zip(*outcomes, strict=True))
    assert float(result.metrics["ratio_max"]) == 1.0


def test_a_log_prob_hardly_depends_on_the_packing():
    hidden, weight, target_ids, _ = large_case()
    whole = linear_logprob(hidden.detach(), weight.detach(), target_ids)
    part = linear_logprob(hidden.detach()[1000:1777], weight.detach(), target_ids[1000:1777])
    torch.testing.assert_close(whole[1000:1777], part, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"memory": "lean"}, {"loss": "gspo", "memory": 100 << 20}, {"denominator": 3.0}], ids=str
)
def test_nothing_synchronises(options):
    hidden, weight, target_ids, advantages = large_case()
    options = {**options, "cu_seqlens": torch.tensor([0, 2000, 6000], device="cuda")}
    options["keep"] = torch.arange(0, 6000, 2, device="cuda")
    for attempt in range(2):  # the first call compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if attempt else "default")
        try:
            linear_grpo_loss(hidden, weight, target_ids, advantages, **options).loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("memory", [64 << 20, "lean"])
def test_memory_is_bounded_by_the_chunk(memory):
    hidden, weight, target_ids, advantages = large_case(n=20_000)
    linear_grpo_loss(hidden, weight, target_ids, advantages, memory=memory).loss.backward()
    hidden.grad = weight.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    linear_grpo_loss(hidden, weight, target_ids, advantages, memory=memory).loss.backward()
    extra = torch.cuda.max_memory_allocated() - before
    chunk = (192 << 20) if memory == "lean" else memory
    gradients = 2 * hidden.numel() * (2 + 2 * (memory == "lean")) + weight.numel() * (8 if memory != "lean" else 4)
    assert extra < chunk + gradients + (40 << 20), f"{extra / 2**20:.0f} MiB"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_nan_is_seen_or_harmless(bad):
    """PTX's max drops a NaN where the interpreter's keeps it."""
    case = on_gpu(make_case(4, dtype=torch.bfloat16))
    row = int(case.mask.nonzero()[0])
    case.hidden[row, 0] = bad
    tensors = {"mask": case.mask, "cu_seqlens": case.cu_seqlens}
    result, gradients = run(linear_grpo_loss, case, tensors=tensors)
    assert result.loss.isnan() and result.logp[row].isnan() and gradients[1].isnan().any()
    assert float(result.metrics["nonfinite_tokens"]) == 1 and result.metrics["ratio_max"].isnan()
    case.mask[row] = False
    result, gradients = run(linear_grpo_loss, case, tensors=tensors)
    assert result.loss.isfinite() and all(x.isfinite().all() for x in gradients)


def test_fp32_is_not_tf32():
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        check(on_gpu(make_case(5, lengths=(200, 313), d=512, vocab=3001)), torch.float32)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"


def test_gradients_of_given_logits():
    logits = (torch.randn(300, 5003, device="cuda") * 4).bfloat16().requires_grad_()
    target_ids = torch.randint(5003, (300,), device="cuda")
    logp, entropy = logprob_from_logits(logits, target_ids, temperature=0.7, return_entropy=True)
    (logp.sum() + entropy.sum()).backward()
    exact = logits.detach().double().requires_grad_()
    exact_logp, exact_entropy = reference.logprob_and_entropy(exact / 0.7, target_ids)
    (exact_logp.sum() + exact_entropy.sum()).backward()
    assert relative(logits.grad, exact.grad) <= GRADIENT[torch.bfloat16]
