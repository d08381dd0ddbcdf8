"""What only a GPU can show: the compiled kernels, determinism, packing, synchronisation, memory, sizes past 32 bits."""

import pytest
import torch
from siri_kernels import linear_grpo_loss, linear_logprob, logprob_from_logits, reference, selection

from tests.support.kernel_cases import GRADIENT, KERNEL_OPTIONS, VALUE, WIDE_GSPO, make_case, relative, run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
ALONE = pytest.mark.xdist_group("alone")
"""Gigabytes, or a measurement of memory or of synchronisation: one at a time where tests run in parallel"""
HALF = 4e-3
REFERENCE = {torch.float32: 1e-4, torch.bfloat16: HALF, torch.float16: HALF}


@pytest.fixture(autouse=True)
def the_fallback(monkeypatch):
    """Is what "auto" means in this file, wherever it runs; test_anchored_gpu.py has the other."""
    monkeypatch.setattr(selection, "AUTO_ARCHS", ())


def on_gpu(case):
    for name, value in vars(case).items():
        if isinstance(value, torch.Tensor):
            setattr(case, name, value.cuda())
    return case


def check(case, dtype, **options):
    """The fallback; `test_anchored_gpu.py` does the same for the kernel that auto takes on Hopper."""
    result, gradients = run(linear_grpo_loss, case, impl="fallback", **options)
    plain = {k: v for k, v in options.items() if k != "memory"}
    expected, expected_gradients = run(reference.linear_grpo_loss, case, upcast=True, **plain)
    torch.testing.assert_close(result.logp.double(), expected.logp, rtol=0, atol=2e-5, equal_nan=True)
    torch.testing.assert_close(result.entropy.double(), expected.entropy, rtol=0, atol=1e-4, equal_nan=True)
    torch.testing.assert_close(result.loss.double(), expected.loss, rtol=1e-4, atol=1e-5)
    for name, value in expected.metrics.items():
        torch.testing.assert_close(result.metrics[name].double(), value, rtol=1e-4, atol=1e-5, msg=name)
    (dx, dw, *db), (exact_dx, exact_dw, *exact_db) = gradients, expected_gradients
    assert relative(dx, exact_dx) <= REFERENCE[dtype] and relative(dw, exact_dw) <= REFERENCE[dtype]
    # rows of a short vocabulary cancel in the bias; roundings of dz do not: hidden states are N(0, 1), so that
    # |dW| / sqrt(D) is the root of the sum of squares of dz
    terms = exact_dw.norm() / case.hidden.shape[1] ** 0.5
    assert all((x - y).norm() <= REFERENCE[dtype] * max(y.norm(), terms) for x, y in zip(db, exact_db, strict=True))


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


@ALONE
def test_more_rows_than_a_grid_dimension():
    case = on_gpu(make_case(1, lengths=(70_001,), d=64, vocab=97, dtype=torch.bfloat16))
    check(case, torch.bfloat16)


@ALONE
def test_offsets_past_32_bits():
    """rows * V > 2^31: the last rows are as right as the first."""
    logits = torch.randn(16_000, 151_936, device="cuda", dtype=torch.bfloat16).requires_grad_()
    target_ids = torch.randint(151_936, (16_000,), device="cuda")
    logp, entropy = logprob_from_logits(logits, target_ids, return_entropy=True)
    last = logits.detach()[-8:].double().requires_grad_()
    exact_logp, exact_entropy = reference.logprob_and_entropy(last, target_ids[-8:])
    torch.testing.assert_close(logp[-8:].double(), exact_logp, rtol=0, atol=VALUE[torch.bfloat16] * 2)
    torch.testing.assert_close(entropy[-8:].double(), exact_entropy, rtol=0, atol=1e-4)
    logp[-8:].sum().backward()
    exact_logp.sum().backward()
    assert relative(logits.grad[-8:], last.grad) <= HALF and not logits.grad[:-8].any()


@ALONE
@pytest.mark.parametrize("impl", ["fallback", "auto"])
def test_a_chunk_past_32_bits(impl):
    """One chunk of 14,500 rows and V = 151,936, fp32 logits: 8.8 GB."""
    hidden, weight, target_ids, advantages = large_case(n=14_500, d=64, vocab=151_936)
    result = linear_grpo_loss(hidden, weight, target_ids, advantages, memory=9 << 30, impl=impl, denominator=1)
    result.loss.backward()
    last = slice(14_436, None)
    x, w = hidden.detach()[last].double().requires_grad_(), weight.detach().double()
    logp, _ = reference.logprob_and_entropy(reference.logits(x, w), target_ids[last])
    torch.testing.assert_close(result.logp[last].double(), logp.detach(), rtol=0, atol=2e-5)
    (-advantages[last] * logp).sum().backward()  # on-policy, denominator 1
    assert relative(hidden.grad[last], x.grad) <= HALF


