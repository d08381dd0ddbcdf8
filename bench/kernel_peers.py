"""What other packages compute of the same things: adapters to their real functions, none of them timed unless it is
installed and runs on this machine.

`heads` are functions of (hidden [N, D], weight [V, D], target_ids [N]) -> (logp [N], entropy [N] or None),
differentiable; `readers` the same of logits [N, V]. `losses` and `logit_losses` are whole losses, for packages that
give no log-probs.
Each is held to fp64 in `tests/bench/test_bench_kernels.py` where it runs on a CPU, and on every machine before it is
timed.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

import torch
from kernel_problems import Problem
from siri_kernels import grpo_loss
from torch import Tensor

Head = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]
Reader = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
Loss = Callable[[Problem], Tensor]


def installed(name: str) -> ModuleType | None:
    """The module, or None when it, or anything it needs, is missing here."""
    try:
        return importlib.import_module(name)
    except Exception:  # no such package, no CUDA library, a version of something that it does not know
        return None


def kernels_run(device: torch.device) -> bool:
    """Triton kernels run on tensors of this device: on CUDA, or interpreted."""
    from siri_kernels.rows.kernels import INTERPRETED

    return device.type == "cuda" or INTERPRETED


@contextmanager
def tf32() -> Iterator[None]:
    """fp32 GEMMs in TF32, as users of the peers that make fp32 gradient GEMMs may allow."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


# --- plain torch ---


@cache
def compiled(function: Callable) -> Callable:
    """Compiled for each shape by itself, as fast as it gets, and once for all ops."""
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(function, dynamic=False)


def eager_logits(logits: Tensor, target_ids: Tensor) -> tuple[Tensor, Tensor]:
    """What a trainer without fused kernels does: log-softmax in fp32, entropy for its logs."""
    logp = logits.float().log_softmax(-1)
    with torch.no_grad():
        entropy = -(logp.exp() * logp).sum(-1)
    return logp.gather(-1, target_ids[:, None]).squeeze(-1), entropy


def eager_head(hidden: Tensor, weight: Tensor, target_ids: Tensor) -> tuple[Tensor, Tensor]:
    return eager_logits(hidden @ weight.T, target_ids)


def eager_loss(logp: Tensor, old_logp: Tensor, advantages: Tensor) -> Tensor:
    """The clipped loss of given log-probs, the mean over tokens, and the two fractions that everybody logs."""
    ratio = (logp - old_logp).exp()
    clipped = ratio.clamp(0.8, 1.28)
    loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
    with torch.no_grad():
        ((ratio < 0.8) & (advantages < 0)).float().mean()
        ((ratio > 1.28) & (advantages > 0)).float().mean()
    return loss


# --- heads ---


def heads(p: Problem) -> dict[str, Head]:
    """Of hidden states."""
    cuda = p.hidden.is_cuda
    found: dict[str, Head] = {"eager": eager_head}
    if cuda:
        found["torch.compile"] = compiled(eager_head)
    if utils := installed("trl.trainer.utils"):
        found["trl-full"] = lambda x, w, y: utils.selective_log_softmax_and_entropy(x @ w.T, y, False)
    if chunked := installed("trl.kernels.chunked_logprob"):
        size = getattr(utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", 32768)
        options = (None, 1.0, ("entropy",))  # softcap, logit scale, what else is asked for

        def trl(x, w, y):
            logp, entropy, *_ = chunked.ChunkedLogProbFunction.apply(x, w, None, y, 1.0, size, *options)
            return logp, entropy

        found["trl-chunked"] = trl
    from verl_heads import Torch512

    found["verl-torch-512"] = Torch512.apply
    if kernels_run(p.hidden.device):
        from verl_heads import TritonSplit

        found["verl-triton"] = TritonSplit.apply
    if scaled := installed("liger_kernel.ops.fused_linear_scaled_cross_entropy"):

        def liger(x, w, y):
            nll, entropy = scaled.LigerFusedLinearScaledCrossEntropyFunction.apply(x, w, y, return_entropy=True)
            return -nll, entropy

        hopper = cuda and torch.cuda.get_device_capability() == (9, 0)
        cute = hopper and installed("liger_kernel.ops.cutedsl.ops") is not None
        # without CuTe it is a copy of verl's 512-token loop
        found["liger-cute" if cute else "liger-flsce-torch"] = liger
    if cuda and (cce := installed("cut_cross_entropy")):
        parameters = inspect.signature(cce.linear_cross_entropy).parameters
        # releases up to 25.1 know no cce_exact: no filter is their nearest, with gradients accumulated in bf16
        exact = {"impl": "cce_exact"} if "accum_c_fp32" in parameters else {"impl": "cce", "filter_eps": None}

        def cut(**options):
            return lambda x, w, y: (-cce.linear_cross_entropy(x, w, y, reduction="none", **options), None)

        found |= {"cce": cut(impl="cce"), "cce-exact": cut(**exact)}
    return found


def losses(p: Problem) -> dict[str, Loss]:
    """The clipped loss from hidden states, whole, at the clips 0.2 and 0.28, the mean over tokens."""
    found: dict[str, Loss] = {}
    if liger := installed("liger_kernel.chunked_loss.grpo_loss"):
        # compiled is their default, and needs a C++ compiler on a CPU
        options = {"epsilon_low": 0.2, "epsilon_high": 0.28, "loss_type": "bnpo", "compiled": p.hidden.is_cuda}
        module = liger.LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, **options)

        def fused(p: Problem) -> Tensor:
            mask = torch.ones_like(p.padded(p.target_ids), dtype=torch.float32)
            ids, old = p.padded(p.target_ids), p.padded(p.old_logp)
            return module(p.padded(p.hidden), p.weight, ids, mask, p.advantages, old_per_token_logps=old)[0]

        found["liger-grpo"] = fused
    return found


