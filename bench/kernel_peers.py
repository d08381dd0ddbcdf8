"""What other packages compute of the same things: adapters to their real functions, none of them timed unless it is
installed and runs on this machine.

Registries of name -> builder: a builder imports its package and returns None where there is nothing to run, so that
nobody is imported who is not asked for. `heads` are functions of (hidden [N, D], weight [V, D], target_ids [N]) ->
(logp [N], entropy [N] or None), differentiable; `losses` and `cross_entropies` are whole losses, for packages that give
no log-probs. What takes logits is in `kernel_logit_peers`, who shares a process with whom in `kernel_groups`.
Each is held to fp64 in `tests/bench/test_bench_kernels.py` where it runs on a CPU, and on every machine before it is
timed.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import torch
from kernel_problems import Problem
from siri_kernels import grpo_loss
from torch import Tensor

Head = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]
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


Peers = frozenset[str] | None
"""names, or None for everybody"""


def chosen(registry: Mapping[str, Callable[[Problem], Any]], p: Problem, peers: Peers) -> dict[str, Any]:
    """Those of `peers` that are here. Nobody else is imported."""
    by_name: dict[str, Any] = {}
    for name, build in registry.items():
        if peers is not None and name not in peers:
            continue
        try:
            function = build(p)
        except Exception as error:  # a package that is there and cannot be set up on this machine
            print(f"{name} cannot be set up: {first_line(error)}")
            continue
        if function:
            by_name[name] = function
    return by_name


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


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


def trl_full(p: Problem) -> Head | None:
    utils = installed("trl.trainer.utils")
    return utils and (lambda x, w, y: utils.selective_log_softmax_and_entropy(x @ w.T, y, False))


def trl_chunked(p: Problem) -> Head | None:
    if not (chunked := installed("trl.kernels.chunked_logprob")):
        return None
    size = getattr(installed("trl.trainer.utils"), "_CHUNKED_LOGPROB_CHUNK_SIZE", 32768)
    options = (None, 1.0, ("entropy",))  # softcap, logit scale, what else is asked for

    def trl(x, w, y):
        logp, entropy, *_ = chunked.ChunkedLogProbFunction.apply(x, w, None, y, 1.0, size, *options)
        return logp, entropy

    return trl


def verl_torch(p: Problem) -> Head | None:
    from verl_heads import Torch512

    return Torch512.apply


def verl_triton(p: Problem) -> Head | None:
    if not kernels_run(p.hidden.device):
        return None
    from verl_heads import TritonSplit

    return TritonSplit.apply


def hopper(p: Problem) -> bool:
    return p.hidden.is_cuda and torch.cuda.get_device_capability() == (9, 0)


def negative(apply: Callable, *options, **named) -> Head:
    """A head of what returns (negative log-prob, entropy)."""

    def head(x, w, y):
        nll, entropy = apply(x, w, y, *options, **named)
        return -nll, entropy

    return head


def liger_torch(p: Problem) -> Head | None:
    """Without CuTe it is a copy of verl's 512-token loop."""
    scaled = installed("liger_kernel.ops.fused_linear_scaled_cross_entropy")
    if not scaled or (hopper(p) and installed("liger_kernel.ops.cutedsl.ops")):
        return None
    return negative(scaled.LigerFusedLinearScaledCrossEntropyFunction.apply, return_entropy=True)


def liger_cute(p: Problem) -> Head | None:
    scaled = installed("liger_kernel.ops.fused_linear_scaled_cross_entropy")
    if not scaled or not hopper(p) or not installed("liger_kernel.ops.cutedsl.ops"):
        return None
    return negative(scaled.LigerFusedLinearScaledCrossEntropyFunction.apply, return_entropy=True)


def liger_native(p: Problem) -> Head | None:
    """Liger's CUTLASS path, made for tensor parallelism, with a group of one rank."""
    native = installed("liger_kernel.ops.cute.fused_linear_scaled_cross_entropy_tp")
    if not native or not hopper(p) or not native.is_available():
        return None
    from liger_cute_kernels import nvshmem

    dist = torch.distributed
    if not dist.is_initialized():
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
        nvshmem.init_from_pg(dist.group.WORLD)
    function = native.LigerFusedLinearScaledCrossEntropyNativeTPFunction
    return negative(function.apply, 0, 1.0, -100, 1, True, dist.group.WORLD)


def liger_cutile(p: Problem) -> Head | None:
    if not hopper(p) or not (scaled := installed("liger_kernel.ops.cutile.ops.fused_linear_scaled_cross_entropy")):
        return None
    return negative(scaled.LigerFusedLinearScaledCrossEntropyFunction.apply, 1.0, -100, True)


def cce(p: Problem, **options) -> Head | None:
    module = installed("cut_cross_entropy") if p.hidden.is_cuda else None
    return module and (lambda x, w, y: (-module.linear_cross_entropy(x, w, y, reduction="none", **options), None))


def cce_exact(p: Problem) -> Head | None:
    if not p.hidden.is_cuda or not (module := installed("cut_cross_entropy")):
        return None
    # releases up to 25.1 know no cce_exact: no filter is their nearest, with gradients accumulated in bf16
    known = "accum_c_fp32" in inspect.signature(module.linear_cross_entropy).parameters
    return cce(p, **({"impl": "cce_exact"} if known else {"impl": "cce", "filter_eps": None}))


