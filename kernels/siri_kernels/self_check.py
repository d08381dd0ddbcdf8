"""The anchored GEMM tried on a small problem before its first use on a GPU.

Static checks and the interpreter cannot see what a driver, a compiler version or a new GPU does to it. So a process
tries every kind of head once per device, against fp64 in plain torch: it compiles and synchronises, and touches no
random state. A kernel that hangs or destroys the CUDA context is beyond it.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from siri_kernels.chunked import Needs, budget_bytes
from siri_kernels.loss.spec import LossSettings
from siri_kernels.ops.grpo import grpo_tokens, linear_grpo
from siri_kernels.ops.logprob import linear_logprob
from siri_kernels.ops.settings import GrpoSettings, HeadSettings, LogprobSettings, Placement, TokenSettings
from siri_kernels.rows.anchored.tiles import INTERPRETER, Tile, capability, planned_tile, programs_per_device

# absolute, for logits up to 20; rows of larger ones may err by RELATIVE of their log-prob
LIMITS = {"log-prob": 1e-4, "entropy": 1e-3, "dX": 1e-2, "dW": 1e-2}
RELATIVE = 1e-5
Kind = tuple[bool, bool, bool, bool]
"""of a head: temperature per row, bias, softcap, rounded logits"""
_faults: dict[object, str | None] = {}
_agreed: dict[object, str | None] = {}
_lock = threading.RLock()
_checking = False


def fault(device: torch.device, d_model: int, vocab: int, head: Kind, group: str | None = None) -> str | None:
    """What is wrong with the anchored GEMM on `device` for heads of this kind, in one line; None = nothing.

    With a group, a fault of one rank is that of all: the
    ranks meet in an all-reduce at the group's first use of a kind of head.
    """
    global _checking
    busy = any(head[1:])
    tile = planned_tile(capability(device), d_model, busy)
    tail = d_model % tile.depth
    kind = (tile, tail, *head)
    key = (device, vocab % tile.columns, *kind)
    with _lock:
        if _checking:
            return None
        if key not in _faults:
            if torch.cuda.is_current_stream_capturing():
                return "its first use is inside a CUDA graph's capture, call it once before"
            _checking = True
            try:
                generic = tile == planned_tile(capability(device), 0, busy)
                depth = 5 * tile.depth + tail if generic else d_model  # more steps than stages, the same alignment
                _faults[key] = verify(device, tile, depth, head, vocab_tail=vocab % tile.columns)
            finally:
                _checking = False
        if group is None:
            return _faults[key]
        if (group, kind) not in _agreed:
            _agreed[group, kind] = agree(device, _faults[key], group)
        elif _faults[key] is not None and _agreed[group, kind] is None:
            raise ValueError(f"the anchored GEMM fails on this rank alone ({_faults[key]}); use impl='fallback'")
        return _agreed[group, kind]


def agree(device: torch.device, fault_here: str | None, group: str) -> str | None:
    """This rank's fault, or that another one has one."""
    from siri_kernels.sharding import all_reduce, resolve_group

    faults = torch.tensor([fault_here is not None], dtype=torch.int32, device=device)
    all_reduce(faults, resolve_group(group))
    return fault_here if fault_here is not None or not faults.item() else "it failed on another rank of the group"


