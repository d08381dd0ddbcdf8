"""The CPU path of long rows, logits by slices of the vocabulary: small problems in even smaller blocks, against the
fp64 reference."""

import math

import pytest
import torch
from siri_kernels import api, chunked, gemm_cpu, linear_grpo_loss, linear_logprob, reference, selection
from siri_kernels.rows import sliced

from tests.support import kernel_cases
from tests.support.kernel_cases import GRADIENT, KERNEL_OPTIONS, assert_same, exact_problem, make_case, relative, run

FP32, BF16 = torch.float32, torch.bfloat16
HALF = 4e-3


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of rows and of columns, none of them full."""
    monkeypatch.setattr(selection, "LONG_ROW", 1)
    monkeypatch.setattr(sliced, "BLOCK_ROWS", 24)
    monkeypatch.setattr(sliced, "BLOCK_COLUMNS", 25)
    monkeypatch.setattr(kernel_cases, "GRADIENT", {**GRADIENT, BF16: HALF})


def reference_loss(*args, **options):
    return reference.linear_grpo_loss(*args, **{k: v for k, v in options.items() if k not in ("memory", "impl")})


def check(case, dtype, **options):
    result, gradients = run(linear_grpo_loss, case, upstream=3.0, **options)
    expected, expected_gradients = run(reference_loss, case, upcast=True, upstream=3.0, **options)
    assert_same(result, gradients, expected, expected_gradients, dtype)
    assert all(float(x.abs().max()) > 0 for x in gradients if x is not None), "nothing was compared"


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("name", KERNEL_OPTIONS)
def test_matches_the_reference(name, dtype):
    options = dict(KERNEL_OPTIONS[name])
    if "memory" in options and options["memory"] != "lean":
        options["memory"] *= 2 if dtype == FP32 else 1
    case = make_case(list(KERNEL_OPTIONS).index(name) + 30, dtype=dtype)
    case.bias = case.bias.float()
    assert selection.select("auto", case.hidden, case.weight) == "sliced"
    check(case, dtype, **options)


@pytest.mark.parametrize("options", [{}, {"entropy_coef": 0.1}, {"softcap": 2.5, "entropy_coef": 0.05}], ids=str)
@pytest.mark.parametrize("memory", ["fast", "lean", 3000])
def test_without_products_of_bf16(monkeypatch, options, memory):
    """On a CPU that has none, the same by widened operands; with a temperature of its own for each row."""
    monkeypatch.setattr(gemm_cpu, "multiplies_bf16", lambda: False)
    case = make_case(50, dtype=BF16)
    case.bias = None
    tensors = {name: x for name, x in case.loss_tensors().items() if name != "bias"}
    temperature = torch.linspace(0.5, 2.0, 65)
    mine, gradients = run(linear_grpo_loss, case, tensors=tensors, temperature=temperature, memory=memory, **options)
    exact, expected = run(reference_loss, case, tensors=tensors, upcast=True, temperature=temperature, **options)
    torch.testing.assert_close(mine.logp.double(), exact.logp, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine.entropy.double(), exact.entropy, rtol=1e-5, atol=1e-5)
    assert all(relative(x, y) < HALF for x, y in zip(gradients[:2], expected[:2], strict=True))


def test_rounded_logits():
    """As a bf16 rollout has them, of products that fp32 holds exactly."""
    hidden, weight, target_ids = exact_problem(d=64, vocab=150)
    hidden = hidden * 3
    logp = linear_grpo_loss(hidden, weight, target_ids, torch.ones(41), logit_dtype="bf16").logp
    z = (hidden.double() @ weight.double().T).to(BF16).double()
    expected, _ = reference.logprob_and_entropy(z, target_ids)
    torch.testing.assert_close(logp.double(), expected, rtol=1e-5, atol=1e-5)


def exact_logp(hidden, weight, target_ids):
    """With the relative accuracy near 0 that log_softmax has not."""
    z = hidden.double() @ weight.double().T
    target = target_ids[:, None]
    return -torch.log1p((z - z.gather(1, target)).exp().scatter(1, target, 0.0).sum(1))


@pytest.mark.parametrize("off", [math.nan, math.inf, -1e4, -200.0, -30.0, 0.0, 30.0, 200.0, 1e4], ids=str)
@pytest.mark.parametrize("kind", ["usual", "likely", "impossible"])
@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_any_offset(memory, kind, off):
    """Rows that are measured from anywhere, with p from 1 - 1e-13 down to 1e-60: what leaves the range of fp32 is done
    again, the rest loses nothing."""
    hidden, weight, target_ids = exact_problem(seed=1)
    n = len(hidden)
    if kind != "usual":
        hidden = torch.cat([hidden / 4, torch.zeros(n, 64, dtype=BF16)], 1)
        hidden[:, 64] = torch.linspace(24, 30, n).to(BF16) if kind == "likely" else torch.linspace(60, 140, n).to(BF16)
        weight = torch.cat([weight, torch.zeros(300, 64, dtype=BF16)], 1)
        weight[7, 64] = 1.0
        target_ids = torch.full((n,), 7 if kind == "likely" else 8)
    hidden, weight = hidden.float(), weight.float()
    exact = exact_logp(hidden, weight, target_ids)
    offset = ((hidden.double() @ weight.double().T).logsumexp(1) / math.log(2) + off).float()
    leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    wide = hidden.double().requires_grad_(), weight.double().requires_grad_()
    advantages = torch.linspace(-1, 1, n)
    mine = linear_grpo_loss(*leaves, target_ids, advantages, offset=offset, memory=memory, entropy_coef=0.01)
    mine.loss.backward()
    atol = 1e-30 if kind == "likely" and abs(off) < 100 else 2e-5
    torch.testing.assert_close(mine.logp.double(), exact, rtol=2e-5, atol=atol)
    linear_grpo_loss(*wide, target_ids, advantages.double(), entropy_coef=0.01).loss.backward()
    assert all(relative(x.grad, y.grad) < 2e-5 for x, y in zip(leaves, wide, strict=True))


def test_nothing_of_a_row_without_gradient_reaches_the_weight():
    case = make_case(60, lengths=(20, 16))
    row = int(case.mask.nonzero()[0])
    case.hidden[row] = math.nan
    tensors = {"cu_seqlens": case.cu_seqlens, "keep": torch.arange(36)}
    result, gradients = run(linear_grpo_loss, case, tensors={**tensors, "mask": case.mask})
    assert result.logp[row].isnan() and gradients[1].isnan().any()
    case.mask[row] = False
    result, gradients = run(linear_grpo_loss, case, tensors={**tensors, "mask": case.mask})
    assert result.loss.isfinite() and all(x.isfinite().all() for x in gradients[1:2])


def test_banned_tokens():
    case = make_case(61, vocab=80)
    case.target_ids = case.target_ids.clamp(max=59)
    case.target_ids[3] = 70
    case.mask[3] = False
    case.bias[60:] = -math.inf
    result, gradients = run(linear_grpo_loss, case, entropy_coef=0.1)
    assert result.logp[3] == -math.inf
    case.weight, case.bias, case.target_ids[3] = case.weight[:60], case.bias[:60], 0
    expected, expected_gradients = run(reference_loss, case, upcast=True, entropy_coef=0.1)
    rows = case.mask
    torch.testing.assert_close(result.logp.double()[rows], expected.logp[rows], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.entropy.double()[rows], expected.entropy[rows], rtol=1e-5, atol=1e-5)
    assert relative(gradients[0], expected_gradients[0]) < 1e-5 and float(gradients[1][60:].abs().sum()) == 0


@pytest.mark.parametrize(("dtype", "products"), [(FP32, False), (BF16, True), (BF16, False)], ids=str)
def test_a_single_chunk_writes_the_weights_gradient_once(monkeypatch, dtype, products):
    """In the backward and in its own dtype: no whole dW in fp32, and no pass over it. Where E would be wider than
    the weight, as in bf16 without products of that, it does not last until then."""
    monkeypatch.setattr(gemm_cpu, "multiplies_bf16", lambda: products)
    case = make_case(62, dtype=dtype)
    case.bias = None
    tensors = {name: x for name, x in case.loss_tensors().items() if name != "bias"}
    calls, operator = [], api.linear_grpo
    monkeypatch.setattr(api, "linear_grpo", lambda **a: calls.append(a["settings"].late_weight) or operator(**a))
    outcomes = [run(linear_grpo_loss, case, tensors=tensors, upstream=3.0, memory=m)[1] for m in ("fast", 1)]
    assert calls == [dtype == FP32 or products, False]
    assert all(
        relative(x, y) < (2e-6 if dtype == FP32 else HALF) for x, y in zip(*(g[:2] for g in outcomes), strict=False)
    )


def test_a_forward_holds_no_logits():
    """Whatever the budget, all rows at once: blocks are what is held."""
    hidden, weight = torch.randn(50, 8), torch.randn(9000, 8)
    assert chunked.chunk_rows("sliced", hidden, 9000, 1 << 20, stored=False) == 50
    rows = sliced.SlicedRows(hidden, chunked.Head(weight), torch.zeros(50), chunked.Shard(), 50, 9000, FP32)
    rows.forward(slice(0, 50), store=False)
    assert rows.e is None and rows.buffer is None
    logp, offset = linear_logprob(hidden, weight, torch.zeros(50, dtype=torch.int64), return_offset=True)
    again = linear_logprob(hidden, weight, torch.zeros(50, dtype=torch.int64), offset=offset)
    torch.testing.assert_close(again, logp, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_under_compile(softcap):
    """The fake kernels have the shapes of what comes."""
    case = make_case(63, dtype=BF16)
    keep = torch.arange(0, 65, 2)

    def step(hidden, weight):
        options = {"cu_seqlens": case.cu_seqlens, "softcap": softcap, "keep": keep}
        return linear_grpo_loss(hidden, weight, case.target_ids, case.advantages, **options).loss

    outcomes = []
    for function in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        leaves = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_()
        function(*leaves).backward()
        outcomes.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(x, y) for x, y in zip(*outcomes, strict=True))


@pytest.mark.parametrize("long_row", [1, 10**6], ids=["sliced", "torch"])
def test_nothing_behind_a_row_is_read(monkeypatch, long_row):
    """On CPUs with AMX oneDNN reads bf16 rows up to a block's end, and 0 times what lies there must be 0."""
    monkeypatch.setattr(selection, "LONG_ROW", long_row)
    for seed in range(12):
        g = torch.Generator().manual_seed(seed)
        hidden = torch.randn(35, 72, generator=g).to(BF16).requires_grad_()
        weight = torch.randn(333, 72, generator=g).to(BF16).requires_grad_()
        target_ids = torch.randint(333, (35,), generator=g)
        linear_grpo_loss(hidden, weight, target_ids, torch.randn(35, generator=g)).loss.backward()
        assert hidden.grad.isfinite().all() and weight.grad.isfinite().all()