HEADS: dict[str, Callable[[Problem], Head | None]] = {
    "eager": lambda p: eager_head,
    "torch.compile": lambda p: compiled(eager_head) if p.hidden.is_cuda else None,
    "trl-full": trl_full,
    "trl-chunked": trl_chunked,
    "verl-torch-512": verl_torch,
    "verl-triton": verl_triton,
    "liger-flsce-torch": liger_torch,
    "liger-cute": liger_cute,
    "liger-native": liger_native,
    "liger-cutile": liger_cutile,
    "cce": lambda p: cce(p, impl="cce"),
    "cce-exact": cce_exact,
}
"""Of hidden states. None: it is not installed, or not for this machine"""


# --- whole losses ---


def liger_grpo(p: Problem) -> Loss | None:
    """The clipped loss at the clips 0.2 and 0.28, the mean over tokens."""
    liger = installed("liger_kernel.chunked_loss.grpo_loss") if p.equal else None
    if not liger:
        return None
    # compiled is their default, and needs a C++ compiler on a CPU
    options = {"epsilon_low": 0.2, "epsilon_high": 0.28, "loss_type": "bnpo", "compiled": p.hidden.is_cuda}
    module = liger.LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, **options)

    def fused(p: Problem) -> Tensor:
        mask = torch.ones_like(p.padded(p.target_ids), dtype=torch.float32)
        ids, old = p.padded(p.target_ids), p.padded(p.old_logp)
        return module(p.padded(p.hidden), p.weight, ids, mask, p.advantages, old_per_token_logps=old)[0]

    return fused


LOSSES: dict[str, Callable[[Problem], Loss | None]] = {"liger-grpo": liger_grpo}
"""The clipped loss from hidden states, whole"""


def eager_mean(hidden: Tensor, weight: Tensor, target_ids: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy((hidden @ weight.T).float(), target_ids)


def auto_chunked(p: Problem) -> Loss | None:
    """torch.compile that cuts the batch of a head by itself."""
    if not p.hidden.is_cuda or not hasattr(installed("torch._inductor.config"), "auto_chunker"):
        return None
    function = torch.compile(eager_mean, dynamic=False, options={"auto_chunker.enable": True})
    return lambda p: function(p.hidden, p.weight, p.target_ids)


def torch_chunked(p: Problem) -> Loss | None:
    """torch's own, from 2.13 on."""
    options = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    function = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if not options or not function:
        return None
    return lambda p: function(p.hidden, p.weight, p.target_ids, options=options())


def quack(p: Problem) -> Loss | None:
    module = installed("quack.linear_cross_entropy") if p.hidden.is_cuda else None
    return module and (lambda p: module.chunked_linear_cross_entropy(p.hidden, p.weight, p.target_ids))


def cce_mean(p: Problem) -> Loss | None:
    module = installed("cut_cross_entropy") if p.hidden.is_cuda else None
    return module and (lambda p: module.linear_cross_entropy(p.hidden, p.weight, p.target_ids))


def liger_flce(p: Problem) -> Loss | None:
    module = installed("liger_kernel.ops.fused_linear_cross_entropy") if kernels_run(p.hidden.device) else None
    return module and (lambda p: module.LigerFusedLinearCrossEntropyFunction.apply(p.hidden, p.weight, p.target_ids)[0])


def liger_sm90(p: Problem) -> Loss | None:
    module = installed("liger_kernel.ops.cutedsl.ops.fused_linear_cross_entropy_sm90") if hopper(p) else None

    def loss(p: Problem) -> Tensor:
        value = module.LigerFusedLinearCrossEntropySM90Function.apply(p.hidden, p.weight, p.target_ids)
        return value[0] if isinstance(value, tuple) else value

    return module and loss


CROSS_ENTROPIES: dict[str, Callable[[Problem], Loss | None]] = {
    "eager": lambda p: lambda p: eager_mean(p.hidden, p.weight, p.target_ids),
    "torch.compile": lambda p: (
        (lambda p: compiled(eager_mean)(p.hidden, p.weight, p.target_ids)) if p.hidden.is_cuda else None
    ),
    "torch.compile-chunked": auto_chunked,
    "torch-chunked": torch_chunked,
    "quack": quack,
    "cce": cce_mean,
    "liger-flce": liger_flce,
    "liger-ce-sm90": liger_sm90,
}
"""The mean cross-entropy, which is the policy gradient where every advantage is 1 and the ratio is"""


def heads(p: Problem, peers: Peers = None) -> dict[str, Head]:
    return chosen(HEADS, p, peers)


def losses(p: Problem, peers: Peers = None) -> dict[str, Loss]:
    return chosen(LOSSES, p, peers)


def cross_entropies(p: Problem, peers: Peers = None) -> dict[str, Loss]:
    """Losses, and the heads that return no mean."""
    by_name: dict[str, Loss] = chosen(CROSS_ENTROPIES, p, peers)
    for name, head in heads(p, peers).items():
        if name not in by_name:
            by_name[name] = lambda p, head=head: -head(p.hidden, p.weight, p.target_ids)[0].mean()
    return by_name


def with_loss(head: Head, p: Problem, *, on_policy: bool = False) -> Tensor:
    """The clipped loss around a peer's log-probs: ours, the same for all, a few launches on [N]."""
    logp, _ = head(p.hidden, p.weight, p.target_ids)
    return grpo_loss(logp, None if on_policy else p.old_logp, p.advantages, cu_seqlens=p.cu_seqlens).loss
