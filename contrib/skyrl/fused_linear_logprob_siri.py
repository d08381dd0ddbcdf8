# SPDX-License-Identifier: Apache-2.0
"""A back end of SkyRL's fused LM head: the log-prob of each target over vocabulary shards, without the logits.

For `_fused_lm_head_logprob_apply` in skyrl/backends/skyrl_train/distributed/megatron/model_utils.py of SkyRL 0.3.0,
beside FusedLinearChunkedDistributedLogprob and FusedLinearLogprobTriton, with the same arguments and result.
`chunk_size` counts tokens of the whole batch. One all-reduce of a few numbers per row and chunk; dX is this rank's
part, which the column-parallel layer's own backward sums.

Made by contrib/vendor/bundle.py of siri-kernels 0.1.0; change it there.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def all_reduce(x: Tensor, group: ProcessGroup | None) -> None:
    """Sum over the group, in place."""
    import torch.distributed as dist

    dist.all_reduce(x, group=group)


def locate(target_ids: Tensor, start: int, vocab: int) -> tuple[Tensor, Tensor]:
    """(which targets lie in [start, start + vocab), their local column [n, 1], 0 for the others)."""
    y = target_ids.long() - start
    here = (y >= 0) & (y < vocab)
    return here, torch.where(here, y, 0)[:, None]


@dataclass(frozen=True)
class Shard:
    """Where this rank's vocabulary starts; group None = the only shard."""

    start: int = 0
    group: ProcessGroup | None = None
    columns: int = 0
    """what `plan_columns` gave; 0 = those of the weight at hand"""

    @property
    def whole(self) -> bool:
        return self.group is None

    def localize(self, target_ids: Tensor, vocab: int) -> tuple[Tensor | None, Tensor]:
        """`locate` in this shard; the mask is None when the shard is the whole vocabulary."""
        return (None, target_ids.long()[:, None]) if self.whole else locate(target_ids, self.start, vocab)

    def combine(self, local: Tensor) -> Tensor:
        """Row statistics [4, n] (maximum, s_off, u_off, z_y, 0 where another shard owns y) of this shard -> of all."""
        if self.whole:
            return local
        import torch.distributed as dist

        slots = local.new_zeros(dist.get_world_size(self.group), *local.shape)
        slots[dist.get_rank(self.group)] = local
        all_reduce(slots, self.group)
        maximum, s_off, u_off, target_z = slots.unbind(1)
        top = maximum.amax(0)
        shift = maximum - top
        factor = shift.exp()
        u = torch.where(factor == 0, 0.0, s_off * shift) + u_off
        return torch.stack([top, (s_off * factor).sum(0), (u * factor).sum(0), target_z.sum(0)])

    def all_reduce_(self, x: Tensor) -> Tensor:
        """Sum over the shards, in place."""
        if not self.whole:
            all_reduce(x, self.group)
        return x


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def by_kernels(z: Tensor) -> bool:
    return z.dtype == torch.float32 and (z.is_cuda or INTERPRETED)


REDUCTIONS = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")


