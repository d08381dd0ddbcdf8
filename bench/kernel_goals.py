"""The table of the head's goals: medians of interleaved rounds, as ratios to the same GEMMs in the same process.

`python bench/kernel_goals.py [--sizes tiny 1.5b 7b] [--seconds S] [--out FILE]` prints it and writes the JSON (see
`records`) part by part, in the order of `parts_of`: what is right first, then ours and the floor, then the peers, so
that a short run still answers what matters most. Distributions are peaked, as in text sampled from a trained model;
"SIZE-random" has random ones, which flatter kernels that skip small probabilities. On a CPU it runs the tiny size, so
that it cannot rot; its goals stay unmeasured there, because no speed is claimed from that.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import records
import torch
from kernel_contestants import NOBODY, OPS, contestants
from kernel_groups import GROUPS
from kernel_measure import ON_GPU, accuracy, hard_logits, invariance, shapes, synchronisations
from kernel_peers import first_line
from kernel_problems import SIZES, problem
from kernel_table import groups, measure_alone, tabulate

MAIN = ("1.5b", "7b")
SMALL = {"tiny": ("tiny-96", "tiny-ragged"), "1.5b": ("1.5b-2048", "1.5b-4096", "1.5b-8192", "1.5b-ragged")}
SMALL["7b"] = ("7b-8192", "7b-ragged")


def at(value: float, *sizes: str) -> dict[str, float]:
    return dict.fromkeys(sizes, value)


# id -> (threshold by size, better); why just these: bench/NOTES.md
GOALS: dict[str, tuple[dict[str, float], str]] = {
    "G1": (at(1.15, *MAIN), "lower"),
    "G2": ({"1.5b": 1.15, "7b": 1.12}, "lower"),
    "G3.liger-cute": (at(1.15, *MAIN), "higher"),
    "G3.liger-native": (at(1.2, *MAIN), "higher"),
    "G3.verl-triton": ({"1.5b": 2.0, "7b": 1.8}, "higher"),
    "G3.verl-torch-512": (at(2.5, *MAIN), "higher"),
    "G4.liger-grpo": (at(5.0, *MAIN), "higher"),
    "G4.liger-grpo-tf32": (at(2.0, *MAIN), "higher"),
    "G4.trl-chunked": (at(1.4, *MAIN), "higher"),
    "G5.cce": (at(1.05, *MAIN), "higher"),
    "G5.cce-exact": (at(1.8, *MAIN), "higher"),
    "G5.quack": (at(0.95, *MAIN), "higher"),
    "G6.torch.compile": (at(1.05, "1.5b", "1.5b-8192") | at(0.97, "7b", "7b-8192"), "higher"),
    "G6.eager": (at(1.8, "1.5b", "1.5b-8192") | at(1.35, "7b", "7b-8192"), "higher"),
    "G6.memory-torch.compile": (at(0.2, *MAIN), "lower"),
    "G6.memory-eager": (at(0.2, *MAIN), "lower"),
    "G7.skip": (at(0.56, *MAIN), "lower"),
    "G7.forward-all": (at(0.70, *MAIN), "lower"),
    "G8.logp": (at(2e-5, *MAIN), "lower"),
    "G8.entropy": (at(1e-4, *MAIN), "lower"),
    "G9.dX": (at(4e-3, *MAIN), "lower"),
    "G9.dW": (at(4e-3, *MAIN), "lower"),
    "G10.rerun": (at(0.0, *MAIN), "lower"),
    "G10.packing": (at(0.0, *MAIN), "lower"),
    "G10.ratio": (at(0.0, *MAIN), "lower"),
    "G10.fallback-packing": (at(1e-5, *MAIN), "lower"),
    "G10.fallback-ratio": (at(1e-5, *MAIN), "lower"),
    "G11.syncs": (at(0, *MAIN), "lower"),
    "G12.fast-gb": ({"1.5b": 4.2, "7b": 6.2}, "lower"),
    "G12.lean-gb": ({"1.5b": 1.1, "7b": 2.1}, "lower"),
    **{f"G13.vocab-{vocab}": (at(2e-5, *MAIN), "lower") for vocab in (151_936, 152_064, 128_256, 248_320)},
    **{f"G13.{name}": (at(2e-5, *MAIN), "lower") for name in ("ragged", "rows-70001", "offsets", "logit-offsets")},
    "G13.all-masked": (at(0.0, *MAIN), "lower"),
    "G14": ({"1.5b-2048": 1.25, "1.5b-4096": 1.2, "1.5b-8192": 1.15, "7b-8192": 1.15}, "lower"),
    "G14.ragged": (at(1.15, "1.5b-ragged", "7b-ragged"), "lower"),
    "G14.queued": ({"1.5b-2048": 1.25, "1.5b-4096": 1.2, "1.5b-8192": 1.15, "7b-8192": 1.15}, "lower"),
    "G15": (at(1.25, *MAIN), "lower"),
    "G16": (at(1.15, "yardstick"), "lower"),
    "G17.offset": (at(5e-5, *MAIN), "lower"),
    "G17.dominated": (at(5e-5, *MAIN), "lower"),
}
SAMPLED = ("G13", "G17", "G14", "G16")
"""Goals that no other distribution of the main sizes has"""
MEASURED = ("forward", "forward_backward", "cross_entropy")
"""Ops that goals are about; the others come last, for the table."""


def goals_from(rows: list[dict]) -> dict[str, float]:
    """The goals that rows of one size answer. A peer is held against ours in its own process."""
    by_name = {(row["op"], row["impl"]): row for row in rows}
    values: dict[str, float] = {}

    def to_floor(name: str, op: str, impl: str) -> None:
        row = by_name.get((op, impl))
        if row and row["ratio_to_gemm"]:
            values[name] = row["ratio_to_gemm"]

    def to_ours(name: str, op: str, impl: str) -> None:
        row = by_name.get((op, impl))
        if row and row["siri_ms"]:
            values[name] = row["ms"] / row["siri_ms"]

    to_floor("G1", "forward", "siri")
    for name in ("G2", "G14", "G14.ragged"):
        to_floor(name, "forward_backward", "siri")
    queued = [by_name.get(("forward_backward", impl), {}).get("queued_ms") for impl in ("siri", "gemms")]
    if all(queued):
        values["G14.queued"] = queued[0] / queued[1]
    to_floor("G15", "forward_backward", "siri entropy bonus")
    to_floor("G16", "cross_entropy", "siri")
    for name in GOALS:
        if name.startswith(("G3.", "G4.", "G5.", "G6.")) and name != "G5.quack":
            to_ours(name, "forward_backward", name.partition(".")[2])
    to_ours("G5.quack", "cross_entropy", "quack")
    for name in ("skip", "forward-all"):
        to_ours(f"G7.{name}", "forward_backward", f"siri keep 50% {name}")
    for peer in ("eager", "torch.compile"):
        row = by_name.get(("forward_backward", peer))
        if row and row["extra_bytes"] and row["siri_bytes"]:
            values[f"G6.memory-{peer}"] = row["siri_bytes"] / row["extra_bytes"]
    for mode, impl in (("fast", "siri"), ("lean", "siri-lean")):
        row = by_name.get(("forward_backward", impl))
        if row and row["extra_bytes"]:
            values[f"G12.{mode}-gb"] = row["extra_bytes"] / 1e9
    return values


def promises(size: str) -> dict[str, float]:
    """G8 to G11, on ragged sequences in several chunks; of the fallback its packing and ratio as well."""
    p = problem(f"{size}-ragged")
    values = accuracy(p)
    for prefix, options in (("", {}), ("fallback-", {"impl": "fallback"} if ON_GPU else {})):
        values |= {f"G10.{prefix}{name}": value for name, value in invariance(p, **options).items()}
    if ON_GPU:
        values["G11.syncs"] = synchronisations(contestants("forward_backward", p, NOBODY)["siri"])
    return values


def hard(size: str) -> dict[str, float]:
    _, d, vocab = SIZES[size]
    return {f"G17.{kind}": error for kind, error in hard_logits(d, vocab).items()}


def goals_of(size: str, values: dict[str, float]) -> list[dict]:
    """The goals of one size; unmeasured where this run has no answer, and everywhere at the tiny size."""
    plain, tiny = size.removesuffix("-random"), size.startswith("tiny")
    entries = []
    for name, (thresholds, better) in GOALS.items():
        if plain != size and name.startswith(SAMPLED):
            continue
        limit = next(iter(thresholds.values())) if tiny else thresholds.get(plain)
        if limit is not None:
            entries.append(records.goal(f"{name}.{size}", None if tiny else values.get(name), limit, better))
    return entries


@dataclass
class Run:
    """What has been measured, and where it is written."""

    out: Path
    deadline: float
    rounds: int
    rows: dict[str, list[dict]] = field(default_factory=dict)
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    groups: list[tuple[str, ...]] = field(default_factory=groups)
    """peers that share a process"""
    sizes: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    """of the peers, where fewer than all are asked for"""

    def add_rows(self, rows: list[dict]) -> None:
        for row in rows:
            self.rows.setdefault(row["size"], []).append(row)
        for size in dict.fromkeys(row["size"] for row in rows):
            self.add_values(size, goals_from(self.rows[size]))
        records.write(self.out, rows, [])
        records.show(rows, [])

    def add_values(self, size: str, values: dict[str, float]) -> None:
        """Writes the goals of a size with what is new among them."""
        known = self.values.setdefault(size, {})
        fresh = {name: value for name, value in values.items() if name not in known}
        known |= values
        goals = goals_of(size, known)
        records.write(self.out, [], goals)
        new = [goal for goal in goals if goal["id"].removesuffix(f".{size}") in fresh]
        records.show([], [goal for goal in new if goal["met"] is not None])

    def ours(self, size: str, kind: str = "peaked", ops: tuple[str, ...] = MEASURED) -> None:
        tabulate(size, kind, ops, self.rounds, self.deadline, self.add_rows)

    def peers(self, sizes: tuple[str, ...], kind: str = "peaked", ops: tuple[str, ...] = MEASURED) -> None:
        sizes = tuple(size for size in sizes if not self.sizes or size in self.sizes)
        ops = tuple(op for op in ops if not self.ops or op in self.ops)
        for group in self.groups if sizes and ops else ():
            self.add_rows(measure_alone(group, sizes, kind, ops, self.rounds, self.deadline))


def parts_of(run: Run, sizes: list[str]) -> list[tuple[str, Callable[[], None]]]:
    """The parts in the order in which a short run needs them: name and what to do."""
    first, *others = sizes
    two = ("forward", "forward_backward")
    parts: list[tuple[str, Callable[[], None]]] = []

    def add(name: str, function: Callable[[], None]) -> None:
        parts.append((name, function))

    def measured(size: str, measure: Callable[[str], dict[str, float]]) -> Callable[[], None]:
        return lambda: run.add_values(size, measure(size))

    add(f"promises {first}", measured(first, promises))
    add(f"ours {first}", lambda: run.ours(first, ops=two))
    for size in SMALL[first]:
        add(f"ours {size}", lambda size=size: run.ours(size, ops=two))
    for size in others:
        add(f"ours {size}", lambda size=size: run.ours(size, ops=two))
    add(f"hard logits {first}", measured(first, hard))
    yardstick = ("yardstick",) if ON_GPU else ()
    for size in yardstick:
        add(f"ours {size}", lambda size=size: run.ours(size))
    for size in others:
        add(f"promises {size}", measured(size, promises))
        add(f"hard logits {size}", measured(size, hard))
    full = tuple(size for size in (*sizes, *(f"{size}-8192" for size in sizes), *yardstick) if size in SIZES)
    rest = tuple(op for op in OPS if op not in MEASURED)  # for the table; no goal is about these
    # on a CPU all at once, because there starting a process takes longer than what it measures
    add("peers", lambda: run.peers(full, ops=MEASURED if ON_GPU else tuple(OPS)))
    add(f"ours {', '.join(sizes)}, cross entropy", lambda: [run.ours(size, ops=("cross_entropy",)) for size in sizes])
    for size in others:
        for small in SMALL[size]:
            add(f"ours {small}", lambda size=small: run.ours(size, ops=two))
    for size in sizes:
        add(f"shapes {size}", measured(size, lambda size: shapes(SIZES[size][1])))
    for size in sizes:
        add(f"ours {size}, random", lambda size=size: run.ours(size, "random"))
    add("peers, random", lambda: run.peers(tuple(sizes), "random"))
    for size in sizes:
        add(f"ours {size}, other ops", lambda size=size: run.ours(size, ops=rest))
    if ON_GPU:
        add("peers, other ops", lambda: run.peers(tuple(sizes), ops=rest))
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description="The goals of the fused LM head, measured.")
    parser.add_argument("--sizes", nargs="+", choices=("tiny", *MAIN), default=list(MAIN) if ON_GPU else ["tiny"])
    parser.add_argument("--rounds", type=int, default=9 if ON_GPU else 3)
    parser.add_argument("--seconds", type=float, default=470, help="nothing new is begun after that")
    parser.add_argument("--out", type=Path, default=records.default_path(), help="bench/results/DEVICE-DATE.json")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help='parts, such as "ours*" or "peers"')
    parser.add_argument("--peers", nargs="+", choices=[n for group in GROUPS for n in group], help="no other peers")
    parser.add_argument("--peer-sizes", nargs="+", choices=SIZES, default=(), help="no other sizes of the peers")
    parser.add_argument("--peer-ops", nargs="+", choices=OPS, default=(), help="no other operations of the peers")
    options = parser.parse_args()
    begin = time.monotonic()
    peers = [tuple(n for n in group if not options.peers or n in options.peers) for group in groups()]
    run = Run(options.out, begin + options.seconds, options.rounds, groups=[group for group in peers if group])
    run.sizes, run.ops = tuple(options.peer_sizes), tuple(options.peer_ops)
    parts = parts_of(run, options.sizes)
    chosen = [(name, part) for name, part in parts if any(fnmatch(name, pattern) for pattern in options.only)]
    if not chosen:
        parser.error(f"--only: no part is called that; there are {', '.join(name for name, _ in parts)}")
    for name, part in chosen:
        if time.monotonic() > run.deadline:
            print(f"time is up: {name} stays unmeasured")
            continue
        print(f"--- {name}, after {time.monotonic() - begin:.0f} s", flush=True)
        try:
            part()
        except Exception as error:  # what comes after may still be measured
            print(f"{name} FAILED: {type(error).__name__}: {first_line(error)}", flush=True)
            run.failed.append(name)
        if ON_GPU:
            torch.cuda.empty_cache()
    print(f"written: {options.out}")
    if run.failed:
        sys.exit(f"failed: {', '.join(run.failed)}")


if __name__ == "__main__":
    main()
