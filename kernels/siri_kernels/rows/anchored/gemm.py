"""The GEMM whose epilogue is the softmax: E = exp(z - b) from the fp32 accumulator, with row offsets b known before.

Logits z = scale * softcap(x W^T + bias) never reach memory. b_i is near the row's log-sum-exp, so that E lies near the
probabilities and one pass gives their sum; `anchored.rows` has the mathematics. Everything is in units of log2:
u = log2(e) z - b2, E = 2^u. The target's column is left out of E and of the sums; its u is kept.

Two kernels, one epilogue: one that moves tiles by tensor descriptors (TMA on sm_90 and later), and one on plain
pointers for older GPUs, odd strides, and for single rows that have to be done again. A tile and the order of its
sums do not depend on the number of rows: a row's result has the same bits wherever it lies in a batch.
"""

# What @triton.jit makes of a function no type checker knows: a launch takes other arguments, a constexpr is a number.
# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

from contextvars import copy_context
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from siri_kernels.rows.anchored.tiles import Tile, compensation, pick_tile, programs_per_device
from siri_kernels.rows.kernels import FLOOR, INTERPRET, narrow, row_stride, tanh

# never specialised (rows.kernels): what varies with the rows of a launch, or where they start in a batch
PER_ROW_ARGUMENTS = (
    *("TARGET_IDS", "SCALE", "B2", "PARTIALS", "TARGET"),
    *("n", "stride", "vocab_start", "programs"),
)


