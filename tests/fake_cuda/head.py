"""The fused head on fake tensors: the operators' own loops over chunks, with buffers as large as the anchored path's
and no kernel behind them."""

from contextlib import nullcontext

import torch
from siri_kernels import api, chunked, gemm, selection
from siri_kernels.metrics import METRIC_REDUCTION
from siri_kernels.ops import grpo as grpo_operators
from siri_kernels.ops import logprob as logprob_operators
from siri_kernels.rows import scaling

TILE_COLUMNS = 128
BUSY = 132


class Rows:
    """Makes the tensors that `siri_kernels.rows.anchored.rows.AnchoredRows` makes."""

    def __init__(self, hidden, head, target_ids, shard, rows, columns):
        self.hidden, self.matrix, self.shard = hidden, head.weight, shard
        if head.weight.dtype != hidden.dtype:
            raise TypeError(f"the head's weight is {head.weight.dtype}, its hidden states {hidden.dtype}")
        self.width = -(-columns // 64) * 64
        self.size = rows * self.width
        self.buffer = self.e = self.offset = None

    def inputs(self, rows):
        return self.hidden[rows]

    def weight(self, columns=slice(None)):
        return self.matrix[columns]

    def forward(self, rows, store=True):
        x = self.hidden[rows]
        n = x.shape[0]
        if store and self.buffer is None:
            self.buffer = self.hidden.new_empty(self.size, dtype=torch.bfloat16)
        self.e = self.buffer[: n * self.width].view(n, self.width)[:, : self.matrix.shape[0]] if store else None
        target = self.shard.all_reduce_(x.new_empty(n, dtype=torch.float32))
        partials = x.new_empty(3, -(-self.matrix.shape[0] // TILE_COLUMNS), n, dtype=torch.float32)
        return self.shard.combine(partials.sum(1).new_empty(4, n) + target)

    def gradient(self, rows, stats, log_sum, logp, entropy, g, h):
        return self.e, torch.empty_like(log_sum)


class Tally:
    """As `siri_kernels.loss.triton.TritonTally`."""

    def __init__(self, settings, tokens, logp):
        self.settings, self.tokens, self.logp = settings, tokens, logp

    def add(self, rows, stats, backward):
        out = stats.new_empty(3, stats.shape[1])
        return out[0], out[1], out[2] if self.settings.entropy_coef else None

    def result(self):
        return self.logp.new_empty(()), self.logp.new_empty(len(METRIC_REDUCTION))


class Looped:
    """An operator that runs its body, whose buffers are then seen, before it gives what its fake kernel gives."""

    def __init__(self, operator) -> None:
        self.operator = operator

    def __call__(self, **arguments):
        with torch.no_grad():
            self.operator.function(**arguments)
        return self.operator(**arguments)


def install() -> None:
    """Put the stand-ins in the place of kernels, GEMMs and trials."""
    chunked.engine = lambda impl, hidden, head, target_ids, shard, rows, columns, dtype, **_: Rows(
        hidden, head, target_ids, shard, rows, columns
    )
    chunked.tally = lambda impl, settings, tokens, logp, entropy, chunks, size: Tally(settings, tokens, logp)
    chunked.finisher = lambda impl: lambda stats: stats.new_empty(3, stats.shape[1]).unbind()
    gemm.mm = gemm.add_mm = lambda a, b, out: out
    scaling.scale_rows = lambda x, factor, out, rows=None, **_: out
    scaling.scaled = lambda x, upstream, dtype: torch.empty_like(x, dtype=dtype)
    gemm.surroundings = lambda like: nullcontext()
    gemm.multiprocessors = lambda device: BUSY
    selection.on_gpu_of = lambda *_: "anchored"
    for module in (grpo_operators, logprob_operators):
        module.values_are_checked = lambda _: False
    api.linear_grpo, api.logprob_operator = Looped(api.linear_grpo), Looped(api.logprob_operator)
