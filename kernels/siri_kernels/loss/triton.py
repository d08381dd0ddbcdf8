"""The kernel between the GEMMs: from row statistics to log-prob, entropy, the loss's coefficients and its statistics,
in one launch.

It is `loss.tokens` for token-level losses ("grpo", "cispo"), line by line; sequence-level ratios need a reduction in
between and take the torch version. Every block writes its own partial sums, which are added in a fixed order.
"""

# What @triton.jit makes of a function no type checker knows: a launch takes other arguments, a constexpr is a number.
# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from siri_kernels.loss.spec import LossSettings
from siri_kernels.loss.tokens import Tokens
from siri_kernels.metrics import METRIC_REDUCTION
from siri_kernels.reference import LOG_RATIO_BOUND
from siri_kernels.rows.kernels import INTERPRETED, UNFUSED, expm1, log1p

BOUND = tl.constexpr(LOG_RATIO_BOUND)
COLUMNS = ("loss", *METRIC_REDUCTION)
WIDTH = 16
assert len(COLUMNS) <= WIDTH


def bits(kind: str) -> int:
    """The columns of one kind of metric."""
    return sum(1 << place for place, name in enumerate(COLUMNS) if METRIC_REDUCTION.get(name) == kind)


def place(name: str) -> tl.constexpr:
    return tl.constexpr(COLUMNS.index(name))


LOSS_SUM, TOKENS, NONFINITE = place("loss"), place("tokens"), place("nonfinite_tokens")
CLIPPED_LOW, CLIPPED_HIGH, CLIPPED_TWICE = (
    place("clip_low_fraction"),
    place("clip_high_fraction"),
    place("dual_clip_fraction"),
)
KL, LOGP_SUM, ENTROPY_SUM, LARGEST_RATIO = (
    place("approx_kl"),
    place("logp_mean"),
    place("entropy_mean"),
    place("ratio_max"),
)
MISMATCH_K1, MISMATCH_K3, MISMATCH_MAX = place("mismatch_k1"), place("mismatch_k3"), place("mismatch_max")
WEIGHT_SUM, WEIGHT_CLIPPED = place("importance_mean"), place("importance_clipped_fraction")
MISMATCHES = tl.constexpr(
    sum(1 << p.value for p in (MISMATCH_K1, MISMATCH_K3, MISMATCH_MAX, WEIGHT_SUM, WEIGHT_CLIPPED))
)
"""Columns that are there with rollout log-probs only"""
MEANS, MAXIMA, USED = tl.constexpr(bits("mean")), tl.constexpr(bits("max")), tl.constexpr(len(COLUMNS))
LOSS_CODE = {"grpo": 0, "cispo": 1}
IMPORTANCE_CODE = {"none": 0, "tis": 1, "icepop": 2}
BLOCK = 4096 if INTERPRETED else 128
METRIC_BLOCKS = 64


@triton.jit
def bounded(x):
    """clamp(x, -20, 20) that keeps NaN."""
    x = tl.where(x > BOUND, BOUND, x)
    return tl.where(x < -BOUND, -BOUND, x)


@triton.jit
def put_sum(P, column: tl.constexpr, counted, x):
    tl.store(P + column, tl.sum(tl.where(counted, x, 0.0)))


@triton.jit
def put_max(P, column: tl.constexpr, counted, x):
    x = tl.where(counted, x, 0.0)
    broken = tl.sum((x != x).to(tl.int32)) > 0
    tl.store(P + column, tl.where(broken, float("nan"), tl.max(tl.where(x != x, 0.0, x))))


@triton.jit
def finish_rows(maximum, s_off, u_off, target):
    """logp, entropy and log sum exp(z - maximum), as `rows.torch.finish`; the same bits in every kernel that calls
    it."""
    d = target - maximum
    e = tl.exp(d)
    log_sum = log1p(s_off + (e - 1))
    u = tl.fma(e, tl.where(e == 0, 0.0, d), u_off)
    return d - log_sum, tl.fma(-u, tl.exp(-log_sum), log_sum), log_sum


