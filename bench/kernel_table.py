"""The rows of the table: ours and the floor in this process, every group of peers in a process of its own with the same
floor and ours beside it, so that a peer's crash costs its own rows only and every ratio is of one process.

`python bench/kernel_table.py --peers NAME ... --sizes SIZE ... --rows FILE` is such a process; `kernel_goals` starts
it.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from kernel_check import Verdict, verdicts
from kernel_contestants import FLOORS, NOBODY, contestants, is_ours, policy_loss
from kernel_groups import GROUPS, missing, too_large
from kernel_measure import ON_GPU, extra_bytes, gemms, guarded, median_ms, queued_ms, warm_up
from kernel_problems import KINDS, SIZES, Problem, problem

CHECKED_ROWS = 2048
"""Tokens of the problem on which every contestant is first held to fp64; D and V are those of the size"""
START_S = 25
"""A process that has less left is not started; one is given so much more to end"""
QUEUED_OPS = ("forward", "forward_backward")
"""What is also timed in a queue"""
ROOM = 0.85
"""Share of the device's memory that somebody may plan with"""


def named(size: str, kind: str) -> str:
    return size if kind == "peaked" else f"{size}-{kind}"


def variants(p: Problem) -> dict[str, Callable]:
    """Our step with half the rows without a gradient, where the host knows which, and with an entropy bonus."""
    half = torch.arange(0, p.hidden.shape[0], 2, device=p.hidden.device)
    return {
        "siri keep 50% skip": policy_loss(p, keep=half, forward_all=False),
        "siri keep 50% forward-all": policy_loss(p, keep=half, forward_all=True),
        "siri entropy bonus": policy_loss(p, entropy_coef=0.01),
    }


