"""What only a GPU can show about the anchored GEMM; bench/results says on which ones it ran, and when."""

import itertools

import pytest
import torch
from siri_kernels import linear_grpo_loss, linear_logprob, reference, self_check
from siri_kernels.rows.anchored import gemm
from siri_kernels.rows.anchored.tiles import PLANS, capability, use_plan
from siri_kernels.selection import select

from tests.kernels.test_gpu import ALONE, HALF, large_case, on_gpu
from tests.support.kernel_cases import KERNEL_OPTIONS, make_case, relative, run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
BF16 = torch.bfloat16


def check(case, **options):
    result, gradients = run(linear_grpo_loss, case, impl="anchored", **options)
    plain = {k: v for k, v in options.items() if k != "memory"}
    expected, expected_gradients = run(reference.linear_grpo_loss, case, upcast=True, **plain)
    torch.testing.assert_close(result.logp.double(), expected.logp, rtol=0, atol=2e-5, equal_nan=True)
    torch.testing.assert_close(result.entropy.double(), expected.entropy, rtol=0, atol=1e-4, equal_nan=True)
    assert all(relative(x, y) <= HALF for x, y in zip(gradients, expected_gradients, strict=True))


@pytest.mark.parametrize("d", [128, 132], ids=["descriptors", "pointers"])
@pytest.mark.parametrize("name", KERNEL_OPTIONS)
def test_matches_the_reference(name, d):
    case = make_case(list(KERNEL_OPTIONS).index(name), lengths=(90, 0, 311, 1, 240), d=d, vocab=1031, dtype=BF16)
    case.bias = case.bias.float()
    options = {**KERNEL_OPTIONS[name], **({"memory": 1 << 20} if "memory" in KERNEL_OPTIONS[name] else {})}
    check(on_gpu(case), **options)


@pytest.mark.parametrize("vocab", [1, 2, 151_936, 152_064, 128_256, 248_320])
def test_vocabularies(vocab):
    case = on_gpu(make_case(vocab, lengths=(33, 64), d=64, vocab=vocab, dtype=BF16))
    case.bias = case.bias.float()
    check(case)


@pytest.mark.parametrize("head", list(itertools.product([False, True], repeat=4)), ids=str)
@pytest.mark.parametrize("plan", PLANS)
def test_the_self_check_passes(plan, head):
    """For every plan and kind of head: none of them falls back in silence."""
    before = use_plan(plan)
    try:
        for d_model, vocab in ((1536, 152_064), (1544, 151_936)):
            assert self_check.fault(torch.device("cuda", 0), d_model, vocab, head) is None
    finally:
        use_plan(before)


@pytest.mark.skipif(torch.cuda.is_available() and capability(torch.device("cuda", 0)) != 90, reason="auto is for sm_90")
def test_auto_takes_it():
    hidden, weight, target_ids, _ = large_case()
    assert select("auto", hidden, weight) == "anchored"
    auto, anchored = (linear_logprob(hidden, weight, target_ids, impl=impl) for impl in ("auto", "anchored"))
    assert torch.equal(auto, anchored)


@pytest.mark.parametrize("plan", PLANS)
def test_log_probs_do_not_depend_on_the_packing(plan):
    """Bit for bit."""
    before = use_plan(plan)
    try:
        check_packing()
    finally:
        use_plan(before)


def check_packing():
    hidden, weight, target_ids, _ = large_case()
    hidden, weight = hidden.detach(), weight.detach()
    whole = linear_logprob(hidden, weight, target_ids, impl="anchored")
    order = torch.randperm(6000, device="cuda")
    assert torch.equal(linear_logprob(hidden[order], weight, target_ids[order], impl="anchored"), whole[order])
    part = linear_logprob(hidden[1000:1777], weight, target_ids[1000:1777], impl="anchored")
    assert torch.equal(part, whole[1000:1777])


@pytest.mark.parametrize("memory", ["fast", "small", "lean"])
def test_a_rerun_is_identical_and_the_ratio_exactly_one(memory):
    outcomes = []
    for _ in range(2):
        hidden, weight, target_ids, advantages = large_case()
        with torch.no_grad():
            rollout = linear_logprob(hidden, weight, target_ids) + 0.1
            old_logp = linear_logprob(hidden, weight, target_ids, anchor=rollout, impl="anchored")
        per_token = {"old_logp": old_logp, "rollout_logp": rollout}
        result = linear_grpo_loss(hidden, weight, target_ids, advantages, memory=memory, impl="anchored", **per_token)
        result.loss.backward()
        assert result.metrics["ratio_max"] == 1 and result.metrics["approx_kl"] == 0
        outcomes.append((result.loss.detach(), result.logp, hidden.grad, weight.grad))
    assert all(torch.equal(x, y) for x, y in zip(*outcomes, strict=True))


def test_rows_out_of_range_are_redone():
    case = on_gpu(make_case(7, lengths=(300, 33), d=64, vocab=1031, dtype=BF16))
    case.bias = case.bias.float()
    case.bias[5] = 90.0
    case.old_logp = None
    check(case)


@ALONE
@pytest.mark.parametrize("options", [{}, {"memory": "lean"}, {"entropy_coef": 0.01}], ids=str)
def test_nothing_synchronises(options):
    hidden, weight, target_ids, advantages = large_case()
    keep = torch.arange(0, 6000, 2, device="cuda")
    for attempt in range(2):  # the first call compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if attempt else "default")
        try:
            result = linear_grpo_loss(hidden, weight, target_ids, advantages, keep=keep, impl="anchored", **options)
            result.loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.is_available() and capability(torch.device("cuda", 0)) != 90, reason="a factor of sm_90")
@pytest.mark.parametrize("d", [1536, 3584])
def test_what_tensor_cores_cut_off_comes_back(monkeypatch, d):
    """Another token dominates by 30 nats: its logit alone is cut off by much."""
    n, vocab = 1024, 32_064
    g = torch.Generator("cuda").manual_seed(1)
    weight = torch.randn(vocab, d, device="cuda", generator=g) * d**-0.5
    target_ids = torch.randint(vocab, (n,), device="cuda", generator=g)
    hidden = torch.randn(n, d, device="cuda", generator=g) + 30 * weight[(target_ids + 1) % vocab]
    hidden, weight = hidden.to(BF16), weight.to(BF16)
    expected, _ = reference.logprob_and_entropy(reference.logits(hidden.double(), weight.double()), target_ids)

    def error() -> float:
        return float((linear_logprob(hidden, weight, target_ids, impl="anchored") - expected).abs().max())

    mended = error()
    monkeypatch.setattr(gemm, "compensation", lambda *_: 1.0)
    assert mended < 5e-5 and mended < 0.5 * error()