def verify(device: torch.device, tile: Tile, d_model: int, head: Kind, *, vocab_tail: int) -> str | None:
    """Compare with fp64: log-probs, entropies and gradients, with E stored, without it, and by vocabulary slices.
    vocab_tail: how many columns the last tile has, 0 = it is full."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
            stack.callback(torch.cuda.set_sync_debug_mode, torch.cuda.get_sync_debug_mode())
            torch.cuda.set_sync_debug_mode("default")  # the caller's mode is for steps, not for this
        try:
            return difference(device, tile, d_model, head, vocab_tail)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            return f"{type(error).__name__}: {lines[0][:200]}".removesuffix(": ")


def difference(device: torch.device, tile: Tile, d_model: int, head: Kind, vocab_tail: int) -> str | None:
    leaves, tensors, options = problem(device, tile, d_model, head, vocab_tail)
    for entropy_coef in (0.0, 0.01):
        loss = LossSettings(entropy_coef=entropy_coef)
        exact = outcome(torch.float64, "torch", loss, leaves, tensors, options)
        if not entropy_coef:  # from now on the anchors of a rollout: near the truth, or not so near
            tensors["rollout_logp"] = exact.logp.float() + torch.linspace(-4, 4, len(exact.logp), device=device)
        stored, lean = (
            outcome(torch.bfloat16, "anchored", loss, leaves, tensors, options, lean=lean, late=not entropy_coef)
            for lean in (False, True)
        )
        for mine in (stored, lean):
            off = {
                "log-prob": ((mine.logp - exact.logp).abs() - RELATIVE * exact.logp.abs()).max(),
                "entropy": (mine.entropy - exact.entropy).abs().max(),
                "dX": relative(mine.d_hidden, exact.d_hidden),
                "dW": relative(mine.d_weight, exact.d_weight),
            }
            for name, limit in LIMITS.items():
                if not float(off[name]) <= limit:
                    return f"{name} off by {float(off[name]):.1e}, more than {limit:.0e}"
            if not torch.equal(mine.logp, stored.logp):
                return "log-probs differ between passes that store E and passes that do not"
    return None


def relative(x: Tensor, expected: Tensor) -> Tensor:
    """Relative L2 error."""
    return (x - expected).square().sum().sqrt() / expected.square().sum().sqrt()


@dataclass(frozen=True)
class Outcome:
    logp: Tensor
    entropy: Tensor
    d_hidden: Tensor
    d_weight: Tensor


def outcome(
    dtype: torch.dtype,
    impl: str,
    loss: LossSettings,
    leaves: tuple[Tensor, Tensor],
    tensors: dict[str, Tensor | None],
    head: HeadSettings,
    *,
    lean: bool = False,
    late: bool = False,
) -> Outcome:
    """The loss and its gradients by the operators themselves, as `linear_grpo_loss` with memory "fast" or "lean"; late:
    as with a single chunk, whose dW is formed in the backward."""
    hidden, weight = (leaf.detach().to(dtype).requires_grad_() for leaf in leaves)
    bias = tensors["bias"]
    arguments: dict[str, Any] = {name: tensors[name] for name in ("target_ids", "temperature_N")}
    arguments |= {"hidden": hidden, "weight": weight, "bias": None if bias is None else bias.to(dtype)}
    arguments |= {"keep": None, "main_grad": None, "offset": None}
    tokens: dict[str, Any] = {name: tensors[name] for name in ("advantages", "rollout_logp")}
    tokens |= dict.fromkeys(("old_logp", "mask", "cu_seqlens", "denominator"))
    two_slices = hidden.shape[0] * weight.shape[0]  # of E in bf16: a step's last slice and those before it differ
    budget = two_slices if lean else budget_bytes("fast", hidden.device)
    placement = Placement(impl, budget, columns=weight.shape[0])
    if lean:
        rows = linear_logprob(**arguments, anchor=tensors["rollout_logp"], settings=LogprobSettings(head, placement))
        value = grpo_tokens(
            logp=rows.logp, entropy=rows.entropy, computed=None, **tokens, settings=TokenSettings(loss)
        ).loss
    else:
        needs = Needs(hidden=True, weight=True, bias=False)
        settings = GrpoSettings(head, loss, placement, needs, late_weight=late)
        rows = linear_grpo(**arguments, **tokens, keep_lengths=None, settings=settings)
        value = rows.loss
    d_hidden, d_weight = torch.autograd.grad(value, (hidden, weight))
    return Outcome(rows.logp.detach(), rows.entropy.detach(), d_hidden, d_weight)


def problem(
    device: torch.device, tile: Tile, d_model: int, head: Kind, vocab_tail: int
) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor | None], HeadSettings]:
    """(hidden, weight), the operators' other tensors and the head: more tiles than programs, a part of a tile of rows,
    and a few rows out of range, which are redone.

    All numbers are small multiples of powers of two, so that logits are exact in fp32 in any order of summation, and
    their rounding to bf16 has one result.
    """
    per_row, biased, capped, rounded = head
    g = torch.Generator().manual_seed(0)
    n = 2 * tile.rows + 17
    vocab = (programs_per_device(device, tile) // 3 + 2) * tile.columns + vocab_tail

    def steps(*shape: int, size: float) -> Tensor:
        return (torch.randint(-8, 9, shape, generator=g, device="cpu").float() * size).to(device)

    hidden, weight = steps(n, d_model, size=1 / 8), steps(vocab, d_model, size=1 / 16)
    hidden[::40] *= 32
    target_ids = torch.randint(vocab, (n,), generator=g, device="cpu").to(device)
    tensors: dict[str, Tensor | None] = {
        "target_ids": target_ids,
        "temperature_N": torch.linspace(0.5, 1.5, n, device=device) if per_row else None,
        "bias": steps(vocab, size=1 / 8) if biased else None,
        "advantages": steps(n, size=1.0),
        "rollout_logp": None,
    }
    settings = HeadSettings(1.0 if per_row else 0.75, 20.0 if capped else None, "bf16" if rounded else "fp32")
    return (hidden, weight), tensors, settings


def interpreted(head: Kind, *, vocab_tail: int = 0) -> str | None:
    """`verify` with the interpreter's tile."""
    tile = INTERPRETER[True]
    return verify(torch.device("cpu"), tile, tile.depth + 8, head, vocab_tail=vocab_tail)