def cross_entropies(p: Problem) -> dict[str, Loss]:
    """The mean cross-entropy, which is the policy gradient where every advantage is 1 and the ratio is."""
    found: dict[str, Loss] = {}
    if p.hidden.is_cuda and (quack := installed("quack.linear_cross_entropy")):
        found["quack"] = lambda p: quack.chunked_linear_cross_entropy(p.hidden, p.weight, p.target_ids)
    if p.hidden.is_cuda and (cce := installed("cut_cross_entropy")):
        found["cce"] = lambda p: cce.linear_cross_entropy(p.hidden, p.weight, p.target_ids)
    if kernels_run(p.hidden.device) and (ce := installed("liger_kernel.ops.fused_linear_cross_entropy")):
        flce = ce.LigerFusedLinearCrossEntropyFunction
        found["liger-flce"] = lambda p: flce.apply(p.hidden, p.weight, p.target_ids)[0]
    return found


# --- logits ---


def readers(device: torch.device) -> dict[str, Reader]:
    """Of logits."""
    found: dict[str, Reader] = {"eager": eager_logits}
    if device.type == "cuda":
        found["torch.compile"] = compiled(eager_logits)
    if utils := installed("trl.trainer.utils"):
        found["trl"] = lambda z, y: utils.selective_log_softmax_and_entropy(z, y, False)
        found["trl-logp-only"] = lambda z, y: (utils.selective_log_softmax(z[None], y[None])[0], None)
    return found


def undifferentiable_readers(p: Problem) -> dict[str, Callable[[], tuple[Tensor, None]]]:
    """Log-probs of p.logits, without gradient."""
    if not kernels_run(p.hidden.device) or not (liger := installed("liger_kernel.transformers.grpo_loss")):
        return {}
    ids = p.target_ids[None, : p.logit_rows].contiguous()
    return {"liger": lambda: (liger.fused_selective_log_softmax(p.logits.detach(), ids, temperature=1.0)[0], None)}


def logit_losses(p: Problem, *, on_policy: bool) -> dict[str, Callable[[], Tensor]]:
    """The clipped loss from p.logits [1, L + 1, V] of one sequence, the mean over tokens."""
    if not kernels_run(p.hidden.device):
        return {}
    rows = p.logit_rows
    ids, advantage = p.target_ids[None, :rows].contiguous(), p.advantages[:1]
    old = None if on_policy else p.old_logp[None, :rows].contiguous()
    found: dict[str, Callable[[], Tensor]] = {}
    if liger := installed("liger_kernel.transformers.grpo_loss"):
        # in place is their default, and would spoil the logits for the next round
        options = {"temperature": 1.0, "beta": 0.0, "eps_low": 0.2, "eps_high": 0.28, "inplace": False}
        options |= {"loss_type": "bnpo", "reduce": True}
        found["liger-grpo-logits"] = lambda: liger.triton_grpo_loss(p.logits, old, None, ids, advantage, **options)[0]
    if on_policy and (fla := installed("fla.modules.grpo")):  # has no old log-probs: its ratio is always 1
        reference = p.old_logp[None, :rows].contiguous()  # for a KL term, which beta turns off
        found["fla-grpo-logits"] = lambda: fla.fused_grpo_loss(p.logits, reference, ids, advantage, beta=0.0).mean()
    return found


def with_loss(head: Head, p: Problem, *, on_policy: bool = False) -> Tensor:
    """The clipped loss around a peer's log-probs: ours, the same for all, a few launches on [N]."""
    logp, _ = head(p.hidden, p.weight, p.target_ids)
    return grpo_loss(logp, None if on_policy else p.old_logp, p.advantages, cu_seqlens=p.cu_seqlens).loss
