"""Ranks that leave, in every way there is, on a busy machine: none aborts, hangs, or leaves a thread behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import UNREPORTED, command
from tests.unit.runtime import leaving_worker

pytestmark = [
    pytest.mark.torture,
    pytest.mark.skipif(sys.platform != "linux", reason="finds gloo's threads in /proc"),
]
OPTIONS = ["train", "demo", "--steps", "2", "--cycle", "4", "--prompts-per-step", "2", "--group-size", "2"]
OPTIONS += ["--mini-batch-prompts", "1", "--l-max", "24", "--l-min", "12", "--eval-data", "--quiet"]


@pytest.fixture
def busy() -> Iterator[None]:
    """Another process that never lets go of its processor."""
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield
    spinning.kill()
    spinning.wait()


def test_ranks_leave_in_order_whichever_way(tmp_path, busy, torture, long, fault):
    """Forked ranks, which join, save, and leave by main's exit code and the interpreter's end."""
    ways = leaving_worker.WAYS
    rounds, ranks = len(ways) * long(1, 13), 4 if torture else 2
    done = subprocess.run(
        [sys.executable, "-m", leaving_worker.__name__, str(tmp_path), str(rounds), str(ranks)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=leaving_worker.PATIENCE_S * rounds,
    )
    outcome = json.loads(done.stdout)
    assert not outcome["said"], "\n".join(outcome["said"])
    each = rounds // len(ways) * ranks
    assert outcome["codes"] == {way: {str(code): each} for way, code in ways.items()}
    fault("ranks leave beside a busy process", f"{rounds} x {ranks}", "no abort, no hang, no thread left, in 8 ways")


@pytest.mark.parametrize("way", ["end", "signal", "input", "early"])
def test_runs_on_ranks_leave_in_order(tmp_path, busy, torture, way, fault):
    """The same with `siri train` under torchrun, which has an exit code of its own."""
    if way != "end" and not torture:
        pytest.skip("the long form")
    options = [*OPTIONS, *(["--steps", "500"] if way == "signal" else [])]
    if way == "input":  # refused when the ranks have joined
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "not a run").touch()
    if way == "early":
        options += ["--group-size", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = command(tmp_path / "run", options, ranks=4 if torture else 2, module=UNREPORTED)
    process = subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True)
    if way == "signal":
        wait_for(tmp_path / "run" / "metrics.jsonl", process)
        process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=600)
    assert "terminate called" not in said and "SIGABRT" not in said, said[-4000:]
    assert (process.returncode == 0) == (way == "end"), said[-4000:]
    if way in ("input", "early"):
        assert said.count("siri: ") == 1, said
    fault(f"siri train on ranks: {way}", "1", "no abort")


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