def large_case(n=6000, d=512, vocab=32_000):
    g = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(n, d, device="cuda", generator=g, dtype=torch.bfloat16).requires_grad_()
    weight = (torch.randn(vocab, d, device="cuda", generator=g) / d**0.5).bfloat16().requires_grad_()
    target_ids = torch.randint(vocab, (n,), device="cuda", generator=g)
    return hidden, weight, target_ids, torch.randn(n, device="cuda", generator=g)


@pytest.mark.parametrize("memory", [100 << 20, "lean"])
@pytest.mark.parametrize("impl", ["fallback", "auto"])
def test_a_rerun_is_identical(impl, memory):
    outcomes = []
    for _ in range(2):
        hidden, weight, target_ids, advantages = large_case()
        result = linear_grpo_loss(hidden, weight, target_ids, advantages, memory=memory, impl=impl)
        result.loss.backward()
        outcomes.append((result.loss.detach(), result.logp, hidden.grad, weight.grad))
    assert all(torch.equal(x, y) for x, y in zip(*outcomes, strict=True))
    assert float(result.metrics["ratio_max"]) == 1.0


def test_a_log_prob_hardly_depends_on_the_packing():
    hidden, weight, target_ids, _ = large_case()
    whole = linear_logprob(hidden.detach(), weight.detach(), target_ids, impl="fallback")
    part = linear_logprob(hidden.detach()[1000:1777], weight.detach(), target_ids[1000:1777], impl="fallback")
    torch.testing.assert_close(whole[1000:1777], part, rtol=0, atol=1e-5)


SETTINGS = (
    {},
    {"memory": "lean"},
    {**WIDE_GSPO, "memory": 100 << 20},
    {"denominator": 3.0, "aggregation": "seq_mean", "entropy_coef": 0.01, "softcap": 30.0},
    {"forward_all": False, "temperature": 0.7, "logit_dtype": "bf16"},
)


@ALONE
@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("impl", ["fallback", "auto"])
def test_nothing_synchronises(impl, options):
    hidden, weight, target_ids, advantages = large_case()
    options = {**options, "impl": impl, "cu_seqlens": torch.tensor([0, 2000, 6000], device="cuda")}
    options["keep"] = torch.arange(0, 6000, 2, device="cuda")
    for attempt in range(2):  # the first call compiles, and tries the anchored GEMM against fp64
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if attempt else "default")
        try:
            linear_grpo_loss(hidden, weight, target_ids, advantages, **options).loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@ALONE
@pytest.mark.parametrize("memory", [64 << 20, "lean"])
def test_memory_is_bounded_by_the_chunk(memory):
    hidden, weight, target_ids, advantages = large_case(n=20_000)
    options = {"memory": memory, "impl": "fallback"}
    linear_grpo_loss(hidden, weight, target_ids, advantages, **options).loss.backward()
    hidden.grad = weight.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    linear_grpo_loss(hidden, weight, target_ids, advantages, **options).loss.backward()
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
    result, gradients = run(linear_grpo_loss, case, tensors=tensors, impl="fallback")
    assert result.loss.isnan() and result.logp[row].isnan() and gradients[1].isnan().any()
    assert float(result.metrics["nonfinite_tokens"]) == 1 and result.metrics["ratio_max"].isnan()
    case.mask[row] = False
    result, gradients = run(linear_grpo_loss, case, tensors=tensors)
    assert result.loss.isfinite() and all(x.isfinite().all() for x in gradients)


@pytest.mark.parametrize("how", ["new", "legacy"])
def test_fp32_is_not_tf32(how):
    """Allowed by either of torch's settings, which must not be mixed up: ours is changed inside and put back."""
    matmul = torch.backends.cuda.matmul
    if how == "new":
        matmul.fp32_precision = "tf32"
    else:
        torch.set_float32_matmul_precision("high")
    try:
        check(on_gpu(make_case(5, lengths=(200, 313), d=512, vocab=3001)), torch.float32)
        assert matmul.fp32_precision == "tf32"
        if how == "legacy":
            assert matmul.allow_tf32 and torch.get_float32_matmul_precision() == "high"
    finally:
        if how == "new":
            matmul.fp32_precision = "none"
        else:
            torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("impl", ["fallback", "auto"])
