"""What the host does for a step of the head on a GPU, measured without one: calls that launch something, and the
microseconds of Python around them.

`python bench/head_host.py [--calls 200]` runs `linear_grpo_loss` and its backward on small CPU tensors as on sm_90,
with Triton's launches and the GEMMs noted instead of run, for one chunk and for four. Time is CPU time, the median over
calls; what Triton's own launcher takes beside is not in it. To compare two checkouts: PYTHONPATH=OTHER/kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from siri_kernels import api, gemm
from siri_kernels.loss import triton as _loss  # noqa: F401  (before anybody believes in an interpreter)
from siri_kernels.ops import grpo
from siri_kernels.ops.operator import Operator
from siri_kernels.rows import scaling as _scaling  # noqa: F401
from siri_kernels.rows.anchored import rows as _rows  # noqa: F401
from siri_kernels.rows.anchored import tiles
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

ROWS, WIDTH, VOCAB, SEQUENCES = 256, 64, 1024, 8


MAKING = ("empty", "new_empty", "empty_like", "empty_strided", "detach")
"""Operations that make a tensor and write nothing into it"""


class Noted(TorchDispatchMode):
    """Counts operations that would launch a kernel: whatever is no view and does no more than make a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name = function.overloadpacket.__name__
        output = function(*arguments, **(options or {}))
        ours = str(function).startswith("siri_kernels")
        if not (
            ours or function.is_view or name in MAKING or (isinstance(output, torch.Tensor) and not output.numel())
        ):
            self.names[name] += 1
        return output


@contextmanager
def on_paper(launched: Counter[str]):
    """Kernels and GEMMs are noted, not run."""

    def run(kernel: Any, *arguments: Any, grid: Any, warmup: Any, **options: Any) -> None:
        launched[kernel.fn.__name__] += 1

    def product(a: Any, b: Any, out: Any) -> Any:
        launched["gemm"] += 1
        return out

    with ExitStack() as stack:
        for place, name, stand_in in (
            (JITFunction, "run", run),
            (gemm, "mm", product),
            (gemm, "add_mm", product),
            (tiles, "capability", lambda device: 90),
            (grpo, "values_are_checked", lambda x: False),
            (api, "select", lambda *_, **__: "anchored"),
        ):
            stack.enter_context(patch.object(place, name, stand_in))
        stack.enter_context(patch.dict(os.environ, TRITON_INTERPRET="1"))  # read by whoever asks for kernels on a CPU
        yield


def step(chunks: int):
    """A function that runs one step, as the trainer has it: old and rollout log-probs, a mask, keep, a divisor."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=draw).bfloat16().requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=draw).bfloat16().requires_grad_()
    target_ids = torch.randint(VOCAB, (ROWS,), generator=draw)
    tensors = {name: -torch.rand(ROWS, generator=draw) for name in ("old_logp", "rollout_logp")}
    tensors |= {"mask": torch.ones(ROWS, dtype=torch.bool), "keep": torch.arange(ROWS)}
    tensors["cu_seqlens"] = torch.arange(0, ROWS + 1, ROWS // SEQUENCES, dtype=torch.int32)
    advantages = torch.randn(SEQUENCES, generator=draw)
    options: dict[str, Any] = {"denominator": float(ROWS), "memory": 2 * ROWS * VOCAB // chunks}

    def run() -> None:
        hidden.grad = weight.grad = None
        api.linear_grpo_loss(hidden, weight, target_ids, advantages, **tensors, **options).loss.backward()

    return run


def measure(chunks: int, calls: int) -> dict[str, Any]:
    launched: Counter[str] = Counter()
    with on_paper(launched):
        run = step(chunks)
        run()
        launched.clear()
        noted, inside = Noted(), Operator._call

        def call(*arguments: Any) -> Any:  # torch shows a mode no operation inside an operator of ours
            with noted:
                return inside(*arguments)

        with patch.object(Operator, "_call", call), noted:
            run()
        kernels = dict(launched)
        times = []
        for _ in range(calls):
            begin = time.process_time()
            run()
            times.append(time.process_time() - begin)
    return {
        "chunks": chunks,
        "calls": sum(kernels.values()) + sum(noted.names.values()),
        "kernels": kernels,
        "torch": dict(noted.names),
        "host_us": round(1e6 * statistics.median(times)),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=200)
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    for count in (1, 4):
        print(json.dumps(measure(count, parsed.calls)))
