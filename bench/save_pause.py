"""The longest pause of a step while a checkpoint is written in the background: python bench/save_pause.py [--gb 2].

The main thread does small pieces of work, as Python between a step's kernels, and notes the longest time from one to
the next: alone, then while a checkpoint (weights and AdamW's moments, random) is written as at first, when torch's
distributed checkpoint made one string of bytes of a rank's file and held Python's lock meanwhile, and as `siri.store`
writes it. The copy to host memory, for which a step waits in either case, is given by itself. All in one process, one
after the other; the figures depend on the disk and on what else the machine does, so read the ratio, and the pause
alone beside it.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from siri.store import saver, shards

TENSORS = 16
WORK_S = 2.0
"""How long the main thread works alone."""


def subject(size: int) -> tuple[Any, torch.optim.Optimizer]:
    """A model whose weights and moments take `size` bytes in fp32, and its optimizer."""
    rows = max(1, size // (3 * 4 * 1024 * TENSORS))
    model = torch.nn.ParameterDict({f"w{i}": torch.nn.Parameter(torch.rand(rows, 1024)) for i in range(TENSORS)})
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        moments = {"exp_avg": torch.rand_like(parameter), "exp_avg_sq": torch.rand_like(parameter)}
        optimizer.state[parameter] = {"step": torch.tensor(1.0), **moments}
    return SimpleNamespace(model=model, device=torch.device("cpu")), optimizer


def as_at_first(folder: Path, pieces: dict[str, Any], *, group: Any, alone: bool) -> None:
    """Torch's own writer."""
    from torch.distributed import checkpoint as dcp

    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    planner = shards._planner(saving=True)
    dcp.save(pieces, storage_writer=writer, planner=planner, process_group=group, no_dist=alone)


def longest(over: Callable[[], bool]) -> tuple[float, int]:
    """Seconds of the longest time from one piece of work to the next, and how many there were, until `over`."""
    small, worst, count = torch.rand(64, 64), 0.0, 0
    last = time.perf_counter()
    while not over():
        for _ in range(50):
            small = (small @ small).softmax(-1)
        now = time.perf_counter()
        worst, last, count = max(worst, now - last), now, count + 1
    return worst, count


def measure(size: int) -> dict[str, float]:
    """Seconds of the pauses and of the saves."""
    policy, optimizer = subject(size)
    end = time.perf_counter() + WORK_S
    row = {"gb": size / 1e9, "alone_s": longest(lambda: time.perf_counter() >= end)[0]}
    for name, write in (("before", as_at_first), ("now", shards.write_pieces)):
        with tempfile.TemporaryDirectory() as folder, patch.object(saver, "write_pieces", write):
            writer = saver.Saver(Path(folder), keep=1)
            writer._about = {"config.json": b"{}"}  # no model of transformers to tell of
            began = time.perf_counter()
            writer.save(1, policy, optimizer, {})
            row[f"{name}_copy_s"] = time.perf_counter() - began
            thread: threading.Thread = writer._thread  # pyright: ignore[reportAssignmentType]
            row[f"{name}_pause_s"], _ = longest(lambda thread=thread: not thread.is_alive())
            row[f"{name}_save_s"] = time.perf_counter() - began
            writer.wait()  # a save that failed is an error here
    return {key: round(value, 3) for key, value in row.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.0, help="size of the checkpoint, 10^9 bytes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(measure(int(options.gb * 1e9))))