@triton.jit(do_not_specialize=["STATS", "OUT", "stats_stride", "n"])
def finish_kernel(STATS, OUT, stats_stride, n, BLOCK: tl.constexpr):
    """OUT [3, n] = logp, entropy, log-sum of row statistics [4, n]."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = i < n
    at = STATS + i
    logp, entropy, log_sum = finish_rows(
        tl.load(at, mask=valid, other=0.0),
        tl.load(at + stats_stride, mask=valid, other=0.0),
        tl.load(at + 2 * stats_stride, mask=valid, other=0.0),
        tl.load(at + 3 * stats_stride, mask=valid, other=0.0),
    )
    tl.store(OUT + i, logp, mask=valid)
    tl.store(OUT + n + i, entropy, mask=valid)
    tl.store(OUT + 2 * n + i, log_sum, mask=valid)


def finish(stats: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """logp, entropy and log-sum [n] of row statistics [4, n], with the bits that the token kernel finds."""
    n = stats.shape[1]
    out = stats.new_empty(3, n)
    if n:
        finish_kernel[(triton.cdiv(n, BLOCK),)](
            STATS=stats, OUT=out, stats_stride=stats.stride(0), n=n, BLOCK=BLOCK, num_warps=4, **UNFUSED
        )
    return out[0], out[1], out[2]


TOKEN_ARGUMENTS = (
    *("STATS", "ROWS", "ADV", "WEIGHT", "COUNTED", "OLD", "ROLLOUT", "LOGP", "ENTROPY", "OUT", "PARTIALS"),
    *("stats_stride", "out_stride", "n", "first_row", "first_block"),
)


@triton.jit(do_not_specialize=TOKEN_ARGUMENTS)
def token_kernel(
    STATS, ROWS, ADV, WEIGHT, COUNTED, OLD, ROLLOUT, LOGP, ENTROPY, OUT, PARTIALS, stats_stride, out_stride, n,
    first_row, first_block, low, high, dual, importance_low, importance_cap, entropy_coef, INDEXED: tl.constexpr,
    HAS_OLD: tl.constexpr, HAS_ROLLOUT: tl.constexpr, LOSS: tl.constexpr, IMPORTANCE: tl.constexpr, DUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """LOGP, ENTROPY at the rows of the chunk; OUT [3, n] = log-sum, g, h; PARTIALS [block, 16] in the order of
    COLUMNS."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = i < n
    row = first_row + i
    if INDEXED:
        row = tl.load(ROWS + i, mask=valid, other=0)
    maximum = tl.load(STATS + i, mask=valid, other=0.0)
    s_off = tl.load(STATS + stats_stride + i, mask=valid, other=0.0)
    u_off = tl.load(STATS + 2 * stats_stride + i, mask=valid, other=0.0)
    target = tl.load(STATS + 3 * stats_stride + i, mask=valid, other=0.0)
    adv = tl.load(ADV + row, mask=valid, other=0.0)
    weight = tl.load(WEIGHT + row, mask=valid, other=0.0)
    counted = (tl.load(COUNTED + row, mask=valid, other=0) != 0) & valid

    logp, entropy, log_sum = finish_rows(maximum, s_off, u_off, target)
    tl.store(LOGP + row, logp, mask=valid)
    tl.store(ENTROPY + row, entropy, mask=valid)

    behaviour = logp
    if HAS_OLD:
        behaviour = tl.load(OLD + row, mask=valid, other=0.0)
    if HAS_ROLLOUT:
        rollout = tl.load(ROLLOUT + row, mask=valid, other=0.0)
    delta = logp - behaviour  # not 0 when on-policy: a NaN stays one
    log_ratio = bounded(delta)
    ratio = tl.exp(log_ratio)
    clipped = tl.where(ratio < low, low, ratio)
    clipped = tl.where(clipped > high, high, clipped)
    below = (ratio < low) & (adv < 0)
    above = (ratio > high) & (adv > 0)
    if LOSS == 1:
        slope = -clipped * adv
        term = slope * logp
    else:
        flat = below | above | (tl.abs(delta) > BOUND)
        unclipped = -ratio * adv
        term = -clipped * adv
        term = tl.where(unclipped > term, unclipped, term)
        if DUAL:
            flat = flat | ((ratio > dual) & (adv < 0))
            term = tl.where((adv < 0) & (term > -dual * adv), -dual * adv, term)
        slope = tl.where(flat, 0.0, unclipped)

    P = PARTIALS + (first_block + tl.program_id(0)) * 16
    if HAS_ROLLOUT:
        log_w = behaviour - rollout
        log_w_bounded = bounded(log_w)
        raw = tl.exp(log_w_bounded)
        w = raw * 0 + 1
        outside = raw > importance_cap
        if IMPORTANCE == 1:
            w = tl.where(outside, importance_cap, raw)
        if IMPORTANCE == 2:
            outside = outside | (raw < importance_low)
            w = tl.where(outside, 0.0, raw)
        if IMPORTANCE > 0:
            slope = slope * w
            term = term * w
        put_sum(P, MISMATCH_K1, counted, -log_w)
        put_sum(P, MISMATCH_K3, counted, expm1(log_w_bounded) - log_w_bounded)
        put_sum(P, WEIGHT_SUM, counted, w)
        put_sum(P, WEIGHT_CLIPPED, counted & outside, 1.0)
        put_max(P, MISMATCH_MAX, counted, tl.abs(log_w))
    else:
        for column in tl.static_range(16):
            if (MISMATCHES >> column) & 1:
                tl.store(P + column, 0.0)
    term = term - entropy_coef * entropy
    g = tl.where(counted, weight * slope, 0.0)
    h = tl.where(counted, -entropy_coef * weight, 0.0)
    tl.store(OUT + i, log_sum, mask=valid)
    tl.store(OUT + out_stride + i, g, mask=valid)
    tl.store(OUT + 2 * out_stride + i, h, mask=valid)

    finite = (tl.abs(logp) < float("inf")) & (tl.abs(entropy) < float("inf"))
    put_sum(P, LOSS_SUM, counted, weight * term)
    put_sum(P, TOKENS, counted, 1.0)
    put_sum(P, NONFINITE, counted & (finite == 0), 1.0)
    put_sum(P, CLIPPED_LOW, counted & below, 1.0)
    put_sum(P, CLIPPED_HIGH, counted & above, 1.0)
    if DUAL:
        put_sum(P, CLIPPED_TWICE, counted & (ratio > dual) & (adv < 0), 1.0)
    else:
        tl.store(P + CLIPPED_TWICE, 0.0)
    put_sum(P, KL, counted, expm1(log_ratio) - log_ratio)
    put_sum(P, LOGP_SUM, counted, logp)
    put_sum(P, ENTROPY_SUM, counted, entropy)
    put_max(P, LARGEST_RATIO, counted, ratio)


