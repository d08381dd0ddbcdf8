"""verl's two fused heads, written from its published algorithms, because verl itself is seldom installed beside us.

Both are Apache-2.0 designs of verl-project/verl: `FusedLinearForPPO` of utils/experimental/torch_functional.py and the
linear cross-entropy of utils/kernel/kernels.py in its default backward (dlogits split along the vocabulary). The code
is ours; tiles, chunk sizes, dtypes of what is stored and accumulated, and the order of the GEMMs are theirs. Both
return (logp, entropy) and recompute the logits in the backward: 8NDV.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS = 512  # FusedLinearForPPO's chunk
FORWARD_SPLIT = 1024  # vocabulary of one program of the forward
BACKWARD_SPLIT = 9504  # vocabulary of one slice of dlogits
TILE = {"BM": 128, "BN": 256, "BK": 32}
LAUNCH = {"num_warps": 8, "num_stages": 3}


class Torch512(torch.autograd.Function):
    """Chunks of 512 tokens, logits rounded to the input's dtype before the fp32 softmax, dW accumulated in it."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, target_ids: Tensor) -> tuple[Tensor, Tensor]:
        logp = torch.empty(hidden.shape[0], device=hidden.device)
        entropy = hidden.new_empty(hidden.shape[0])
        for start in range(0, hidden.shape[0], TOKENS):
            part = slice(start, start + TOKENS)
            z = (hidden[part] @ weight.T).float()
            entropy[part] = z.logsumexp(-1) - (z.softmax(-1) * z).sum(-1)
            logp[part] = z.log_softmax(-1).gather(-1, target_ids[part, None]).squeeze(-1)
        ctx.save_for_backward(hidden, weight, target_ids)
        ctx.set_materialize_grads(False)
        return logp, entropy

    @staticmethod
    def backward(ctx, d_logp: Tensor | None, d_entropy: Tensor | None):
        hidden, weight, target_ids = ctx.saved_tensors
        d_hidden, d_weight = torch.zeros_like(hidden), torch.zeros_like(weight)
        for start in range(0, hidden.shape[0], TOKENS):
            part = slice(start, start + TOKENS)
            z = (hidden[part] @ weight.T).float()
            p = z.softmax(-1)
            dz = torch.zeros_like(z)
            if d_logp is not None:
                one_hot = torch.zeros_like(z).scatter_(-1, target_ids[part, None], 1)
                dz += d_logp[part, None] * (one_hot - p)
            if d_entropy is not None:
                entropy = z.logsumexp(-1) - (p * z).sum(-1)
                dz -= d_entropy[part, None].float() * p * (z.log_softmax(-1) + entropy[:, None])
            dz = dz.to(hidden.dtype)
            d_hidden[part] += dz @ weight
            d_weight += dz.T @ hidden[part]
        return d_hidden, d_weight, None


