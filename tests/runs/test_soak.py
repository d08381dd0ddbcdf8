"""Thousands of steps and random kills: memory and file handles stay flat, and the end is the same."""

import random
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from tests.support.processes import UNREPORTED, assert_same_run, finish, kill, start

pytestmark = [
    pytest.mark.torture,
    pytest.mark.skipif(sys.platform != "linux", reason="reads memory and file handles in /proc"),
]
OPTIONS = ["train", "demo", "--cycle", "40", "--prompts-per-step", "2", "--group-size", "2", "--l-max", "24"]
OPTIONS += ["--mini-batch-prompts", "1", "--l-min", "12", "--eval-problems", "4", "--save-every", "10", "--quiet"]


@dataclass
class Watch:
    """Samples of a process: steps done, resident bytes, open files."""

    process: subprocess.Popen
    run: Path
    samples: list[tuple[int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._look)
        self.thread.start()

    def _look(self) -> None:
        proc = Path(f"/proc/{self.process.pid}")
        while self.process.poll() is None:
            try:
                steps = (self.run / "metrics.jsonl").read_bytes().count(b"\n")
                resident = int((proc / "statm").read_text().split()[1]) * 4096
                files = sum(1 for _ in (proc / "fd").iterdir())
            except (OSError, IndexError):
                steps = 0
            if steps:
                self.samples.append((steps, resident, files))
            time.sleep(0.25)

    def slope(self, first: int, last: int) -> tuple[float, int]:
        """Bytes a step and the spread of open files, between two steps."""
        self.thread.join()
        steps, resident, files = np.array([row for row in self.samples if first <= row[0] <= last]).T
        return float(np.polyfit(steps, resident, 1)[0]), int(np.percentile(files, 95) - np.percentile(files, 5))


def test_soak(tmp_path, long, fault):
    steps, kills = long(120, 2000), long(1, 12)
    options = [*OPTIONS, "--steps", str(steps)]
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    process = start(calm, options, module=UNREPORTED)
    watch = Watch(process, calm)
    began = time.monotonic()
    assert finish(process, timeout=3000) == 0
    whole = time.monotonic() - began
    slope, files = watch.slope(steps // 3, steps - 2)
    limit = 8_000 if steps == 2000 else 150_000  # what a process grows by at its beginning is shared out
    print(f"{steps} steps in {whole:.0f} s: {slope:.0f} bytes a step, open files within {files}")
    assert slope < limit and files <= 8, f"{slope:.0f} bytes a step, open files within {files}"

    seed = time.time_ns() % 10**6
    draw, left = random.Random(seed), kills
    while True:
        process = start(stormy, options, module=UNREPORTED)
        pause = min(draw.uniform(0.1, 1.6) * whole / kills + 5, 0.7 * whole)  # one kill must not come after the end
        if left:
            try:
                process.wait(pause)
            except subprocess.TimeoutExpired:
                kill(process)
                left -= 1
                continue
        assert finish(process, timeout=3000) == 0, f"seed {seed}"
        break
    assert_same_run(calm, stormy, hint=f"seed {seed}")
    outcome = f"{slope:.0f} bytes a step, open files within {files}; the end is the same"
    fault(f"soak of {steps} steps", f"{kills - left} kills", outcome)
