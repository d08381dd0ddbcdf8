"""The golden curves of the demo: 20 steps of seed 0 on one rank and on two, as numbers that must not move.

    python -m tests.golden.demo     make tests/golden/demo.json anew

They move only with a commit that says why. `demo.json` holds the environment that made it: where that is the same, the
curves are the same bit for bit.
"""

import json
import os
import platform
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.support import warm
from tests.support.processes import UNREPORTED, command, lasting

GOLDEN = Path(__file__).parent / "demo.json"
OPTIONS = ["train", "demo", "--steps", "20", "--cycle", "20", "--eval-problems", "256", "--seed", "0", "--quiet"]
RANKS = (1, 2)


def environment() -> dict[str, Any]:
    """What decides the last bit of the curves: versions, the processor (its maker and generation too: libraries take
    other kernels for the same instructions, and virtual machines call several generations by one name) and the number
    of threads."""
    lines = re.findall(r"^(model name|cpu family|model)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    cpu = dict(reversed(lines))
    name = f"{cpu['model name']} {cpu['cpu family']}.{cpu['model']}" if len(cpu) == 3 else platform.machine()
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": f"{name}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": 1,
    }


def run(folder: Path, ranks: int) -> None:
    """Train the short demo in `folder`, with one thread a rank."""
    threads = {**os.environ, "OMP_NUM_THREADS": "1"}
    warm.run(
        command(folder, OPTIONS, ranks=ranks, module=UNREPORTED), env=threads, check=True, stdout=subprocess.DEVNULL
    )


def curves(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Metrics and evaluations of a run without what depends on the clock or the machine."""
    return {name: lasting(folder / f"{name}.jsonl") for name in ("metrics", "eval")}


def write(made_by: dict[str, Any], golden: dict[str, Any]) -> None:
    """demo.json, one step a line, so that a difference can be read."""
    ranks = []
    for number, logs in golden.items():
        tables = [f'"{name}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]" for name, rows in logs.items()]
        ranks.append(f'"{number}": {{' + ",\n".join(tables) + "}")
    GOLDEN.write_text(f'{{"environment": {json.dumps(made_by)},\n"ranks": {{\n' + ",\n".join(ranks) + "\n}}\n")


def main() -> None:
    golden: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for ranks in RANKS:
            run(Path(folder, str(ranks)), ranks)
            golden[str(ranks)] = curves(Path(folder, str(ranks)))
    write(environment(), golden)
    print(GOLDEN)


if __name__ == "__main__":
    main()
