"""Runs as processes: started, watched and killed with all that they have started."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from tests.support import warm
from tests.support.saving import tensors

UNREPORTED = "tests.support.unreported"


def command(run: Path, options: list[str], *, ranks: int = 1, module: str = "siri") -> list[str]:
    """siri with `options` in the folder `run`, started or continued; under torchrun from two ranks on. module: what
    stands for siri; UNREPORTED draws no report."""
    # --standalone takes a free port: at the default one, two suites on a machine would meet
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"] if ranks > 1 else []
    return [sys.executable, "-m", *torchrun, module, *options, "--run-dir", str(run), "--auto-resume"]


def start(run: Path, options: list[str], *, ranks: int = 1, module: str = "siri") -> subprocess.Popen:
    # one thread: how many work on a sum decides its last bit
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = command(run, options, ranks=ranks, module=module)
    return warm.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)


def family(pid: int) -> list[int]:
    """A process and all that it has started, and they."""
    pids = [pid]
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/comm").read_text().strip() == warm.NURSERY:  # no part of the run
            return []
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                pids += family(int(child))
    return pids


def kill(process: subprocess.Popen) -> None:
    """kill -9, all of the family at once."""
    members = family(process.pid)
    for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first, so that none sees another one die
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    process.wait()
    process.stderr.close()


def finish(process: subprocess.Popen, *, timeout: float = 600) -> int:
    """Wait for the end; the exit status."""
    _, error = process.communicate(timeout=timeout)
    if process.returncode not in (0, 75):
        print(error[-3000:])
    return process.returncode


def lasting(path: Path) -> list[dict]:
    """Rows of a log without what depends on the clock or the machine."""
    clock = ("_s", "per_s", "time", "memory", "mfu")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if not k.endswith("_s") and not any(w in k for w in clock[1:])} for row in rows
    ]


def assert_same_run(first: Path, second: Path, *, hint: str = "") -> None:
    """Metrics, evaluations and every file of the last checkpoint are the same, and the same checkpoints are there."""
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert lasting(first / name) == lasting(second / name), f"{hint}: {name} differs"
    names = [sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (first, second)]
    assert names[0] == names[1], hint
    last = max(name for name in names[0] if name.startswith("step_"))
    # the bytes of safetensors are not: its header lists a file's metadata in any order
    held = [tensors(folder / "checkpoints" / last) for folder in (first, second)]
    assert held[0].keys() == held[1].keys() and any("exp_avg" in name for name in held[0]), hint
    different = [name for name in held[0] if not torch.equal(held[0][name], held[1][name])]
    assert not different, f"{hint}: {last} differs in {different}"
    states = [(folder / "checkpoints" / last / "state.json").read_bytes() for folder in (first, second)]
    assert states[0] == states[1], f"{hint}: {last} differs in its state"
