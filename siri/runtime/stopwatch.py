"""Where a step's time goes, and how much of the machine's arithmetic it uses."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PROFILED = 3
"""Micro-steps in a trace."""


class Stopwatch:
    """Seconds of named parts of a step; parts may nest and repeat. On a GPU they are CUDA events, read once at the end
    of a step, so that timing never makes the host wait."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.spans: list[tuple[str, Any, Any]] = []
        self.after: Callable[[str], None] | None = None
        """Called with the name of each part when it has ended."""

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a `with` block under `name`."""
        began = self._now()
        yield
        self.spans.append((name, began, self._now()))
        if self.after is not None:
            self.after(name)

    def laps(self, first: str, last: str) -> list[float]:
        """Seconds from each start of the part `first` to the end of `last` that belongs to it, in order, since the last
        call of `seconds`. Call it before that, at the end of a step."""
        if self.cuda:
            torch.cuda.synchronize()
        starts = [began for name, began, _ in self.spans if name == first]
        ends = [ended for name, _, ended in self.spans if name == last]
        return [self._between(*pair) for pair in zip(starts, ends, strict=True)]

    def seconds(self) -> dict[str, float]:
        """`NAME_s` -> seconds since the last call, summed over the spans of each name."""
        if self.cuda:
            torch.cuda.synchronize()
        total: dict[str, float] = {}
        for name, began, ended in self.spans:
            total[f"{name}_s"] = total.get(f"{name}_s", 0.0) + self._between(began, ended)
        self.spans.clear()
        return total

    def _between(self, began: Any, ended: Any) -> float:
        return began.elapsed_time(ended) / 1000 if self.cuda else ended - began

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@contextmanager
def profiled(trace: Path | None, watch: Stopwatch) -> Iterator[None]:
    """Write a torch profiler trace of the beginning of an update to `trace`, for chrome://tracing or Perfetto; None =
    do nothing. It ends after PROFILED backward passes that `watch` sees, so that its size does not grow with the batch:
    of a whole step it would be gigabytes."""
    if trace is None:
        yield
        return
    profiler, left = torch.profiler.profile(), PROFILED

    def after(name: str) -> None:
        nonlocal left
        if name == "backward":
            left -= 1
            if not left:
                profiler.stop()

    profiler.start()
    watch.after = after
    try:
        yield
    finally:
        watch.after = None
        if left > 0:
            profiler.stop()
    profiler.export_chrome_trace(str(trace))
