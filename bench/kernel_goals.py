"""The table of the head's goals: everything in one process, interleaved, medians, as ratios to the same GEMMs.

`python bench/kernel_goals.py [--sizes tiny 1.5b 7b] [--out FILE]` prints it and writes the JSON (see `records`). Each
size is measured twice: with peaked distributions, as in text sampled from a trained model, and ("SIZE-random") with
random ones, which flatter kernels that skip small probabilities. On a CPU it runs the tiny size, so that it cannot
rot; its goals stay unmeasured there, because no speed is claimed from that.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import records
import torch
from kernel_check import Verdict, verdicts
from kernel_contestants import FLOORS, OPS, contestants, policy_loss
from kernel_measure import ON_GPU, accuracy, extra_bytes, gemms, median_ms, shapes, synchronisations
from kernel_problems import SIZES, Problem, problem

# id -> (threshold, better); where it depends on the size, by size
GOALS = {
    "G1": (1.15, "lower"),
    "G2": ({"1.5b": 1.15, "7b": 1.12}, "lower"),
    "G3.liger-cute": (1.15, "higher"),
    "G3.verl-triton": ({"1.5b": 2.0, "7b": 1.8}, "higher"),
    "G3.verl-torch-512": (2.5, "higher"),
    "G4.liger-grpo": (5.0, "higher"),
    "G4.liger-grpo-tf32": (2.0, "higher"),
    "G4.trl-chunked": (5.0, "higher"),
    "G4.trl-chunked-tf32": (2.0, "higher"),
    "G5.cce": (1.05, "higher"),
    "G5.cce-exact": (1.8, "higher"),
    "G5.quack": (0.95, "higher"),
    "G6.torch.compile": ({"1.5b": 1.05, "7b": 0.97}, "higher"),
    "G6.eager": ({"1.5b": 1.8, "7b": 1.35}, "higher"),
    "G6.memory-torch.compile": (0.2, "lower"),
    "G6.memory-eager": (0.2, "lower"),
    "G7.skip": (0.56, "lower"),
    "G7.forward-all": (0.70, "lower"),
    "G8.logp": (2e-5, "lower"),
    "G8.entropy": (1e-4, "lower"),
    "G9.dX": (4e-3, "lower"),
    "G9.dW": (4e-3, "lower"),
    "G10.rerun": (0.0, "lower"),
    "G10.packing": (1e-5, "lower"),
    "G10.ratio": (0.0, "lower"),
    "G10.anchored-packing": (0.0, "lower"),
    "G10.anchored-ratio": (0.0, "lower"),
    "G11.syncs": (0, "lower"),
    "G12.fast-gb": ({"1.5b": 4.2, "7b": 6.2}, "lower"),
    "G12.lean-gb": ({"1.5b": 1.1, "7b": 2.1}, "lower"),
    **{f"G13.vocab-{vocab}": (2e-5, "lower") for vocab in (151_936, 152_064, 128_256, 248_320)},
    "G13.ragged": (2e-5, "lower"),
    "G13.rows-70001": (2e-5, "lower"),
    "G13.offsets": (2e-5, "lower"),
    "G13.logit-offsets": (2e-5, "lower"),
    "G13.all-masked": (0.0, "lower"),
}
SUFFIX = {True: "", False: "-random"}
CHECKED_ROWS = 2048
"""Tokens of the problem on which every contestant is first held to fp64; D and V are those of the size"""
MEASURED = ("forward", "forward_backward", "cross_entropy")
"""Ops that goals are about; the others come last, for the table."""


def halves(p: Problem) -> dict:
    """A step of which half the rows have no gradient, and the host knows which."""
    half = torch.arange(0, p.hidden.shape[0], 2, device=p.hidden.device)
    names = {"siri keep 50% skip": False, "siri keep 50% forward-all": True}
    return {name: policy_loss(p, keep=half, forward_all=forward_all) for name, forward_all in names.items()}


def rows_of(op: str, p: Problem, size: str, rounds: int, judged: dict[str, Verdict | None]) -> list[dict]:
    """The table's rows of one op: time, ratio to the GEMMs, memory, error. Who computes something else is left out."""
    found = {name: f for name, f in contestants(op, p).items() if judged.get(name) and judged[name].same}
    for name in judged.keys() - found.keys():
        print(f"{op}: {name} left out, {'its answer is another one' if judged[name] else 'it does not run here'}")
    floor = FLOORS.get(op)
    memory = {}
    for name, function in list(found.items()):
        try:
            memory[name] = extra_bytes(function, p)
        except torch.OutOfMemoryError:
            print(f"{op}: {name} runs out of memory")
            del found[name]
            torch.cuda.empty_cache()
    extra = halves(p) if op == "forward_backward" else {}
    times = median_ms(({floor: gemms(p)[floor]} if floor else {}) | found | extra, rounds)
    rows = []
    for impl, ms in times.items():
        error = judged[impl].error if judged.get(impl) else None
        row = {"op": op, "impl": impl, "size": size, "ms": ms, "ratio_to_gemm": ms / times[floor] if floor else None}
        row |= {"extra_bytes": memory.get(impl), "max_error": error if error is None or math.isfinite(error) else None}
        rows.append(row)
    return rows


