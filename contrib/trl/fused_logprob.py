"""Per-token log-probs and entropies of an LM head, with the gradient of a loss of them, in three matrix products.

An operator that returns differentiable log-probs has to compute the logits twice, because the loss is not known when
they are there: 8NDV operations. Where the loss says what it wants of each token, dL/dlogp and dL/dentropy, as numbers
or as a function of the token's log-prob, the gradient is formed while the logits of a chunk are there: 6NDV, and no
logits of the batch either way.

    result = fused_logprob(hidden, weight, targets, coefficients, rows=rows)
    loss = value_of_the_loss.detach() + result.carrier - result.carrier.detach()

N tokens, D hidden size, V vocabulary, R rows of a chunk. Needs torch; uses Triton on CUDA, and the same arithmetic in
torch elsewhere. Traced by torch.compile(fullgraph=True), coefficients and all.
"""

# Python before 3.14 evaluates annotations at definition, and tl exists with Triton only
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton on this platform: the torch path
    triton = None

Coefficients = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(logp [R], entropy [R], rows [R]: their places among the N tokens) -> dL/dlogp [R], dL/dentropy [R] or None"""

LOGIT_BYTES = {"cpu": 16 << 20, "cuda": 1 << 30}
"""of the buffer that holds a chunk's logits"""
BLOCK = 2048


class FusedLogProb(NamedTuple):
    """Values without gradient, 0 at rows left out; and what carries the gradient of the loss."""

    logp: Tensor
    """[N] fp32"""
    entropy: Tensor
    """[N] fp32"""
    carrier: Tensor
    """scalar: sum of dL/dlogp * logp + dL/dentropy * entropy; its backward gives dL/dhidden, dL/dweight, dL/dbias"""


def fused_logprob(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    coefficients: Coefficients | tuple[Tensor, Tensor | None],
    *,
    bias_V: Tensor | None = None,
    rows: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    chunk_rows: int | None = None,
) -> FusedLogProb:
    """Log-prob of each target and entropy under softmax(cap(logit_scale * (hidden @ weight.T + bias)) / temperature).

    hidden_ND and weight_VD in one of bf16, fp16, fp32; targets_N int. coefficients: dL/dlogp and dL/dentropy [N], or a
    function that makes them of a chunk (`Coefficients`). rows: index [K] of the tokens that count; no other enters a
    matrix product. ValueError where shapes or dtypes do not fit.
    """
    _check(hidden_ND, weight_VD, targets_N, bias_V, temperature, softcap)
    function = coefficients if callable(coefficients) else _given(coefficients, targets_N)
    head = _Head(weight_VD.detach(), None if bias_V is None else bias_V.detach(), temperature, softcap, logit_scale)
    grad = torch.is_grad_enabled()
    needs = [grad and x is not None and x.requires_grad for x in (hidden_ND, weight_VD, bias_V)]
    with torch.no_grad():
        logp, entropy, carrier, gradients = _chunks(
            hidden_ND.detach(), head, targets_N, function, rows, needs, chunk_rows
        )
    if any(needs):
        carrier = _Carry.apply(carrier, hidden_ND, weight_VD, bias_V, *gradients)
    return FusedLogProb(logp, entropy, carrier)


class _Head(NamedTuple):
    weight: Tensor
    bias: Tensor | None
    temperature: float
    softcap: float | None
    scale: float


def _check(hidden, weight, targets, bias, temperature, softcap) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden [N, D] and weight [V, D], got {list(hidden.shape)} and {list(weight.shape)}")
    if hidden.dtype != weight.dtype or not hidden.is_floating_point():
        raise ValueError(f"hidden and weight in one floating dtype, got {hidden.dtype} and {weight.dtype}")
    if targets.shape != hidden.shape[:1] or targets.is_floating_point():
        raise ValueError(f"targets must be integers [{hidden.shape[0]}], got {targets.dtype} {list(targets.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}], got {list(bias.shape)}")
    if temperature <= 0 or (softcap is not None and softcap <= 0):
        raise ValueError(f"temperature and softcap must be positive, got {temperature} and {softcap}")


def _given(coefficients: tuple[Tensor, Tensor | None], targets: Tensor) -> Coefficients:
    g, h = coefficients
    for name, x in (("dL/dlogp", g), ("dL/dentropy", h)):
        if x is not None and x.shape != targets.shape:
            raise ValueError(f"{name} must be {list(targets.shape)}, got {list(x.shape)}")
    return lambda _logp, _entropy, rows: (g[rows], None if h is None else h[rows])


