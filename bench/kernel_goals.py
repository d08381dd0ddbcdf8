"""The table of the head's goals: everything in one process, interleaved, medians, as ratios to the same GEMMs.

`python bench/kernel_goals.py [--sizes tiny 1.5b 7b] [--out FILE]` prints it and writes the JSON (rows and goals; rows
and goals of an earlier file for the same machine are carried forward with the commit that measured them). On a CPU it
runs the tiny size, so that it cannot rot; its goals stay null there, because no speed is claimed from that.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from kernel_problems import SIZES, Problem, clear, forwards, problem, steps
from siri_kernels import linear_grpo_loss, linear_logprob

# id -> (threshold, better); {size} is filled in
GOALS = {
    "G1": (1.15, "lower"),
    "G2": ({"1.5b": 1.15, "7b": 1.12}, "lower"),
    "G3.liger-cute": (1.15, "higher"),
    "G3.verl-triton": ({"1.5b": 2.0, "7b": 1.8}, "higher"),
    "G3.verl-torch-512": (2.5, "higher"),
    "G4.liger-grpo": (5.0, "higher"),
    "G4.trl-chunked": (5.0, "higher"),
    "G5.cce": (1.05, "higher"),
    "G5.cce-exact": (1.8, "higher"),
    "G5.quack": (0.95, "higher"),
    "G6.torch.compile": ({"1.5b": 1.05, "7b": 0.97}, "higher"),
    "G6.eager": ({"1.5b": 1.8, "7b": 1.35}, "higher"),
    "G6.memory": (0.2, "lower"),
    "G7.skip": (0.56, "lower"),
    "G7.forward-all": (0.70, "lower"),
    "G8.logp": (2e-5, "lower"),
    "G8.entropy": (1e-4, "lower"),
    "G9.dX": (4e-3, "lower"),
    "G9.dW": (4e-3, "lower"),
    "G10.rerun": (0.0, "lower"),
    "G10.packing": (1e-5, "lower"),
    "G10.ratio": (0.0, "lower"),
    "G11.syncs": (0, "lower"),
    "G12.fast-gb": ({"1.5b": 4.2, "7b": 6.2}, "lower"),
    "G12.lean-gb": ({"1.5b": 1.1, "7b": 2.1}, "lower"),
}
ON_GPU = torch.cuda.is_available()


def median_ms(functions: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Interleaved: every round runs each function once, so that clocks and heat meet all of them alike."""
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(rounds + 2):
        for name, function in functions.items():
            if ON_GPU:
                start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                function()
                stop.record()
                stop.synchronize()
                elapsed = start.elapsed_time(stop)
            else:
                begin = time.perf_counter()
                function()
                elapsed = 1e3 * (time.perf_counter() - begin)
            if round_ >= 2:
                samples[name].append(elapsed)
    return {name: statistics.median(times) for name, times in samples.items()}


def that_fit(functions: dict[str, Callable]) -> dict[str, Callable]:
    """Without those that run out of device memory, which full logits may."""
    fitting = {}
    for name, function in functions.items():
        try:
            function()
        except torch.OutOfMemoryError:
            print(f"{name}: out of memory, left out")
        else:
            fitting[name] = function
    return fitting


def extra_bytes(function: Callable, p: Problem) -> int | None:
    """Peak device memory beyond the inputs, results included."""
    if not ON_GPU:
        return None
    clear(p)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return torch.cuda.max_memory_allocated() - before


def gemms(p: Problem) -> dict[str, Callable]:
    """One forward GEMM, and the three of a step, through torch.mm in the input dtype, by chunks like ours."""
    x, w = p.hidden.detach(), p.weight.detach()
    rows = min(x.shape[0], 5632)
    z = torch.zeros(rows, w.shape[0], device=x.device, dtype=x.dtype)

    def one():
        for start in range(0, x.shape[0], rows):
            part = x[start : start + rows]
            torch.mm(part, w.T, out=z[: part.shape[0]])

    def three():
        for start in range(0, x.shape[0], rows):
            part = x[start : start + rows]
            dz = torch.mm(part, w.T, out=z[: part.shape[0]])
            dz @ w
            dz.T @ part

    return {"gemm": one, "gemms": three}