def small_problem(size: str, kind: str) -> Problem:
    n, d, vocab = SIZES[size]
    return problem((min(n, CHECKED_ROWS) // 8 * 8, d, vocab), kind)


def admitted(op: str, judged: dict[str, Verdict | None], p: Problem) -> set[str]:
    """Who computes the right thing and fits; of the others one line each."""
    room = int(ROOM * torch.cuda.get_device_properties(0).total_memory) if ON_GPU else sys.maxsize
    names = set()
    for name, verdict in judged.items():
        reason = too_large(name, p, room) if "logits" not in op else None
        if verdict is None or not verdict.same:
            reason = "it does not run here" if verdict is None else f"its answer is another one, {verdict}"
        if reason:
            print(f"{op}: {name} left out: {reason}", flush=True)
        else:
            names.add(name)
    return names


def rows_of(
    op: str,
    p: Problem,
    size: str,
    rounds: int,
    judged: dict[str, Verdict | None],
    deadline: float,
    peers: frozenset[str] = NOBODY,
) -> list[dict]:
    """Rows of one op: time, ratio to the GEMMs and to ours of the same rounds, memory, error. Without peers those of
    the floor and all of ours, else the peers' alone."""
    names = admitted(op, judged, p)
    floor = FLOORS.get(op)
    functions = {floor: gemms(p)[floor]} if floor else {}
    functions |= {name: function for name, function in contestants(op, p, peers).items() if name in names}
    if op == "forward_backward" and not peers:
        functions |= variants(p)
    warm = warm_up(functions, p)
    memory: dict[str, int | None] = {floor: None} if floor else {}
    for name in warm.keys() - memory.keys():
        with guarded(name):
            memory[name] = extra_bytes(functions[name], p)
    warm = {name: ms for name, ms in warm.items() if name in memory}
    times = median_ms(functions, warm, rounds, deadline)
    queued = {}
    if ON_GPU and op in QUEUED_OPS and not peers and time.monotonic() < deadline:
        with guarded("a queue of steps"):
            queued = queued_ms({name: functions[name] for name in (floor, "siri") if name in times}, 3)
    ours = times.get("siri")
    rows = []
    for impl, ms in times.items():
        if peers and (impl == floor or is_ours(impl)):
            continue
        verdict = judged.get(impl)
        error = verdict.error if verdict else None
        row = {"op": op, "impl": impl, "size": size, "ms": ms, "n": p.hidden.shape[0], "extra_bytes": memory[impl]}
        row |= {"ratio_to_gemm": ms / times[floor] if floor in times else None, "siri_ms": ours}
        row |= {"siri_bytes": memory.get("siri"), "queued_ms": queued.get(impl)}
        row |= {"max_error": error if error is not None and math.isfinite(error) else None}
        rows.append(row)
    return rows


def judge(op: str, size: str, kind: str, peers: frozenset[str]) -> dict[str, Verdict | None]:
    small = small_problem(size, kind)
    judged = verdicts(op, small, peers)
    small.release()
    return judged


def tabulate(
    size: str,
    kind: str,
    ops: Sequence[str],
    rounds: int,
    deadline: float,
    written: Callable[[list[dict]], None],
    peers: frozenset[str] = NOBODY,
) -> None:
    """`written` gets the rows of each op as soon as they are there; nothing is begun after the deadline."""
    p = None
    for op in ops:
        if time.monotonic() > deadline:
            print(f"{named(size, kind)}: time is up, {op} of {', '.join(sorted(peers)) or 'ours'} stays unmeasured")
            continue
        judged = judge(op, size, kind, peers)
        if peers and not any(name for name in judged if not is_ours(name)):
            continue
        p = p or problem(size, kind)
        written(rows_of(op, p, named(size, kind), rounds, judged, deadline, peers))
        p.release()
        if ON_GPU:
            torch.cuda.empty_cache()


# --- peers ---


def groups() -> list[tuple[str, ...]]:
    """The peers that are installed, as they share processes; of the others one line."""
    absent: dict[str, list[str]] = {}
    starts = []
    for group in GROUPS:
        here = []
        for name in group:
            package = missing(name)
            if package:
                absent.setdefault(package, []).append(name)
            else:
                here.append(name)
        if here:
            starts.append(tuple(here))
    for package, names in absent.items():
        print(f"{package} is not installed: {', '.join(names)} stay unmeasured")
    if ON_GPU:
        return starts
    return [tuple(name for group in starts for name in group)]  # no context to lose, and a start takes its time


def measure_alone(
    group: tuple[str, ...], sizes: Sequence[str], kind: str, ops: Sequence[str], rounds: int, deadline: float
) -> list[dict]:
    """Rows of a group of peers at these sizes, from a process of its own."""
    left = deadline - time.monotonic()
    if left < START_S and ON_GPU:
        print(f"time is up, {', '.join(group)} stay unmeasured at {', '.join(named(s, kind) for s in sizes)}")
        return []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, __file__, "--peers", *group, "--sizes", *sizes, "--kind", kind, "--ops", *ops]
        command += ["--rounds", str(rounds), "--seconds", f"{left:.0f}", "--rows", str(file)]
        try:
            code = subprocess.run(command, timeout=left + START_S).returncode
        except subprocess.TimeoutExpired:
            code = "its time limit"
        if code:
            print(f"the process of {', '.join(group)} ended with {code}; rows that it had measured stay")
        return json.loads(file.read_text()) if file.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description="Rows of a few peers, for kernel_goals.py.")
    parser.add_argument("--peers", nargs="+", required=True)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, required=True)
    parser.add_argument("--kind", choices=KINDS, default="peaked")
    parser.add_argument("--ops", nargs="+", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    rows: list[dict] = []

    def written(more: list[dict]) -> None:
        rows.extend(more)
        partial = options.rows.with_suffix(".part")
        partial.write_text(json.dumps(rows))
        partial.replace(options.rows)

    for size in options.sizes:
        tabulate(size, options.kind, options.ops, options.rounds, deadline, written, frozenset(options.peers))


if __name__ == "__main__":
    main()