@triton.jit(do_not_specialize=["PARTIALS", "LOSS", "METRICS", "blocks"])
def metrics_kernel(PARTIALS, LOSS, METRICS, blocks, BLOCKS: tl.constexpr):
    """LOSS [] and METRICS, in the order of COLUMNS, from the blocks' PARTIALS [blocks, 16], added in order: one
    program."""
    column = tl.arange(0, 16)
    inside = column[None, :] < USED
    total = tl.zeros((16,), tl.float32)
    maximum = tl.zeros((16,), tl.float32)  # of what is not negative
    broken = tl.zeros((16,), tl.int32)
    for start in range(0, blocks, BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        at = PARTIALS + block[:, None] * 16 + column[None, :]
        x = tl.load(at, mask=(block < blocks)[:, None] & inside, other=0.0)
        total += tl.sum(x, 0)
        broken += tl.sum((x != x).to(tl.int32), 0)
        maximum = tl.maximum(maximum, tl.max(tl.where(x != x, 0.0, x), 0))
    bit = tl.full((16,), 1, tl.int32) << column
    tokens = tl.sum(tl.where(column == TOKENS, total, 0.0))
    tokens = tl.where(tokens > 1, tokens, 1.0)
    value = tl.where((bit & MEANS) != 0, total / tokens, total)
    value = tl.where((bit & MAXIMA) != 0, tl.where(broken > 0, float("nan"), maximum), value)
    tl.store(METRICS + column - 1, value, mask=(column > LOSS_SUM) & (column < USED))
    tl.store(LOSS + column, value, mask=column == LOSS_SUM)


class TritonTally:
    """Collects the chunks of one call: log-probs and coefficients as they come, loss and metrics at the end."""

    def __init__(
        self, settings: LossSettings, tokens: Tokens, logp: Tensor, entropy: Tensor, n_chunks: int, chunk_rows: int
    ):
        self.settings, self.logp, self.entropy = settings, logp, entropy
        self.tokens = tokens.contiguous()
        self.blocks = 0
        capacity = n_chunks * triton.cdiv(max(chunk_rows, 1), BLOCK)
        self.partials = torch.empty(capacity, WIDTH, dtype=torch.float32, device=logp.device)

    def add(self, rows: slice | Tensor, stats: Tensor, backward: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """log-sum, g, h (None without entropy_coef) of a chunk [n] from its row statistics [4, n]."""
        settings, tokens, n = self.settings, self.tokens, stats.shape[1]
        out = torch.empty(3, n, dtype=torch.float32, device=stats.device)
        indexed = isinstance(rows, Tensor)
        blocks = triton.cdiv(n, BLOCK)
        token_kernel[(blocks,)](
            STATS=stats,
            ROWS=rows if indexed else stats,
            ADV=tokens.advantages,
            WEIGHT=tokens.weight,
            COUNTED=tokens.counted.view(torch.uint8),
            OLD=self.logp if tokens.old_logp is None else tokens.old_logp,
            ROLLOUT=self.logp if tokens.rollout_logp is None else tokens.rollout_logp,
            LOGP=self.logp,
            ENTROPY=self.entropy,
            OUT=out,
            PARTIALS=self.partials,
            stats_stride=stats.stride(0),
            out_stride=n,
            n=n,
            first_row=0 if indexed else rows.start,
            first_block=self.blocks,
            low=settings.ratio_low,
            high=settings.ratio_high,
            dual=settings.dual_clip or 0.0,
            importance_low=settings.importance_low,
            importance_cap=settings.importance_cap,
            entropy_coef=settings.entropy_coef,
            INDEXED=indexed,
            HAS_OLD=tokens.old_logp is not None,
            HAS_ROLLOUT=tokens.rollout_logp is not None,
            LOSS=LOSS_CODE[settings.loss],
            IMPORTANCE=IMPORTANCE_CODE[settings.importance],
            DUAL=settings.dual_clip is not None,
            BLOCK=BLOCK,
            num_warps=4,
            **UNFUSED,
        )
        self.blocks += blocks
        return out[0], out[1], out[2] if settings.entropy_coef else None

    def result(self) -> tuple[Tensor, Tensor]:
        """The loss, and its metrics in the order of METRIC_REDUCTION."""
        loss, metrics = self.partials.new_empty(()), self.partials.new_empty(len(METRIC_REDUCTION))
        metrics_kernel[(1,)](
            PARTIALS=self.partials,
            LOSS=loss,
            METRICS=metrics,
            blocks=self.blocks,
            BLOCKS=METRIC_BLOCKS,
            num_warps=4,
            **UNFUSED,
        )
        return loss, metrics