@contextmanager
def full_precision(dtype: torch.dtype):
    """cuBLAS's global settings as the operators need them for inputs of this dtype, put back afterwards."""
    matmul: Any = torch.backends.cuda.matmul
    if dtype == torch.float32:
        before = {"fp32_precision": matmul.fp32_precision}
        inside = {"fp32_precision": "ieee"}
    else:
        # each with whether the depth may be split at all, where torch knows that setting
        before = {name: (getattr(matmul, name), getattr(matmul, f"{name}_split_k", None)) for name in REDUCTIONS}
        before = {name: values if values[1] is not None else values[0] for name, values in before.items()}
        inside = {name: (False, old[1]) if isinstance(old, tuple) else False for name, old in before.items()}
    try:
        for name, value in inside.items():
            setattr(matmul, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(matmul, name, value)


@contextmanager
def exact_products(like: Tensor) -> Generator[None, None, None]:
    """The tensors' device is the current one, no autocast, no TF32 and no sums in half precision, whatever is set."""
    with torch.autocast(like.device.type, enabled=False):
        if not like.is_cuda:
            yield
            return
        with torch.cuda.device(like.device), full_precision(like.dtype):
            yield


def finish(maximum: Tensor, s_off: Tensor, u_off: Tensor, target_z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """logp, entropy and log sum exp(z - maximum) from the sums over the other tokens."""
    target_d = target_z - maximum
    target_e = target_d.exp()
    log_sum = torch.log1p(s_off + (target_e - 1))
    u = u_off + torch.where(target_e == 0, 0.0, target_e * target_d)
    return target_d - log_sum, log_sum - u * (-log_sum).exp(), log_sum


def gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of dlogits and of the gradient GEMMs: fp16 would lose coefficients of 1/N to its range, so fp16 inputs take
    bf16."""
    return torch.float32 if dtype == torch.float32 else torch.bfloat16


LEAST_LOGIT = -1e30  # stands in for -inf (a banned token) where 0 * inf would be NaN


@overload
def column(x: float) -> float: ...


@overload
def column(x: Tensor) -> Tensor: ...


def column(x: float | Tensor) -> float | Tensor:
    """A per-row factor [n] as [n, 1]; a number as it is."""
    return x[:, None] if isinstance(x, Tensor) else x


DLOGITS_BLOCK = 4096

UNFUSED = {"enable_fp_fusion": False}
"""Launch option of kernels in which every fused multiply-add is written: their bits are not the compiler's choice."""

WARPS = 8


def block_size(vocab: int, block: int) -> int:
    """Columns per step: always the same on a GPU, where the width of a slice of the vocabulary varies with N."""
    # the interpreter pays per operation, not per element
    return max(16, min(65536, triton.next_power_of_2(vocab))) if INTERPRETED else block


def row_stride(x: Tensor) -> int:
    """Between the rows of x [n, columns]; that of a single row may be any number, which no launch should see."""
    return x.stride(0) if x.shape[0] > 1 else x.shape[1]


def _common(z: Tensor, scale: float | Tensor, softcap: float | None, vocab_start: int, block: int) -> dict:
    """What both kernels take, by name."""
    per_row = isinstance(scale, Tensor)
    return {
        "Z": z,
        "SCALE": scale if per_row else z,
        "stride": row_stride(z),
        "V": z.shape[1],
        "scale": 1.0 if per_row else scale,
        "softcap": softcap or 1.0,
        "vocab_start": vocab_start,
        "PER_ROW": per_row,
        "SOFTCAP": softcap is not None,
        "BLOCK": block_size(z.shape[1], block),
        "num_warps": WARPS,
        **UNFUSED,
    }


FLOOR = tl.constexpr(-1e30)  # stands in for -inf (a banned token) where 0 * inf would be NaN


@triton.jit
def expm1(x):
    """exp(x) - 1 with the relative accuracy of x near 0."""
    series = x * (1 + x * 0.5 * (1 + x * 0.3333333333 * (1 + x * 0.25 * (1 + x * 0.2))))
    return tl.where(tl.abs(x) < 0.1, series, tl.exp(x) - 1)


INTERPRET = tl.constexpr(INTERPRETED)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """Round to nearest even; the interpreter's own conversion to bf16 truncates."""
    if INTERPRET and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(x != x, 0x7FC0, bits).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)


@triton.jit
def tanh(x):
    e = tl.exp(-2 * tl.abs(x))
    t = (1 - e) / (1 + e)
    return tl.where(x < 0, -t, t)


@triton.jit(do_not_specialize=["TARGET", "SCALE", "MAXIMUM", "LOG_SUM", "LOGP", "ENTROPY", "G", "H", "vocab_start"])
def dlogits_kernel(
    Z, DZ, TARGET, SCALE, MAXIMUM, LOG_SUM, LOGP, ENTROPY, G, H, stride, d_stride, V, scale, softcap, vocab_start,
    PER_ROW: tl.constexpr, SOFTCAP: tl.constexpr, WITH_H: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """DZ = dL/dz from g = dL/dlogp and h = dL/dentropy; DZ may lie over Z in the same or a narrower type, row by row
    from the same byte."""
    row = tl.program_id(0).to(tl.int64)
    z = Z + row * stride
    dz = DZ + row * d_stride
    if PER_ROW:
        scale = tl.load(SCALE + row)
    y = tl.load(TARGET + row).to(tl.int64) - vocab_start
    maximum = tl.load(MAXIMUM + row)
    log_sum = tl.load(LOG_SUM + row)
    logp = tl.load(LOGP + row)
    g = tl.load(G + row)
    target = -g * expm1(logp)
    read = tl.where(g != 0, V, 0)  # a row without a gradient is written, not read: 0 * NaN must stay 0
    h = 0.0
    entropy = 0.0
    if WITH_H:
        h = tl.load(H + row)
        entropy = tl.load(ENTROPY + row)
        p = tl.exp(logp)
        target -= h * tl.where(p == 0, 0.0, p * (logp + entropy))
        read = tl.where(h != 0, V, read)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        valid = columns < V
        x = tl.load(z + columns, mask=columns < read, other=0.0).to(tl.float32)
        slope = scale
        if SOFTCAP:
            t = tanh(x / softcap)
            x = softcap * t
            slope = scale * (1 - t * t)
        x = x * scale
        x = tl.where(x < FLOOR, FLOOR, x)
        log_p = (x - maximum) - log_sum
        d = tl.exp(log_p) * (tl.fma(-h, log_p + entropy, -g) if WITH_H else -g)
        d = tl.where(columns == y, target, d) * slope
        d = tl.where(columns < read, d, 0.0)
        # every lane has read its part of the block before any lane writes over it
        tl.debug_barrier()
        tl.store(dz + columns, narrow(d, DZ.dtype.element_ty), mask=valid)


def dlogits(
    z: Tensor,
    out: Tensor,
    target_ids: Tensor,
    scale: float | Tensor,
    softcap: float | None,
    vocab_start: int,
    maximum: Tensor,
    log_sum: Tensor,
    logp: Tensor,
    entropy: Tensor,
    g: Tensor,
    h: Tensor | None,
) -> Tensor:
    """dL/dlogits [n, V] into `out`, which may be z itself or a narrower view of the same rows."""
    n = z.shape[0]
    if n:
        common = _common(z, scale, softcap, vocab_start, DLOGITS_BLOCK)
        dlogits_kernel[(n,)](
            DZ=out, TARGET=target_ids, MAXIMUM=maximum, LOG_SUM=log_sum, LOGP=logp, ENTROPY=entropy, G=g,
            H=g if h is None else h, d_stride=out.stride(0), WITH_H=h is not None, **common,
        )  # fmt: skip
    return out


def target_gradient(logp: Tensor, entropy: Tensor, g: Tensor, h: Tensor | None) -> Tensor:
    """dL/dz of the target column (temperature aside); -expm1(logp) is 1 - p without cancellation."""
    gradient = -g * torch.expm1(logp)
    if h is None:
        return gradient
    p = logp.exp()
    return gradient - h * torch.where(p == 0, 0.0, p * (logp + entropy))


def logits_gradient(
    z: Tensor,
    out: Tensor,
    target_ids: Tensor,
    inverse_t: float | Tensor,
    shard: Shard,
    saved: tuple[Tensor, Tensor, Tensor, Tensor],
    g: Tensor,
    h: Tensor | None,
) -> Tensor:
    """dL/dz [n, V] into `out`, which may lie over z, from dL/dlogp and dL/dentropy [n]."""
    logp, entropy, maximum, log_sum = saved
    if by_kernels(z):
        numbers = maximum, log_sum, logp, entropy, g, h
        return dlogits(z, out, target_ids, inverse_t, None, shard.start, *numbers)
    scale = column(inverse_t)
    d = (z * scale).clamp_(min=LEAST_LOGIT).sub_(maximum[:, None]).sub_(log_sum[:, None])
    slope = -g[:, None] if h is None else -g[:, None] - h[:, None] * (d + entropy[:, None])
    dz = d.exp_().mul_(slope * scale)
    here, y = shard.localize(target_ids, z.shape[1])
    target = target_gradient(logp, entropy, g, h)[:, None] * scale
    dz.scatter_(1, y, target if here is None else torch.where(here[:, None], target, dz.gather(1, y)))
    return out.copy_(dz)


def narrow_view(buffer: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows of an fp32 buffer [n, V] seen as [n, V] of `dtype`, each row starting at the same byte."""
    return buffer if buffer.dtype == dtype else buffer.view(dtype)[:, : buffer.shape[1]]


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b in `dtype`, not rounded to the operands' dtype on the way."""
    if a.dtype == dtype:
        return a @ b
    return torch.mm(a, b, out_dtype=dtype) if a.is_cuda else a.to(dtype) @ b.to(dtype)


STATS_BLOCK = 2048  # two sums per lane and column: 4096 spills on sm_100


@triton.jit(do_not_specialize=["TARGET", "SCALE", "OUT", "out_stride", "vocab_start"])
def row_stats_kernel(
    Z, TARGET, SCALE, OUT, out_stride, stride, V, scale, softcap, vocab_start,
    PER_ROW: tl.constexpr, SOFTCAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """OUT[:, row] = max z, sum over j != y of exp(z_j - max), the same weighted with (z_j - max), z_y (0 in another
    shard)."""
    row = tl.program_id(0).to(tl.int64)
    z = Z + row * stride
    if PER_ROW:
        scale = tl.load(SCALE + row)
    y = tl.load(TARGET + row).to(tl.int64) - vocab_start
    maximum = tl.full((), float("-inf"), tl.float32)
    sums = tl.zeros((BLOCK,), tl.float32)
    weighted = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        valid = columns < V
        x = tl.load(z + columns, mask=valid, other=0.0).to(tl.float32)
        if SOFTCAP:
            x = softcap * tanh(x / softcap)
        x = x * scale
        x = tl.where(x < FLOOR, FLOOR, x)  # unlike maximum(), keeps NaN
        new = tl.maximum(maximum, tl.max(tl.where(valid, x, float("-inf"))))
        shift = tl.where(maximum == float("-inf"), 0.0, maximum - new)
        factor = tl.exp(maximum - new)
        d = tl.where(valid, x - new, 0.0)
        e = tl.where(valid & (columns != y), tl.exp(d), 0.0)
        weighted = tl.fma(tl.fma(sums, shift, weighted), factor, e * d)
        sums = tl.fma(sums, factor, e)
        maximum = new
    in_shard = (y >= 0) & (y < V)
    target = tl.load(z + tl.where(in_shard, y, 0)).to(tl.float32)
    if SOFTCAP:
        target = softcap * tanh(target / softcap)
    out = OUT + row
    tl.store(out, maximum)
    tl.store(out + out_stride, tl.sum(sums))
    tl.store(out + 2 * out_stride, tl.sum(weighted))
    tl.store(out + 3 * out_stride, tl.where(in_shard, target * scale, 0.0))


def row_stats(
    z: Tensor, target_ids: Tensor, scale: float | Tensor, softcap: float | None, vocab_start: int = 0
) -> Tensor:
    """[4, n] fp32: maximum, s_off, u_off and the target's logit of rows z [n, V] (any strides between rows), times
    `scale` (a number or [n])."""
    n = z.shape[0]
    out = torch.empty(4, n, dtype=torch.float32, device=z.device)
    if n:
        common = _common(z, scale, softcap, vocab_start, STATS_BLOCK)
        row_stats_kernel[(n,)](TARGET=target_ids, OUT=out, out_stride=n, **common)
    return out


def statistics(d: Tensor, e: Tensor, target_ids: Tensor, shard: Shard, *, banned: bool) -> Tensor:
    """[4, n]: maximum, s_off, u_off = sum over j != y of exp(d_j) d_j, and z_y, of this shard alone.

    In: scaled logits in d [n, V]. Out: d = z - max, e = exp(d) with 0 at the target. `banned`: -inf, a token that
    cannot be sampled, may be there.
    """
    here, y = shard.localize(target_ids, d.shape[1])
    target_z = d.gather(1, y).squeeze(1)
    if here is not None:
        target_z = torch.where(here, target_z, 0.0)
    if banned:
        d.clamp_(min=LEAST_LOGIT)
    maximum = d.amax(1)
    d.sub_(maximum[:, None])
    torch.exp(d, out=e)
    e.scatter_(
        1, y, torch.zeros_like(target_z)[:, None] if here is None else torch.where(here[:, None], 0, e.gather(1, y))
    )
    return torch.stack([maximum, e.sum(1), torch.linalg.vecdot(e, d), target_z])


def statistics_of(z: Tensor, target_ids: Tensor, inverse_t: float | Tensor, shard: Shard) -> Tensor:
    """[4, n] of logits z [n, V] times inverse_t, over all shards: maximum, sums without the target, target's logit."""
    if by_kernels(z):
        return shard.combine(row_stats(z, target_ids, inverse_t, None, shard.start))
    d = z * column(inverse_t)
    return shard.combine(statistics(d, torch.empty_like(d), target_ids, shard, banned=True))


class LinearLogProb(torch.autograd.Function):
    """hidden [N, D] and weight [V, D] in one dtype, target_ids [N], 1/temperature (a number or [N]) -> log-prob and
    entropy [N], fp32 (fp64 of fp64). The logits of `chunk_rows` rows are there at a time, and are made again in the
    backward; dW is summed in fp32. With shards of the vocabulary dX is this shard's part of it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        target_ids: Tensor,
        inverse_t: float | Tensor,
        shard: Shard,
        chunk_rows: int,
    ) -> tuple[Tensor, Tensor]:
        n = hidden.shape[0]
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        saved = torch.empty(4, n, dtype=dtype, device=hidden.device)
        with exact_products(hidden):
            for start in range(0, n, chunk_rows):
                rows = slice(start, start + chunk_rows)
                scale = inverse_t[rows] if isinstance(inverse_t, Tensor) else inverse_t
                stats = statistics_of(product(hidden[rows], weight.T, dtype), target_ids[rows], scale, shard)
                saved[0, rows], saved[1, rows], saved[3, rows] = finish(*stats.unbind())
                saved[2, rows] = stats[0]
        per_token = inverse_t if isinstance(inverse_t, Tensor) else None
        ctx.save_for_backward(hidden, weight, target_ids, per_token, saved)
        ctx.set_materialize_grads(False)
        ctx.number, ctx.shard, ctx.chunk_rows = inverse_t, shard, chunk_rows
        return saved[0].clone(), saved[1].clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, target_ids, per_token, saved = ctx.saved_tensors
        g, h = (None if x is None else x.to(saved.dtype).contiguous() for x in grad_outputs)
        g = torch.zeros_like(saved[0]) if g is None else g
        operand = gradient_dtype(hidden.dtype) if hidden.dtype != torch.float64 else hidden.dtype
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight, dtype=saved.dtype) if ctx.needs_input_grad[1] else None
        with exact_products(hidden):
            narrow_weight = weight.to(operand)
            for start in range(0, hidden.shape[0], ctx.chunk_rows):
                rows = slice(start, start + ctx.chunk_rows)
                scale = ctx.number if per_token is None else per_token[rows]
                x, h_rows = hidden[rows], None if h is None else h[rows]
                z = product(x, weight.T, saved.dtype)
                numbers = saved[0, rows], saved[1, rows], saved[2, rows], saved[3, rows]
                out = narrow_view(z, operand) if by_kernels(z) else torch.empty_like(z, dtype=operand)
                dz = logits_gradient(z, out, target_ids[rows], scale, ctx.shard, numbers, g[rows], h_rows)
                if d_hidden is not None:
                    d_hidden[rows] = product(dz, narrow_weight, saved.dtype).to(hidden.dtype)
                if d_weight is not None:
                    d_weight += product(dz.T, x.to(operand), saved.dtype)
        return d_hidden, None if d_weight is None else d_weight.to(weight.dtype), None, None, None, None


class FusedLinearLogprobSiri:
    @staticmethod
    def apply(
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        vocab_start_index: int,
        vocab_end_index: int,
        chunk_size: int,
        tp_group: ProcessGroup | None,
        inference_only: bool = False,
    ) -> Tensor:
        """hidden [B, S, D], weight [V/TP, D], target [B, S] of the whole vocabulary -> log-probs [B, S] of all shards,
        fp32. Ranks need shards of equal size."""
        if weight.shape[0] != vocab_end_index - vocab_start_index:
            raise ValueError(f"weight {list(weight.shape)} is no shard [{vocab_start_index}, {vocab_end_index})")
        group = tp_group
        if group is not None and torch.distributed.get_world_size(group) == 1:
            group = None
        x = hidden.reshape(-1, hidden.shape[-1]).to(weight.dtype).contiguous()
        shard = Shard(vocab_start_index, group)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not inference_only):
            logp, _ = LinearLogProb.apply(x, weight, target.reshape(-1).contiguous(), 1.0, shard, chunk_size)
        return logp.view(target.shape)
