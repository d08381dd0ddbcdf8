"""Golden results of the kernels: what the loss gave when kernels.json was written, so that a change which means to move
no number can show that it moved none.

    python tests/golden/kernels.py            compare with tests/golden/kernels.json
    python tests/golden/kernels.py --write    make kernels.json anew

One thread, Triton in its interpreter. With the versions and the processor that kernels.json names the comparison is bit
for bit, whole gradients included (their digests); elsewhere to 1e-6 of each quantity's largest number, and to bf16's
rounding where a gradient is stored in bf16.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import numpy
import torch
import triton
from siri_kernels import linear_grpo_loss
from torch import Tensor

FILE = Path(__file__).with_name("kernels.json")
LENGTHS = (5, 0, 13, 1, 8)
WIDTH, VOCAB = 24, 61
TOLERANCE = 1e-6
BF16_TOLERANCE = 4e-3

SETTINGS = {
    "clipped tokens": {"dual_clip": 1.3, "importance": "tis", "importance_cap": 1.1, "entropy_coef": 0.02},
    "sequence ratios": {"loss": "gspo", "clip_low": 0.02, "clip_high": 0.03, "aggregation": "seq_mean", "memory": 6400},
    "lean": {
        "loss": "cispo",
        "clip_low": None,
        "importance": "icepop",
        "importance_low": 0.6,
        "importance_cap": 2.0,
        "memory": "lean",
        "softcap": 3.0,
    },
}
PATHS = {
    "reference": torch.float64,
    "torch": torch.float32,
    "fallback": torch.float32,
    "anchored": torch.bfloat16,
}


def steps(*shape: int, seed: int, size: float) -> Tensor:
    """Multiples of size / 64 in (-size, size) that no version of a random generator can move."""
    i = torch.arange(math.prod(shape), dtype=torch.int64)
    for _ in range(3):
        i = (i * 69_069 + seed * 104_729 + 12_345) % 2**31
        i = i ^ (i >> 13)
    scattered = i % 127
    return ((scattered - 63).double() * (size / 64)).view(shape)


def problem(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    """[hidden, weight, bias] that get gradients, [target_ids, advantages], and the tensors of the loss."""
    n = sum(LENGTHS)
    leaves = [steps(n, WIDTH, seed=1, size=1.0), steps(VOCAB, WIDTH, seed=2, size=0.5), steps(VOCAB, seed=3, size=0.5)]
    leaves = [leaf.to(dtype).requires_grad_() for leaf in leaves]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    target_ids = (torch.arange(n) * 17 + 5) % VOCAB
    tensors = {
        "cu_seqlens": torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()]),
        "mask": torch.arange(n) % 7 != 3,
        "old_logp": steps(n, seed=4, size=1.0).to(wide) - 4.5,
        "rollout_logp": steps(n, seed=5, size=1.0).to(wide) - 4.5,
    }
    return leaves, [target_ids, steps(len(LENGTHS), seed=6, size=2.0).to(wide)], tensors


def record(path: str, settings: dict) -> dict:
    """Numbers as hex strings: the loss, log-probs, entropies and metrics whole, of gradients the row sums, exactly
    rounded, and a digest of all their bits."""
    (hidden, weight, bias), arguments, tensors = problem(PATHS[path])
    if path == "reference":
        settings = {name: value for name, value in settings.items() if name != "memory"}
    result = linear_grpo_loss(hidden, weight, *arguments, bias=bias, impl=path, **tensors, **settings)
    (2.5 * result.loss).backward()
    numbers = {"loss": result.loss.detach(), "logp": result.logp, "entropy": result.entropy, **result.metrics}
    out = {name: hexed(value.flatten().tolist()) for name, value in numbers.items()}
    for name, leaf in (("d_hidden", hidden), ("d_weight", weight), ("d_bias", bias)):
        rows = leaf.grad.reshape(leaf.shape[0], -1).double().tolist()
        out[name] = hexed(math.fsum(row) for row in rows)
        out[f"{name} digest"] = hashlib.sha256(leaf.grad.view(torch.uint8).numpy().tobytes()).hexdigest()
    return out


def hexed(values) -> list[str]:
    return [float(value).hex() for value in values]


def records() -> dict[str, dict]:
    torch.set_num_threads(1)
    return {f"{name}, {path}": record(path, settings) for name, settings in SETTINGS.items() for path in PATHS}


def machine() -> dict[str, str]:
    """What the last bits depend on. Virtual machines call several generations of processors by one name."""
    lines = re.findall(r"^(model name|cpu family|model)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    cpu = dict(reversed(lines))
    name = f"{cpu['model name']} {cpu['cpu family']}.{cpu['model']}" if len(cpu) == 3 else platform.machine()
    return {
        "torch": torch.__version__,
        "triton": triton.__version__,
        "numpy": numpy.__version__,
        "processor": f"{name}, {torch.backends.cpu.get_cpu_capability()}",
    }


def differences(golden: dict, exact: bool) -> Iterator[str]:
    """One line for each quantity that moved."""
    now = records()
    if now.keys() != golden.keys():
        yield f"cases: {sorted(now.keys() ^ golden.keys())}"
    for case in now.keys() & golden.keys():
        if now[case].keys() != golden[case].keys():
            yield f"{case}: {sorted(now[case].keys() ^ golden[case].keys())}"
        for name in now[case].keys() & golden[case].keys():
            new, old = now[case][name], golden[case][name]
            if exact:
                if new != old:
                    yield f"{case}: {name} is not what it was, bit for bit"
            elif isinstance(old, list):
                error, limit = distance(new, old), TOLERANCE
                if PATHS[case.rsplit(", ", 1)[1]] == torch.bfloat16 and name.startswith("d_"):
                    limit = BF16_TOLERANCE
                if not error <= limit:
                    yield f"{case}: {name} moved by {error:.1e}, more than {limit:.0e}"


def distance(new: list[str], old: list[str]) -> float:
    """The largest difference over the largest number, or over 1 where all are smaller than a millionth."""
    x, y = ([float.fromhex(value) for value in values] for values in (new, old))
    largest = max(map(abs, y), default=0.0)
    if len(x) != len(y):
        return math.inf
    return max((abs(a - b) for a, b in zip(x, y, strict=True)), default=0.0) / (largest if largest > 1e-6 else 1.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"make {FILE.name} anew instead of comparing with it")
    if parser.parse_args().write:
        content = {"machine": machine(), "cases": records()}
        lines = json.dumps(content, indent=1)
        FILE.write_text(re.sub(r"\s*\n {4}(?=\S)|\n {3}(?=\])", " ", lines) + "\n")  # a list of numbers on one line
        print(f"wrote {FILE}")
        return 0
    golden = json.loads(FILE.read_text())
    exact = golden["machine"] == machine()
    print("compared " + ("bit for bit" if exact else f"to {TOLERANCE:.0e}: {machine()}, not {golden['machine']}"))
    moved = sorted(differences(golden["cases"], exact))
    print("\n".join(moved) or "nothing moved")
    return 1 if moved else 0


if __name__ == "__main__":
    sys.exit(main())