def _chunks(hidden, head: _Head, targets, coefficients: Coefficients, rows, needs, chunk_rows):
    n, (vocab, d) = hidden.shape[0], head.weight.shape
    rows = torch.arange(n, device=hidden.device) if rows is None else rows
    exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    logp, entropy = (torch.zeros(n, device=hidden.device, dtype=exact) for _ in range(2))
    carrier = torch.zeros((), device=hidden.device, dtype=exact)
    d_hidden = torch.zeros_like(hidden) if needs[0] else None
    d_weight = torch.zeros(vocab, d, device=hidden.device, dtype=exact) if needs[1] else None
    d_bias = torch.zeros(vocab, device=hidden.device, dtype=exact) if needs[2] else None
    size = chunk_rows or max(16, LOGIT_BYTES.get(hidden.device.type, 1 << 28) // (4 * vocab))
    for start in range(0, rows.shape[0], size):
        here = rows[start : start + size]
        x, y = hidden[here], targets[here].long()
        z = _product(x, head.weight.T, exact)
        if head.bias is not None:
            z += head.bias
        log_z, chunk_entropy, target = _statistics(z, y, head)
        chunk_logp = target - log_z
        logp[here], entropy[here] = chunk_logp, chunk_entropy
        g, h = coefficients(chunk_logp, chunk_entropy, here)
        g = g.to(exact)
        carrier += (g * chunk_logp).sum()
        if h is not None:
            h = h.to(exact)
            carrier += (h * chunk_entropy).sum()
        if not any(needs):
            continue
        dz = _gradient(z, y, log_z, chunk_entropy, g, h, head).to(hidden.dtype)
        if d_hidden is not None:
            d_hidden[here] = _product(dz, head.weight, exact).to(hidden.dtype)
        if d_weight is not None:
            d_weight += _product(dz.T, x, exact)
        if d_bias is not None:
            d_bias += dz.sum(0, dtype=exact)
    return logp, entropy, carrier, (d_hidden, d_weight, d_bias)


def _product(a: Tensor, b: Tensor, exact: torch.dtype) -> Tensor:
    """a @ b in fp32, not rounded to the operands' dtype on the way."""
    if a.dtype == exact:
        return a @ b
    return torch.mm(a, b, out_dtype=exact) if a.device.type == "cuda" else a.to(exact) @ b.to(exact)


def _scaled(z: Tensor, head: _Head) -> Tensor:
    """What the softmax takes."""
    z = z * head.scale
    if head.softcap is not None:
        z = head.softcap * torch.tanh(z / head.softcap)
    return z / head.temperature


def _statistics(z: Tensor, y: Tensor, head: _Head) -> tuple[Tensor, Tensor, Tensor]:
    """log-sum, entropy and the target's scaled logit of each row, [R]."""
    if triton is not None and z.is_cuda and z.dtype == torch.float32:
        return _triton_statistics(z, y, head)
    s = _scaled(z, head)
    top = s.amax(-1)
    below = s - top[:, None]  # near 0 where it counts, so that the entropy does not cancel
    e = below.exp()
    total = e.sum(-1)
    return top + total.log(), total.log() - (e * below).sum(-1) / total, s.gather(1, y[:, None]).squeeze(1)


def _gradient(z: Tensor, y: Tensor, log_z: Tensor, entropy: Tensor, g: Tensor, h: Tensor | None, head: _Head) -> Tensor:
    """dL/dz [R, V]; z may be overwritten."""
    if triton is not None and z.is_cuda and z.dtype == torch.float32:
        return _triton_gradient(z, y, log_z, entropy, g, h, head)
    log_p = _scaled(z, head) - log_z[:, None]
    p = log_p.exp()
    ds = -g[:, None] * p
    ds.scatter_add_(1, y[:, None], g[:, None])
    if h is not None:
        ds -= h[:, None] * p * (log_p + entropy[:, None])
    if head.softcap is not None:
        ds *= 1 - torch.tanh(z * head.scale / head.softcap) ** 2
    return ds * (head.scale / head.temperature)


class _Carry(torch.autograd.Function):
    """A number whose gradient is known."""

    @staticmethod
    def forward(ctx, carrier, hidden, weight, bias, d_hidden, d_weight, d_bias):
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        return carrier.clone()

    @staticmethod
    def backward(ctx, upstream):
        gradients = [
            None if x is None else (x * upstream).to(dtype)
            for x, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return None, *gradients, None, None, None


if triton is not None:

    @triton.jit
    def _softmax_input(z, scale, softcap, inverse_t, CAPPED: tl.constexpr):
        z = z * scale
        if CAPPED:
            z = softcap * (2 * tl.sigmoid(2 * z / softcap) - 1)
        return z * inverse_t

    @triton.jit
    def _statistics_kernel(
        z_ptr, y_ptr, log_z_ptr, entropy_ptr, target_ptr, stride, vocab, scale, softcap, inverse_t,
        CAPPED: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        start_ptr = z_ptr + row * stride
        lanes = tl.arange(0, BLOCK)
        top = tl.full((), -float("inf"), tl.float32)
        total = tl.zeros((), tl.float32)
        weighted = tl.zeros((), tl.float32)
        for start in range(0, vocab, BLOCK):
            at = start + lanes
            there = at < vocab
            s = _softmax_input(tl.load(start_ptr + at, mask=there, other=0.0), scale, softcap, inverse_t, CAPPED)
            new_top = tl.maximum(top, tl.max(tl.where(there, s, -float("inf")), 0))
            kept = tl.exp(top - new_top)
            e = tl.where(there, tl.exp(s - new_top), 0.0)
            # weighted is the sum of e (s - top), so that the entropy does not cancel
            moved = tl.where(total > 0, total * (top - new_top), 0.0)
            weighted = (weighted + moved) * kept + tl.sum(tl.where(there, e * (s - new_top), 0.0), 0)
            total = total * kept + tl.sum(e, 0)
            top = new_top
        log_z = top + tl.log(total)
        tl.store(log_z_ptr + row, log_z)
        tl.store(entropy_ptr + row, tl.log(total) - weighted / total)
        target = tl.load(start_ptr + tl.load(y_ptr + row))
        tl.store(target_ptr + row, _softmax_input(target, scale, softcap, inverse_t, CAPPED))

    @triton.jit
    def _gradient_kernel(
        z_ptr, y_ptr, log_z_ptr, entropy_ptr, g_ptr, h_ptr, stride, vocab, scale, softcap, inverse_t,
        CAPPED: tl.constexpr, ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        there = at < vocab
        place = z_ptr + row * stride + at
        z = tl.load(place, mask=there, other=0.0)
        s = _softmax_input(z, scale, softcap, inverse_t, CAPPED)
        log_p = s - tl.load(log_z_ptr + row)
        p = tl.exp(log_p)
        g = tl.load(g_ptr + row)
        ds = g * ((at == tl.load(y_ptr + row)).to(tl.float32) - p)
        if ENTROPY:
            ds -= tl.load(h_ptr + row) * p * (log_p + tl.load(entropy_ptr + row))
        if CAPPED:
            t = 2 * tl.sigmoid(2 * z * scale / softcap) - 1
            ds *= 1 - t * t
        tl.store(place, ds * scale * inverse_t, mask=there)


def _triton_statistics(z: Tensor, y: Tensor, head: _Head) -> tuple[Tensor, Tensor, Tensor]:
    out = [torch.empty(z.shape[0], device=z.device, dtype=torch.float32) for _ in range(3)]
    numbers = (z.stride(0), z.shape[1], head.scale, head.softcap or 1.0, 1 / head.temperature)
    _statistics_kernel[(z.shape[0],)](z, y, *out, *numbers, CAPPED=head.softcap is not None, BLOCK=BLOCK)
    return out[0], out[1], out[2]


def _triton_gradient(z, y, log_z, entropy, g, h, head: _Head) -> Tensor:
    """In the place of z."""
    numbers = (z.stride(0), z.shape[1], head.scale, head.softcap or 1.0, 1 / head.temperature)
    grid = (z.shape[0], triton.cdiv(z.shape[1], BLOCK))
    switches = {"CAPPED": head.softcap is not None, "ENTROPY": h is not None, "BLOCK": BLOCK}
    per_row = (log_z, entropy, g.contiguous(), g if h is None else h.contiguous())
    _gradient_kernel[grid](z, y, *per_row, *numbers, **switches)
    return z
