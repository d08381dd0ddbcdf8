"""What users of the peers report, each under its own name: docs/kernels.md lists them. Every one is checked on a CPU;
what only a device can show is marked gpu."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from siri_kernels import linear_grpo_loss, linear_logprob
from siri_kernels.integrations.padded import padded_logprob

from tests.kernels.test_no_sync import Synchronisations, bare  # noqa: F401
from tests.support import warm
from tests.support.integration_cases import leaves, padded_batch
from tests.support.kernel_cases import relative

KERNELS = Path(linear_logprob.__globals__["__file__"]).parent
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=on_gpu)]


def exact(hidden, weight, ids):
    return (hidden.double() @ weight.double().T).log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)


@pytest.mark.parametrize("device", DEVICES)
def test_precision_with_bf16_logits(device):
    """Log-probs of bf16 models are off by 0.02 where logits are rounded to bf16 (TRL's cast_lm_head_to_fp32, CCE's
    "gradient differences of the classifier are very large"); here only the inputs are bf16."""
    batch = padded_batch(1, (256, 256), d=64, vocab=3000, dtype=torch.bfloat16)
    hidden, weight, ids = (x.to(device) for x in (batch.hidden.flatten(0, 1), batch.weight, batch.ids.flatten()))
    truth = exact(hidden, weight, ids)
    rounded = (hidden @ weight.T).float().log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)
    mine = linear_logprob(hidden, weight, ids)
    assert float((mine - truth).abs().max()) < 2e-5 < 1e-2 < float((rounded - truth).abs().max())

    def gradient(function, dtype):
        w = weight.detach().to(dtype).requires_grad_()
        function(hidden.to(dtype), w, ids).sum().backward()
        return w.grad

    assert relative(gradient(linear_logprob, torch.bfloat16), gradient(exact, torch.float64)) < 4e-3


def test_recompilation_per_length():
    """Liger's Triton GRPO op and FLA's take the padded length as a constexpr: one compilation per length. Here the
    compile-time arguments of every kernel are block sizes and switches; counts of rows and tokens are not among them.
    """
    counts = {"n", "N", "T", "L", "rows", "n_rows", "length", "seq_len", "stride", "tokens", "S", "V", "temperature"}
    seen = 0
    for path in ("rows/kernels.py", "loss/triton.py", "rows/anchored/kernels.py"):
        for function in ast.walk(ast.parse((KERNELS / path).read_text())):
            if isinstance(function, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in function.decorator_list):
                constants = {a.arg for a in function.args.args if a.annotation and "constexpr" in ast.unparse(a)}
                assert not constants & counts, (path, function.name, constants & counts)
                seen += bool(constants)
    assert seen >= 5


def test_recompilation_per_length_under_torch_compile():
    """One graph for any number of tokens."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    step = torch.compile(lambda h, w, i: linear_logprob(h, w, i).sum(), dynamic=True, backend=backend)
    weight = torch.randn(11, 4, requires_grad=True)
    for n in (7, 20, 33, 64, 129):
        step(torch.randn(n, 4), weight, torch.zeros(n, dtype=torch.long)).backward()
    assert len(graphs) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recompilation_per_length_on_a_device():
    from siri_kernels.loss import triton as token_kernels
    from siri_kernels.rows import kernels as row_kernels
    from triton.runtime.jit import JITFunction

    modules = (row_kernels, token_kernels)
    kernels = [k for module in modules for k in vars(module).values() if isinstance(k, JITFunction)]

    def variants():
        return sum(len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values())

    weight = torch.randn(999, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    counts = []
    for rows in (304, 301, 317, 511, 640, 777):
        hidden = torch.randn(rows, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        ids = torch.randint(999, (rows,), device="cuda")
        linear_grpo_loss(hidden, weight, ids, torch.randn(rows, device="cuda")).loss.backward()
        counts.append(variants())
    assert len(set(counts[1:])) == 1, counts  # Triton knows two kinds of lengths: divisible by 16, and odd ones


def adapters_without_masks(device):
    """verl's and prime-rl's heads: every position is scored, as (function of hidden and weight)."""
    ids = torch.randint(53, (2, 12), device=device)
    temperature = torch.rand(2, 12, device=device) + 0.5
    for t in (0.7, temperature):
        yield lambda h, w, t=t: padded_logprob(h, w, ids, None, temperature=t)


def test_host_syncs(bare):  # noqa: F811
    """Liger compares the upstream gradient with 1, prime-rl asks torch.any per vocabulary chunk, verl's metrics call
    .item(): each stalls the device. Neither the operators nor the adapters that score every token do."""
    hidden, weight = leaves(padded_batch(2, (12, 12)))
    for score in adapters_without_masks("cpu"):
        with Synchronisations() as seen:
            logp, _ = score(hidden, weight)
        assert seen.operators == [] and logp.shape == (2, 12)


@pytest.mark.xdist_group("alone")
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_host_syncs_on_a_device():
    hidden, weight = (x.detach().cuda().bfloat16().requires_grad_() for x in leaves(padded_batch(2, (12, 12))))
    for score in adapters_without_masks("cuda"):
        score(hidden, weight)[0].sum().backward()  # compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            logp, entropy = score(hidden, weight)
            (logp.sum() + entropy.sum()).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("offset", [-3e4, -200.0, 3e4])
def test_nan_on_very_negative_logits(device, offset):
    """verl's Triton kernel starts its running maximum at 0: rows whose logits are all far below it give NaN, and its
    tail once gave log-probs above 0. Adding a constant to all logits must change nothing but rounding."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 16, generator=g)
    weight = torch.randn(77, 16, generator=g)
    hidden[:, -1], weight[:, -1] = 1.0, offset  # logits: a constant below every other
    hidden, weight = hidden.to(device).requires_grad_(), weight.to(device).requires_grad_()
    ids = torch.randint(77, (40,), generator=g).to(device)
    logp, entropy = linear_logprob(hidden, weight, ids, return_entropy=True)
    (logp.sum() + entropy.sum()).backward()
    truth = exact(hidden.detach(), weight.detach(), ids)
    bound = max(1e-5, 8 * abs(offset) * 2**-23)  # fp32 rounds the logits themselves
    assert float((logp.detach() - truth).abs().max()) < bound
    assert float(logp.max()) <= 0 and float(entropy.min()) >= 0
    assert hidden.grad.isfinite().all() and weight.grad.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
def test_more_than_65535_rows(device):
    """Liger's grid ends at 65,535 rows, prime-rl's and verl's do not; neither does this one."""
    n, vocab = 70_001, 33
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(n, 4, generator=g).to(device), torch.randn(vocab, 4, generator=g).to(device)
    ids = torch.randint(vocab, (n,), generator=g).to(device)
    advantages = torch.randn(n, generator=g).to(device)
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    result = linear_grpo_loss(hidden, weight, ids, advantages)
    result.loss.backward()
    truth = exact(hidden.detach(), weight.detach(), ids)
    assert float((result.logp - truth).abs().max()) < 2e-5
    w = weight.detach().double().requires_grad_()
    (-(exact(hidden.detach(), w, ids) * advantages).mean()).backward()
    assert relative(weight.grad, w.grad) < 1e-4
    assert float(hidden.grad[65_535:].abs().sum()) > 0


def test_fsdp2_lm_head(tmp_path):
    """verl's fused forward under FSDP2 with an untied head, TRL's with a sharded one: hooks that do not fire, tensors
    mixed with DTensors. Two processes, the head a module of its own, through the adapters
    (tests/support/fsdp_heads_worker.py).
    """
    command = [sys.executable, "-m", "tests.support.fsdp_heads_worker", str(tmp_path / "store")]
    ranks = [warm.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for rank in range(2)]
    outputs = [rank.communicate(timeout=900)[0].decode() for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(o[-3000:] for o in outputs)