def goals_from(rows: list[dict]) -> dict[str, float]:
    """The goals that times and memory answer."""
    ms = {(row["op"], row["impl"]): row["ms"] for row in rows}
    memory = {row["impl"]: row["extra_bytes"] for row in rows if row["op"] == "forward_backward"}
    values: dict[str, float] = {}

    def ratio(name: str, above: tuple[str, str], below: tuple[str, str]) -> None:
        if above in ms and below in ms:
            values[name] = ms[above] / ms[below]

    ratio("G1", ("forward", "siri"), ("forward", "gemm"))
    ours = ("forward_backward", "siri")
    ratio("G2", ours, ("forward_backward", "gemms"))
    for name in GOALS:
        ratio(name, ("forward_backward", name.partition(".")[2]), ours)
    ratio("G5.quack", ("cross_entropy", "quack"), ("cross_entropy", "siri"))
    ratio("G7.skip", ("forward_backward", "siri keep 50% skip"), ours)
    ratio("G7.forward-all", ("forward_backward", "siri keep 50% forward-all"), ours)
    for peer in ("eager", "torch.compile"):
        if memory.get(peer) and memory.get("siri"):
            values[f"G6.memory-{peer}"] = memory["siri"] / memory[peer]
    for mode, impl in (("fast", "siri"), ("lean", "siri-lean")):
        if memory.get(impl):
            values[f"G12.{mode}-gb"] = memory[impl] / 1e9
    return values


def others(p: Problem, size: str) -> dict[str, float]:
    """The goals about accuracy, determinism, synchronisation and shapes."""
    values = accuracy(p)
    if ON_GPU:
        anchored = accuracy(p, impl="anchored")
        values |= {f"G10.anchored-{name}": anchored[f"G10.{name}"] for name in ("packing", "ratio")}
        values["G11.syncs"] = synchronisations(contestants("forward_backward", p)["siri"])
    if not size.endswith("-random"):
        values |= shapes(p.hidden.shape[1])
    return values


def goals_of(size: str, values: dict[str, float]) -> list[dict]:
    """The goals of one size; unmeasured where this run has no answer, and everywhere at the tiny size."""
    plain = size.removesuffix("-random")
    entries = []
    for name, (threshold, better) in GOALS.items():
        limit = threshold.get(plain, threshold["1.5b"]) if isinstance(threshold, dict) else threshold
        if name.startswith("G13") and plain != size:
            continue
        entries.append(records.goal(f"{name}.{size}", None if plain == "tiny" else values.get(name), limit, better))
    return entries


def tabulate(size: str, peaked: bool, ops: tuple[str, ...], rounds: int, out: Path, deadline: float) -> list[dict]:
    """Rows of these ops: everybody checked on a part of the problem, then timed; written op by op, so that a limit on
    time costs only what comes after."""
    name = f"{size}{SUFFIX[peaked]}"
    n, d, vocab = SIZES[size]
    small, p = problem((min(n, CHECKED_ROWS), d, vocab), peaked=peaked), problem(size, peaked=peaked)
    rows: list[dict] = []
    for op in ops:
        if time.monotonic() > deadline:
            print(f"{name}: time is up, {op} stays unmeasured")
            continue
        judged = verdicts(op, small)
        small.release()
        rows += rows_of(op, p, name, rounds, judged)
        p.release()
        records.write(out, rows, [])
    return rows


def measure(size: str, peaked: bool, rounds: int, out: Path, deadline: float) -> None:
    """The goals of one size with one kind of distribution."""
    name = f"{size}{SUFFIX[peaked]}"
    rows = tabulate(size, peaked, MEASURED, rounds, out, deadline)
    values = goals_from(rows)
    if time.monotonic() < deadline:
        values |= others(problem(size, peaked=peaked), name)
    goals = goals_of(name, values)
    records.write(out, rows, goals)
    records.show(rows, goals)


def main() -> None:
    parser = argparse.ArgumentParser(description="The goals of the fused LM head, measured.")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["1.5b", "7b"] if ON_GPU else ["tiny"])
    parser.add_argument("--rounds", type=int, default=9 if ON_GPU else 3)
    parser.add_argument("--seconds", type=float, default=470, help="nothing new is begun after that")
    parser.add_argument("--out", type=Path, default=records.default_path(), help="bench/results/DEVICE-DATE.json")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    common = (options.rounds, options.out, deadline)
    for peaked in (True, False):
        for size in options.sizes:
            measure(size, peaked, *common)
            if ON_GPU:
                torch.cuda.empty_cache()
    for size in options.sizes:  # for the table; no goal is about these
        records.show(tabulate(size, True, tuple(op for op in OPS if op not in MEASURED), *common), [])
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