def test_main_grad_takes_the_weight_gradient(impl, memory):
    hidden, weight, target_ids, advantages = large_case(n=3000)
    options = {"memory": memory, "impl": impl}
    (2 * linear_grpo_loss(hidden, weight, target_ids, advantages, **options).loss).backward()
    expected, weight.grad = weight.grad, None
    main_grad = torch.ones(weight.shape, device="cuda")
    options["main_grad"] = main_grad
    (2 * linear_grpo_loss(hidden, weight, target_ids, advantages, **options).loss).backward()
    assert weight.grad is None and relative(main_grad - 1, expected.double()) < HALF


@pytest.mark.parametrize("forward_all", [True, False])
@pytest.mark.parametrize("impl", ["fallback", "auto"])
def test_kept_rows_give_the_update_of_all_rows(impl, forward_all):
    hidden, weight, target_ids, advantages = large_case(n=3000)
    advantages[::3] = 0
    keep = advantages.nonzero().squeeze(1)
    outcomes = []
    for options in ({}, {"keep": keep, "forward_all": forward_all}):
        hidden.grad = weight.grad = None
        options |= {"denominator": 3000, "impl": impl}
        result = linear_grpo_loss(hidden, weight, target_ids, advantages, **options)
        result.loss.backward()
        outcomes.append((result, hidden.grad, weight.grad))
    (whole, dx, dw), (part, part_dx, part_dw) = outcomes
    torch.testing.assert_close(part.logp[keep], whole.logp[keep], rtol=0, atol=1e-5)
    assert part.logp[::3].isnan().all() != forward_all
    assert relative(part_dx, dx.double()) < HALF and relative(part_dw, dw.double()) < HALF


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("impl", ["fallback", "auto"])
def test_tensors_on_another_device_than_the_current_one(impl):
    """device_map="auto" puts the head on the last one; Triton launches on the current one unless told."""
    hidden, weight, target_ids, advantages = large_case(n=300)
    outcomes = []
    for device in ("cuda:0", "cuda:1"):
        x, w = (leaf.detach().to(device).requires_grad_() for leaf in (hidden, weight))
        y = target_ids.to(device)
        result = linear_grpo_loss(x, w, y, advantages.to(device), impl=impl)
        logp = logprob_from_logits(x.detach() @ w.detach().T, y)
        result.loss.backward()
        outcomes.append([t.cpu() for t in (result.loss.detach(), result.logp, logp, x.grad, w.grad)])
    assert torch.cuda.current_device() == 0
    for x, y in zip(*outcomes, strict=True):
        assert relative(x, y.double()) < HALF


def test_all_rows_masked():
    hidden, weight, target_ids, advantages = large_case(n=300)
    result = linear_grpo_loss(
        hidden, weight, target_ids, advantages, mask=torch.zeros(300, dtype=torch.bool, device="cuda")
    )
    result.loss.backward()
    assert float(result.loss.detach()) == 0 and not hidden.grad.any() and not weight.grad.any()


def test_torch_compile_around_the_loss():
    """With the real compiler: one graph, the numbers of eager."""
    hidden, weight, target_ids, advantages = large_case(n=500)

    def step(x, w):
        return linear_grpo_loss(torch.tanh(x), w, target_ids, advantages).loss

    gradients = []
    for function in (step, torch.compile(step, fullgraph=True)):
        hidden.grad = weight.grad = None
        function(hidden, weight).backward()
        gradients.append((hidden.grad, weight.grad))
    assert all(relative(x, y.double()) < HALF for x, y in zip(*gradients, strict=True))


def test_gradients_of_given_logits():
    logits = (torch.randn(300, 5003, device="cuda") * 4).bfloat16().requires_grad_()
    target_ids = torch.randint(5003, (300,), device="cuda")
    logp, entropy = logprob_from_logits(logits, target_ids, temperature=0.7, return_entropy=True)
    (logp.sum() + entropy.sum()).backward()
    exact = logits.detach().double().requires_grad_()
    exact_logp, exact_entropy = reference.logprob_and_entropy(exact / 0.7, target_ids)
    (exact_logp.sum() + exact_entropy.sum()).backward()
    assert relative(logits.grad, exact.grad) <= GRADIENT[torch.bfloat16]
