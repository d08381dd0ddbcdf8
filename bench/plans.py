"""Which tile the anchored GEMM should take on this GPU: every plan, and variations of each, against the same GEMMs.

`python bench/plans.py [--sizes 1.5b 7b] [--rows 8448] [--seconds 120] [--out FILE]` compiles all candidates in parallel
processes, times them interleaved and prints, for each, the forward pass and forward with backward as multiples of
cuBLAS's one and three GEMMs, and the largest error of a log-prob against fp64. Needs a GPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import records
import torch
from kernel_contestants import policy_loss
from kernel_measure import gemms, median_ms, warm_up
from kernel_problems import SIZES, Problem, problem
from siri_kernels import linear_logprob
from siri_kernels.reference import logits, logprob_and_entropy
from siri_kernels.rows.anchored import tiles

EXACT_ROWS = 512
FLAT, BLOCKS = tiles.PLANS["flat"][90, 0], tiles.PLANS["two-blocks"][90, 0]
CANDIDATES = {
    "flat": FLAT,
    "specialized": tiles.PLANS["specialized"][90, 0],
    "two-blocks": BLOCKS,
    "flat, 3 stages": replace(FLAT, stages=3),
    "flat, whole epilogue": replace(FLAT, stages=3, subtiles=1),
    "flat, groups of 8": replace(FLAT, group=8),
    "flat, groups of 32": replace(FLAT, group=32),
    "two-blocks, 4 stages": replace(BLOCKS, stages=4),
    "two-blocks, 8 warps": replace(BLOCKS, warps=8),
    "two-blocks, groups of 32": replace(BLOCKS, group=32),
}


@contextmanager
def taken(name: str) -> Iterator[None]:
    """The candidate, as this process's plan."""
    tiles.PLANS["candidate"] = {(90, 0): CANDIDATES[name]}
    before = tiles.use_plan("candidate")
    try:
        yield
    finally:
        tiles.use_plan(before)


def forward(p: Problem):
    with torch.no_grad():
        return linear_logprob(p.hidden, p.weight, p.target_ids, impl="anchored", return_entropy=True)


def compile_for(name: str, size: tuple[int, int, int]) -> str | None:
    """Runs a candidate on a few rows; the line of the error, if it does not."""
    try:
        p = problem((1024, *size[1:]))
        with taken(name):
            forward(p)
            policy_loss(p, impl="anchored")()
        torch.cuda.synchronize()
    except Exception as error:  # a tile that this GPU or compiler refuses
        return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
    return None


def measure(name: str, size: tuple[int, int, int], usable: list[str], rounds: int) -> list[dict]:
    p = problem(size)
    exact, _ = logprob_and_entropy(logits(p.hidden[:EXACT_ROWS].detach().double(), p.weight.detach().double()),
                                   p.target_ids[:EXACT_ROWS])  # fmt: skip
    errors = {}

    def inside(candidate: str, function):
        def step():
            with taken(candidate):
                return function()

        return step

    for candidate in usable:
        logp, _ = inside(candidate, lambda: forward(p))()
        errors[candidate] = float((logp[:EXACT_ROWS].double() - exact).abs().max())
    floors = gemms(p)
    rows = []
    for op, floor, make in (
        ("plan forward", "gemm", lambda: forward(p)),
        ("plan forward_backward", "gemms", policy_loss(p, impl="anchored")),
    ):
        steps = {floor: floors[floor]} | {candidate: inside(candidate, make) for candidate in usable}
        if op == "plan forward_backward":
            steps["fallback"] = policy_loss(p, impl="fallback")
        times = median_ms(steps, warm_up(steps, p), rounds)
        rows += [
            {"op": op, "impl": impl, "size": f"{name}-{size[0]}", "ms": ms, "ratio_to_gemm": ms / times[floor]}
            | {"extra_bytes": None, "max_error": errors.get(impl)}
            for impl, ms in times.items()
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="The plans of the anchored GEMM, measured.")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["1.5b", "7b"])
    parser.add_argument("--rows", type=int, default=8448)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=120, help="no new size is begun after that")
    parser.add_argument("--out", type=Path, default=records.default_path(), help="bench/results/DEVICE-DATE.json")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench/plans.py: needs a GPU, there is none that torch can use here")
    deadline = time.monotonic() + options.seconds
    for name in options.sizes:
        if time.monotonic() > deadline:
            print(f"{name}: time is up, it stays unmeasured")
            continue
        size = (options.rows, *SIZES[name][1:])
        with multiprocessing.get_context("spawn").Pool(8) as pool:
            refused = pool.starmap(compile_for, [(candidate, size) for candidate in CANDIDATES])
        for candidate, line in zip(CANDIDATES, refused, strict=True):
            if line:
                print(f"{name}: {candidate} does not run here: {line}")
        usable = [candidate for candidate, line in zip(CANDIDATES, refused, strict=True) if not line]
        rows = measure(name, size, usable, options.rounds)
        records.show(rows, [])
        for row in rows:
            if row["max_error"] is not None and row["op"] == "plan forward":
                print(f"{row['size']} {row['impl']}: log-prob off by {row['max_error']:.1e} at most")
        records.write(options.out, rows, [])
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