@triton.jit
def _logits(
    HIDDEN, WEIGHT, rows, columns, n, limit, V, D,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """One [BM, BN] tile of logits, fp32. Columns at or past `limit` belong to nobody here."""
    z = tl.zeros((BM, BN), tl.float32)
    if TMA:
        x_tile = tl.make_tensor_descriptor(HIDDEN, shape=[n, D], strides=[D, 1], block_shape=[BM, BK])
        w_tile = tl.make_tensor_descriptor(WEIGHT, shape=[V, D], strides=[D, 1], block_shape=[BN, BK])
        for k in range(tl.cdiv(D, BK)):
            z = tl.dot(x_tile.load([rows, k * BK]), w_tile.load([columns, k * BK]).T, z)
    else:
        i = (rows + tl.arange(0, BM)).to(tl.int64)
        j = (columns + tl.arange(0, BN)).to(tl.int64)
        for k in range(tl.cdiv(D, BK)):
            depth = k * BK + tl.arange(0, BK)
            x = tl.load(HIDDEN + i[:, None] * D + depth[None], mask=(i[:, None] < n) & (depth[None] < D), other=0.0)
            w = tl.load(WEIGHT + j[:, None] * D + depth[None], mask=(j[:, None] < limit) & (depth[None] < D), other=0.0)
            z = tl.dot(x, tl.trans(w), z)
    return z


@triton.jit
def forward_kernel(
    HIDDEN, WEIGHT, TARGET, MAXIMUM, SUM, WEIGHTED, TARGET_Z, n, V, D,
    SPLIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Running maximum, sum and logit-weighted sum of one split of the vocabulary; logits stay in registers."""
    blocks = tl.cdiv(n, BM)
    row, split = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    i = row * BM + tl.arange(0, BM)
    y = tl.load(TARGET + i, mask=i < n, other=-1)
    maximum = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    weighted = tl.zeros((BM,), tl.float32)
    target = tl.zeros((BM,), tl.float32)
    end = tl.minimum((split + 1) * SPLIT, V)
    for tile in range(SPLIT // BN):
        start = split * SPLIT + tile * BN
        j = start + tl.arange(0, BN)
        z = _logits(HIDDEN, WEIGHT, row * BM, start, n, end, V, D, BM, BN, BK, TMA)
        bounded = tl.where(j[None] < end, z, float("-inf"))
        new = tl.maximum(maximum, tl.max(bounded, 1))
        e = tl.exp(bounded - new[:, None])  # finite: the first tile of a split is never empty
        factor = tl.exp(maximum - new)
        total = total * factor + tl.sum(e, 1)
        weighted = weighted * factor + tl.sum(z * e, 1)
        target += tl.sum(tl.where(j[None] == y[:, None], z, 0.0), 1)
        maximum = new
    out = split.to(tl.int64) * n + i
    tl.store(MAXIMUM + out, maximum, mask=i < n)
    tl.store(SUM + out, total, mask=i < n)
    tl.store(WEIGHTED + out, weighted, mask=i < n)
    tl.store(TARGET_Z + i, target, mask=(i < n) & (y >= split * SPLIT) & (y < end))


@triton.jit
def backward_kernel(
    HIDDEN, WEIGHT, TARGET, LSE, MEAN_Z, D_LOGP, D_ENTROPY, DZ, split, n, V, D,
    SPLIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """dlogits of one slice of the vocabulary, from recomputed logits."""
    rows, columns = tl.cdiv(n, BM), tl.cdiv(SPLIT, BN)
    pid = tl.program_id(0)
    first = pid // (GROUP * columns) * GROUP
    size = tl.minimum(rows - first, GROUP)
    row = first + pid % (GROUP * columns) % size
    column = pid % (GROUP * columns) // size
    i = row * BM + tl.arange(0, BM)
    local = column * BN + tl.arange(0, BN)
    j = split * SPLIT + local
    end = tl.minimum((split + 1) * SPLIT, V)
    lse = tl.load(LSE + i, mask=i < n, other=0.0)
    mean = tl.load(MEAN_Z + i, mask=i < n, other=0.0)
    g = tl.load(D_LOGP + i, mask=i < n, other=0.0)
    h = tl.load(D_ENTROPY + i, mask=i < n, other=0.0)
    y = tl.load(TARGET + i, mask=i < n, other=-1)
    z = _logits(HIDDEN, WEIGHT, row * BM, split * SPLIT + column * BN, n, end, V, D, BM, BN, BK, TMA)
    p = tl.exp(z - lse[:, None])
    dz = g[:, None] * ((j[None] == y[:, None]).to(tl.float32) - p)
    dz -= h[:, None] * p * (z - mean[:, None])
    place = i[:, None].to(tl.int64) * SPLIT + local[None]
    tl.store(DZ + place, dz.to(DZ.dtype.element_ty), mask=(i[:, None] < n) & (local[None] < SPLIT))


def with_tma(x: Tensor) -> bool:
    """As in verl: tensor descriptors made on the device from Hopper on; they need memory from an allocator."""
    if x.device.type != "cuda" or torch.cuda.get_device_capability(x.device)[0] < 9:
        return False
    triton.set_allocator(lambda size, _align, _stream: torch.empty(size, dtype=torch.int8, device=x.device))
    return True


class TritonSplit(torch.autograd.Function):
    """Forward: one kernel over 1024-wide splits. Backward: 9504-wide slices of dlogits in the input's dtype, each
    followed by two GEMMs; dX is accumulated in the input's dtype, dW written once."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, target_ids: Tensor) -> tuple[Tensor, Tensor]:
        (n, d), vocab = hidden.shape, weight.shape[0]
        splits = triton.cdiv(vocab, FORWARD_SPLIT)
        maximum, total, weighted = torch.empty(3, splits, n, device=hidden.device)
        target = torch.empty(n, device=hidden.device)
        grid = (triton.cdiv(n, TILE["BM"]) * splits,)
        forward_kernel[grid](
            hidden, weight, target_ids, maximum, total, weighted, target, n, vocab, d,
            SPLIT=FORWARD_SPLIT, TMA=with_tma(hidden), **TILE, **LAUNCH,
        )  # fmt: skip
        factor = (maximum - maximum.amax(0)).exp()
        total = (total * factor).sum(0)
        mean = (weighted * factor).sum(0) / total
        lse = maximum.amax(0) + total.log()
        ctx.save_for_backward(hidden, weight, target_ids, lse, mean)
        return target - lse, lse - mean

    @staticmethod
    def backward(ctx, d_logp: Tensor, d_entropy: Tensor):
        hidden, weight, target_ids, lse, mean = ctx.saved_tensors
        (n, d), vocab = hidden.shape, weight.shape[0]
        d_hidden, d_weight = torch.empty_like(hidden), torch.empty_like(weight)
        dz = hidden.new_empty(n, BACKWARD_SPLIT)
        grid = (triton.cdiv(n, TILE["BM"]) * triton.cdiv(BACKWARD_SPLIT, TILE["BN"]),)
        d_logp, d_entropy = d_logp.float().contiguous(), d_entropy.float().contiguous()
        for split in range(triton.cdiv(vocab, BACKWARD_SPLIT)):
            columns = slice(split * BACKWARD_SPLIT, min((split + 1) * BACKWARD_SPLIT, vocab))
            backward_kernel[grid](
                hidden, weight, target_ids, lse, mean, d_logp, d_entropy, dz, split, n, vocab, d,
                SPLIT=BACKWARD_SPLIT, GROUP=16, TMA=with_tma(hidden), **TILE, **LAUNCH,
            )  # fmt: skip
            part = dz if columns.stop - columns.start == BACKWARD_SPLIT else dz[:, : columns.stop - columns.start]
            part = part.contiguous()
            if split == 0:
                torch.matmul(part, weight[columns], out=d_hidden)
            else:
                d_hidden += torch.matmul(part, weight[columns])
            torch.matmul(part.T, hidden, out=d_weight[columns])
        return d_hidden, d_weight, None