@triton.jit
def dot(a, b, acc):
    if INTERPRET:  # its bf16 product is wrong
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def epilogue(
    z, scale, b2, y, first, BIAS, V, softcap, HAS_BIAS: tl.constexpr, ROUND: tl.constexpr, SOFTCAP: tl.constexpr,
    SLOPE: tl.constexpr, ONLINE: tl.constexpr, SUMS: tl.constexpr, ENTROPY: tl.constexpr, MASK: tl.constexpr,
    BRANCH: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """From raw logits z [M, WIDTH] of the columns from `first` on: E as it is stored, and per row the offset, sum E,
    sum E u, and the target's u (ONLINE: its logit) where it is among the columns."""
    columns = first + tl.arange(0, WIDTH)
    if HAS_BIAS:
        bias = tl.load(BIAS + columns, mask=columns < V, other=0.0).to(tl.float32)
        z = z + bias[None, :]
    if ROUND:
        z = narrow(z, tl.bfloat16).to(tl.float32)
    slope = z
    if SOFTCAP:
        t = tanh(z / softcap)
        z = t * softcap
        slope = 1 - t * t
    target = b2
    if ONLINE:
        u = z * scale[:, None]
        u = tl.where(u < FLOOR, FLOOR, u)
        keep = columns[None, :] != y[:, None]
        target = tl.sum(tl.where(keep, 0.0, u), 1)
        keep = keep & (columns < V)[None, :]
        u = tl.where(keep, u, FLOOR)
        b2 = tl.max(u, 1)
        u = u - b2[:, None]
        e = tl.where(keep, tl.exp2(u), 0.0)
    else:
        u = tl.fma(z, scale[:, None], -b2[:, None])
        if HAS_BIAS:  # -inf: a banned token
            u = tl.where(u < FLOOR, FLOOR, u)
        special = True
        if BRANCH:  # few tiles hold a target of their rows: the others are spared two instructions per logit
            special = tl.max(((y >= first) & (y < first + WIDTH)).to(tl.int32), 0) > 0
            if MASK:
                special = special | (first + WIDTH > V)
        if special:
            keep = columns[None, :] != y[:, None]
            if SUMS:
                target = tl.sum(tl.where(keep, 0.0, u), 1)
            if MASK:
                keep = keep & (columns < V)[None, :]
            u = tl.where(keep, u, FLOOR)
        e = tl.exp2(u)
    total = tl.sum(e, 1)
    weighted = total
    if ENTROPY:
        weighted = tl.sum(e * u, 1)
    if SOFTCAP and SLOPE:
        e = e * slope
    return e, b2, total, weighted, target


@triton.jit
def put_rows(
    PARTIALS, TARGET, slot, rows, valid, tile_n, tiles, stride, y, first, width, offset, total, weighted, target,
    SUMS: tl.constexpr, ENTROPY: tl.constexpr, ONLINE: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """PARTIALS [3, tiles, stride]: sums, weighted sums and (online) offsets of one tile's rows."""
    at = PARTIALS + tile_n.to(tl.int64) * stride + slot
    plane = tiles.to(tl.int64) * stride
    if SUMS:
        tl.store(at, total, mask=valid)
        if ENTROPY:
            tl.store(at + plane, weighted, mask=valid)
        if ONLINE:
            tl.store(at + 2 * plane, offset, mask=valid)
        tl.store(TARGET + rows, target, mask=valid & (y >= first) & (y < first + width))


@triton.jit
def tile_of(t, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Tiles in groups of row tiles, row tiles innermost."""
    per_group = GROUP * tiles_n
    first = t // per_group * GROUP
    size = min(tiles_m - first, GROUP)
    return first + t % per_group % size, t % per_group // size


@triton.jit(do_not_specialize=[*PER_ROW_ARGUMENTS, "V", "x_stride", "w_stride", "e_stride"])
def descriptor_kernel(
    X, W, E, TARGET_IDS, SCALE, B2, BIAS, PARTIALS, TARGET, n, V, D, stride, x_stride, w_stride, e_stride, scale,
    softcap, vocab_start, programs, PER_ROW: tl.constexpr, HAS_BIAS: tl.constexpr, ROUND: tl.constexpr,
    SOFTCAP: tl.constexpr, SLOPE: tl.constexpr, STORE: tl.constexpr, SUMS: tl.constexpr, ENTROPY: tl.constexpr,
    MASK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SUBTILES: tl.constexpr,
    GROUP: tl.constexpr, SPECIALIZED: tl.constexpr,
):  # fmt: skip
    """E [n, V] and the partial sums of all rows; X, W, E are tensor descriptors, or SPECIALIZED the tensors.

    Persistent, and the loads of the next tile run under the epilogue of this one: the loop is flattened, or some warps
    do nothing but load."""
    FLAT: tl.constexpr = not SPECIALIZED
    PART: tl.constexpr = BN // SUBTILES
    if SPECIALIZED:  # the compiler splits tiles among groups of warps, and only descriptors that it makes itself
        X = tl.make_tensor_descriptor(X, [n, D], [x_stride, 1], [BM, BK])
        W = tl.make_tensor_descriptor(W, [V, D], [w_stride, 1], [BN, BK])
        if STORE:
            E = tl.make_tensor_descriptor(E, [n, V], [e_stride, 1], [BM, PART])
    tiles_m, tiles_n = tl.cdiv(n, BM), tl.cdiv(V, BN)
    steps = tl.cdiv(D, BK)
    for t in tl.range(tl.program_id(0), tiles_m * tiles_n, programs, flatten=FLAT, warp_specialize=SPECIALIZED):
        m, tile_n = tile_of(t, tiles_m, tiles_n, GROUP)
        acc = tl.zeros((BM, BN), tl.float32)
        for k in range(steps):
            acc = dot(X.load([m * BM, k * BK]), W.load([tile_n * BN, k * BK]).T, acc)
        rows = m * BM + tl.arange(0, BM)
        valid = rows < n
        first = tile_n * BN
        y = (tl.load(TARGET_IDS + rows, mask=valid, other=0) - vocab_start).to(tl.int32)
        b2 = tl.load(B2 + rows, mask=valid, other=0.0)
        if PER_ROW:
            factor = tl.load(SCALE + rows, mask=valid, other=1.0) * scale
        else:
            factor = tl.full((BM,), 1.0, tl.float32) * scale
        if SUBTILES == 1:
            e, offset, total, weighted, target = epilogue(
                acc, factor, b2, y, first, BIAS, V, softcap, HAS_BIAS, ROUND, SOFTCAP, SLOPE, False, SUMS, ENTROPY,
                MASK, FLAT, BN
            )  # fmt: skip
            if STORE:
                E.store([m * BM, first], narrow(e, tl.bfloat16))
        else:
            left, right = tl.split(tl.permute(tl.reshape(acc, (BM, 2, PART)), (0, 2, 1)))
            e, offset, total, weighted, target = epilogue(
                left, factor, b2, y, first, BIAS, V, softcap, HAS_BIAS, ROUND, SOFTCAP, SLOPE, False, SUMS, ENTROPY,
                MASK, FLAT, PART
            )  # fmt: skip
            if STORE:
                E.store([m * BM, first], narrow(e, tl.bfloat16))
            e, offset, total1, weighted1, target1 = epilogue(
                right, factor, b2, y, first + PART, BIAS, V, softcap, HAS_BIAS, ROUND, SOFTCAP, SLOPE, False,
                SUMS, ENTROPY, MASK, FLAT, PART
            )  # fmt: skip
            if STORE:
                E.store([m * BM, first + PART], narrow(e, tl.bfloat16))
            total, weighted = total + total1, weighted + weighted1
            target = tl.where(y < first + PART, target, target1)
        put_rows(
            PARTIALS, TARGET, rows, rows, valid, tile_n, tiles_n, stride, y, first, BN, offset, total, weighted,
            target, SUMS, ENTROPY, False, ROUND
        )  # fmt: skip


@triton.jit(do_not_specialize=[*PER_ROW_ARGUMENTS, "ROWS", "COUNT"])
def pointer_kernel(
    X, W, E, TARGET_IDS, SCALE, B2, BIAS, PARTIALS, TARGET, ROWS, COUNT, n, V, D, stride, x_stride, w_stride, e_stride,
    scale, softcap, vocab_start, programs, PER_ROW: tl.constexpr, HAS_BIAS: tl.constexpr, ROUND: tl.constexpr,
    SOFTCAP: tl.constexpr, SLOPE: tl.constexpr, STORE: tl.constexpr, SUMS: tl.constexpr, ENTROPY: tl.constexpr,
    MASK: tl.constexpr, ONLINE: tl.constexpr, SELECTED: tl.constexpr, EVEN_D: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The same by plain loads and stores. SELECTED: the rows ROWS[:COUNT] only, COUNT known to the device alone; their
    partial sums lie in order of ROWS. ONLINE: each tile's own maximum in place of b."""
    if SELECTED:
        n = tl.load(COUNT).to(tl.int32)
    tiles_m, tiles_n = tl.cdiv(n, BM), tl.cdiv(V, BN)
    for t in tl.range(tl.program_id(0), tiles_m * tiles_n, programs):
        m, tile_n = tile_of(t, tiles_m, tiles_n, GROUP)
        slot = m * BM + tl.arange(0, BM)
        valid = slot < n
        rows = slot
        if SELECTED:
            rows = tl.load(ROWS + slot, mask=valid, other=0).to(tl.int32)
        columns = tile_n * BN + tl.arange(0, BN)
        # clamped, not masked: what the surplus rows and columns give is never kept
        x_rows = tl.where(valid, rows, 0).to(tl.int64)
        w_rows = tl.where(columns < V, columns, 0).to(tl.int64)
        k = tl.arange(0, BK)
        x = X + x_rows[:, None] * x_stride + k[None, :]
        w = W + w_rows[None, :] * w_stride + k[:, None]
        acc = tl.zeros((BM, BN), tl.float32)
        for start in range(0, D, BK):
            if EVEN_D:
                acc = dot(tl.load(x), tl.load(w), acc)
            else:
                inside = start + k < D
                a = tl.load(x, mask=inside[None, :], other=0.0)
                acc = dot(a, tl.load(w, mask=inside[:, None], other=0.0), acc)
            x += BK
            w += BK
        y = (tl.load(TARGET_IDS + rows, mask=valid, other=0) - vocab_start).to(tl.int32)
        b2 = tl.load(B2 + rows, mask=valid, other=0.0)
        if PER_ROW:
            factor = tl.load(SCALE + rows, mask=valid, other=1.0) * scale
        else:
            factor = tl.full((BM,), 1.0, tl.float32) * scale
        e, offset, total, weighted, target = epilogue(
            acc, factor, b2, y, tile_n * BN, BIAS, V, softcap, HAS_BIAS, ROUND, SOFTCAP, SLOPE, ONLINE, SUMS, ENTROPY,
            MASK, True, BN
        )  # fmt: skip
        if STORE:
            at = E + x_rows[:, None] * e_stride + columns[None, :]
            if MASK:
                tl.store(at, narrow(e, tl.bfloat16), mask=valid[:, None] & (columns < V)[None, :])
            else:
                tl.store(at, narrow(e, tl.bfloat16), mask=valid[:, None])
        put_rows(
            PARTIALS, TARGET, slot, rows, valid, tile_n, tiles_n, stride, y, tile_n * BN, BN, offset, total, weighted,
            target, SUMS, ENTROPY, ONLINE, ROUND
        )  # fmt: skip


@dataclass(frozen=True)
class Logits:
    """What makes logits of hidden states, beside the weight: scale = log2(e) / temperature, a number times [n]."""

    scale: float
    scale_N: Tensor | None
    bias: Tensor | None
    softcap: float | None
    round_bf16: bool
    vocab_start: int

    @property
    def busy(self) -> bool:
        """There is more to do per logit than the exponential."""
        return self.bias is not None or self.softcap is not None or self.round_bf16


def exp_gemm(
    x: Tensor, weight: Tensor, target_ids: Tensor, b2: Tensor, logits: Logits, *, out: Tensor | None,
    partials: Tensor | None, target: Tensor | None = None, slope: bool = True, entropy: bool = True,
    tile: Tile | None = None, online: bool = False, rows: Tensor | None = None, count: Tensor | None = None,
) -> None:  # fmt: skip
    """Fill `out` [n, V] bf16 with E and `partials` [3, tiles, n] fp32 (`new_partials`) with the sums of each tile;
    either may be None.

    x [n, D], weight [V, D] fp16 or bf16; target_ids [n]; b2 [n] fp32. target [n] fp32 receives u of the targets beside
    the sums, `online` their logits. `slope`: with a softcap, store E times its derivative. rows [n] and count [] (on
    the device): only rows[:count], on plain pointers; `online`: with each tile's own maximum for b.
    """
    n, d_model = x.shape
    vocab = weight.shape[0]
    if n == 0:
        return
    tile = tile or pick_tile(x, weight, logits.busy)
    selected = rows is not None
    by_pointers = selected or online or not tile.descriptors
    anything = b2  # for arguments that this variant does not read
    sums = partials is not None
    tiles = triton.cdiv(n, tile.rows) * triton.cdiv(vocab, tile.columns)
    programs = min(tiles, programs_per_device(x.device, tile))
    scale = logits.scale
    if not logits.busy:  # with a softcap, a bias or rounding a logit is no longer the product that was cut off
        scale *= compensation(x.device, d_model)
    arguments = {
        "TARGET_IDS": target_ids,
        "SCALE": anything if logits.scale_N is None else logits.scale_N,
        "B2": b2,
        "BIAS": anything if logits.bias is None else logits.bias,
        "PARTIALS": partials if sums else anything,
        "TARGET": anything if target is None else target,
        "n": n,
        "V": vocab,
        "D": d_model,
        "stride": partials.shape[2] if sums else 0,
        "x_stride": row_stride(x),
        "w_stride": weight.stride(0),
        "e_stride": 0 if out is None else out.stride(0),
        "scale": scale,
        "softcap": logits.softcap or 1.0,
        "vocab_start": logits.vocab_start,
        "programs": programs,
        "PER_ROW": logits.scale_N is not None,
        "HAS_BIAS": logits.bias is not None,
        "ROUND": logits.round_bf16,
        "SOFTCAP": logits.softcap is not None,
        "SLOPE": slope,
        "STORE": out is not None,
        "SUMS": sums,
        "ENTROPY": entropy and sums,
        "MASK": vocab % tile.columns != 0,
        "BM": tile.rows,
        "BN": tile.columns,
        "BK": tile.depth,
        "GROUP": tile.group,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "enable_fp_fusion": True,  # for sum(e * u), which cannot be written as multiply-adds
    }
    if by_pointers:
        pointer_kernel[(programs,)](
            X=x, W=weight, E=anything if out is None else out, ROWS=rows if selected else anything,
            COUNT=count if selected else anything, **arguments, ONLINE=online, SELECTED=selected,
            EVEN_D=d_model % tile.depth == 0,
        )  # fmt: skip
        return
    describe = TensorDescriptor.from_tensor
    if tile.specialized:  # makes its descriptors itself
        describe = lambda matrix, block: matrix  # noqa: E731
    inputs = describe(x.as_strided(x.shape, (arguments["x_stride"], 1)), [tile.rows, tile.depth])
    arguments |= {
        "X": inputs,
        "W": describe(weight, [tile.columns, tile.depth]),
        "E": inputs if out is None else describe(out, [tile.rows, tile.columns // tile.subtiles]),
        "SUBTILES": tile.subtiles,
        "SPECIALIZED": tile.specialized,
    }

    def launch():
        descriptor_kernel[(programs,)](**arguments)

    def launch_with_memory():  # for descriptors that the kernel makes
        triton.set_allocator(lambda size, *_: torch.empty(size, dtype=torch.int8, device=x.device))
        launch()

    if tile.specialized:
        copy_context().run(launch_with_memory)  # the caller's own allocator, if any, stays
    else:
        launch()


def new_partials(n: int, vocab: int, tile: Tile, device: torch.device) -> Tensor:
    """Room for sums, weighted sums and offsets of every tile of columns, [3, tiles, n]."""
    return torch.empty(3, triton.cdiv(vocab, tile.columns), n, dtype=torch.float32, device=device)