def exact(p: Problem, rows: int = 256) -> tuple[torch.Tensor, ...]:
    """logp, entropy, dX and dW of sum(advantage * logp) in fp64 on the same inputs, by chunks of rows."""
    x, w = p.hidden.detach().double(), p.weight.detach().double()
    logp, entropy = (
        torch.empty_like(p.advantages, dtype=torch.float64),
        torch.empty_like(p.advantages, dtype=torch.float64),
    )
    dx, dw = torch.empty_like(x), torch.zeros_like(w)
    for start in range(0, x.shape[0], rows):
        part = slice(start, start + rows)
        log_p = (x[part] @ w.T).log_softmax(-1)
        target = p.target_ids[part, None]
        logp[part], prob = log_p.gather(1, target).squeeze(1), log_p.exp()
        entropy[part] = -(prob * log_p).sum(-1)
        del log_p
        g = p.advantages[part].double()
        dz = prob.mul_(-g[:, None]).scatter_add_(1, target, g[:, None])
        dx[part] = dz @ w
        dw.addmm_(dz.T, x[part])
    return logp, entropy, dx, dw


def accuracy(p: Problem) -> dict[str, float]:
    """Errors against fp64, reruns, packing and the on-policy ratio."""
    logp, entropy, dx, dw = exact(p)

    def step():
        clear(p)
        # on-policy, advantage -A and denominator 1: the gradient is that of sum(A logp)
        result = linear_grpo_loss(p.hidden, p.weight, p.target_ids, -p.advantages, denominator=1)
        result.loss.backward()
        return result, p.hidden.grad, p.weight.grad

    def relative(a, b):
        return float((a.double() - b).norm() / b.norm())

    result, my_dx, my_dw = step()
    again, again_dx, again_dw = step()
    same = [(result.logp, again.logp), (my_dx, again_dx), (my_dw, again_dw)]
    middle = slice(p.hidden.shape[0] // 3, 2 * p.hidden.shape[0] // 3)
    part = linear_logprob(p.hidden.detach()[middle], p.weight.detach(), p.target_ids[middle])
    clear(p)
    return {
        "G8.logp": float((result.logp - logp).abs().max()),
        "G8.entropy": float((result.entropy - entropy).abs().max()),
        "G9.dX": relative(my_dx, dx),
        "G9.dW": relative(my_dw, dw),
        "G10.rerun": max(float((a.double() - b.double()).abs().max()) for a, b in same),
        "G10.packing": float((part - result.logp[middle]).abs().max()),
        "G10.ratio": abs(float(result.metrics["ratio_max"]) - 1),
    }


def synchronisations(function: Callable) -> int:
    """1 if a step synchronises the host with the device, else 0."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        function()
    except RuntimeError:
        return 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return 0


def measure(size: str, rounds: int) -> tuple[list[dict], dict[str, float]]:
    """Rows of the table and the value of each goal that this run can answer."""
    p = problem(size)
    half = torch.arange(0, p.hidden.shape[0], 2, device=p.hidden.device)

    def sparse(forward_all):
        clear(p)
        linear_grpo_loss(
            p.hidden, p.weight, p.target_ids, p.advantages, old_logp=p.old_logp, keep=half, forward_all=forward_all
        ).loss.backward()

    base = gemms(p)
    contestants = that_fit(steps(p, compiled=ON_GPU))
    ours = contestants["siri"]
    extra = {"siri keep 50% skip": lambda: sparse(False), "siri keep 50% forward-all": lambda: sparse(True)}
    forward = median_ms({"gemm": base["gemm"]} | forwards(p), rounds)
    step = median_ms({"gemms": base["gemms"]} | contestants | extra, rounds)
    errors = accuracy(p)
    memory = {name: extra_bytes(f, p) for name, f in contestants.items()}
    rows = []
    for op, times, floor in (("forward", forward, "gemm"), ("forward_backward", step, "gemms")):
        for impl, ms in times.items():
            row = {"op": op, "impl": impl, "size": size, "ms": ms, "ratio_to_gemm": ms / times[floor]}
            row["extra_bytes"] = memory.get(impl) if op == "forward_backward" else None
            row["max_error"] = errors["G8.logp"] if impl == "siri" and math.isfinite(errors["G8.logp"]) else None
            rows.append(row)
    values = {"G1": forward["siri"] / forward["gemm"], "G2": step["siri"] / step["gemms"], **errors}
    for goal in GOALS:
        peer = goal.partition(".")[2]
        if peer in contestants:
            values[goal] = step[peer] / step["siri"]
    values["G7.skip"] = step["siri keep 50% skip"] / step["siri"]
    values["G7.forward-all"] = step["siri keep 50% forward-all"] / step["siri"]
    if ON_GPU:
        values["G11.syncs"] = synchronisations(ours)
        if "eager" in memory:
            values["G6.memory"] = memory["siri"] / memory["eager"]
        values["G12.fast-gb"], values["G12.lean-gb"] = memory["siri"] / 1e9, memory["siri-lean"] / 1e9
    return rows, values


def goals_of(size: str, values: dict[str, float]) -> list[dict]:
    """The goals of one size; null where this run has no answer, and everywhere at the tiny size."""
    entries = []
    for name, (threshold, better) in GOALS.items():
        limit = threshold.get(size) if isinstance(threshold, dict) else threshold
        value = values.get(name) if size != "tiny" else None
        met = None if value is None else (value <= limit if better == "lower" else value >= limit)
        value = value if value is None or math.isfinite(value) else None  # not a number: missed, and null in JSON
        entries.append({"id": f"{name}.{size}", "value": value, "threshold": limit, "better": better, "met": met})
    return entries


def device_name() -> str:
    name = torch.cuda.get_device_name() if ON_GPU else f"cpu {platform.machine()}"
    return "-".join(name.lower().replace("(", " ").replace(")", " ").split())


def write(path: Path, rows: list[dict], goals: list[dict]) -> None:
    """Write, carrying forward what earlier files of this machine measured and this run did not."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    commit = commit.stdout.strip() or None
    record = {
        "device": device_name(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "triton": triton_version()},
        "commit": commit,
        "rows": [{**row, "commit": commit} for row in rows],
        "goals": [{**goal, "commit": commit} for goal in goals],
    }
    earlier = [path] if path.exists() else sorted(path.parent.glob(f"{device_name()}-*.json"))[-1:]
    for file in earlier:
        old = json.loads(file.read_text())
        key = lambda row: (row["op"], row["impl"], row["size"])  # noqa: E731
        fresh = {key(row) for row in record["rows"]}
        record["rows"] += [row for row in old["rows"] if key(row) not in fresh]
        answered = {goal["id"] for goal in record["goals"] if goal["met"] is not None}
        kept = [goal for goal in old["goals"] if goal["id"] not in answered]
        names = {goal["id"] for goal in kept}
        record["goals"] = [goal for goal in record["goals"] if goal["id"] not in names] + kept
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")


def triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


def main() -> None:
    parser = argparse.ArgumentParser(description="The goals of the fused LM head, measured.")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["1.5b", "7b"] if ON_GPU else ["tiny"])
    parser.add_argument("--rounds", type=int, default=11 if ON_GPU else 5)
    parser.add_argument("--out", type=Path, help="default: bench/results/DEVICE-DATE.json")
    options = parser.parse_args()
    date = datetime.date.today().isoformat()
    out = options.out or Path(__file__).parent / "results" / f"{device_name()}-{date}.json"
    for size in options.sizes:
        rows, values = measure(size, options.rounds)
        goals = goals_of(size, values)
        write(out, rows, goals)  # after every size, so that a limit on time costs the last one only
        for row in rows:
            print(f"{row['op']:18}{row['impl']:28}{size:6}{row['ms']:10.2f} ms{row['ratio_to_gemm']:8.2f} x GEMM")
        for goal in goals:
            met = {True: "met", False: "MISSED", None: "-"}[goal["met"]]
            shown = "-" if goal["value"] is None else f"{goal['value']:.3g}"
            print(f"{goal['id']:26}{shown:>12} {goal['better']} than {goal['threshold']}: {met}")
        if ON_GPU:
            torch.cuda.empty_cache()
    print(f"written: {out}")


if __name__ == "__main__":
    main()
