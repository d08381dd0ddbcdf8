"""The head's step on a CPU, forward and backward: time as a multiple of the three GEMMs, and peak memory, of ours and
of what trainers do without it.

`python bench/head_cpu.py [--rows 256 512 1024 4096] [--dtypes fp32 bf16] [--threads 2] [--rounds 3] [--quick]
[--out FILE]` prints one table for each number of tokens and dtype, V = 151,936 and D = 896 (Qwen2.5-0.5B's head). With
--quick 256 tokens alone and no Liger, a minute or two; with --out each table is a line of FILE, and a table that is
there already, of this machine, is printed and not measured again. Rounds are interleaved, medians; the
GEMMs are those of the dtype, into buffers that are there. Time is the CPU time of all threads, because a busy machine
stretches the clock on the wall at its pleasure. Memory is the highest resident size during a step less that before it,
read from VmHWM (Linux). Before anything is timed, its gradients are held to ours.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from kernel_contestants import Contestants, backward, policy_loss
from kernel_measure import gemms
from kernel_peers import chosen, first_line, installed, losses, with_loss
from kernel_problems import Problem, clear, problem
from records import processor
from torch import Tensor

VOCAB, WIDTH = 151_936, 896
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SAME = {"fp32": 1e-3, "bf16": 0.05}
"""Relative L2 distance between gradients of the same loss: bf16 logits, as the peers have them, cost up to 0.02"""


def peak_bytes(function: Callable[[], object], p: Problem) -> int:
    """Highest resident size during a call, less that before it."""
    clear(p)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again at what is resident now
    before = resident("VmRSS")
    function()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def plain_head(x: Tensor, w: Tensor, y: Tensor) -> tuple[Tensor, None]:
    """Full logits, log-softmax in fp32."""
    return (x @ w.T).float().log_softmax(-1).gather(-1, y[:, None]).squeeze(-1), None


def selective(p: Problem):
    """TRL's log-probs of full logits."""
    utils = installed("trl.trainer.utils")
    return utils and (lambda x, w, y: (utils.selective_log_softmax((x @ w.T)[None], y[None])[0], None))


def contestants(p: Problem) -> Contestants:
    heads = {"eager full logits": lambda p: plain_head, "TRL selective log-softmax": selective}
    by_name: Contestants = {"siri": policy_loss(p)}
    for name, head in chosen(heads, p, None).items():
        by_name[name] = backward(p, lambda head=head: with_loss(head, p))
    for loss in losses(p).values():
        by_name["Liger fused linear GRPO"] = backward(p, lambda loss=loss: loss(p))
    return by_name


def agreeing(candidates: Contestants, p: Problem, limit: float) -> Contestants:
    """Who computes what ours does; of the others one line."""
    kept: Contestants = {}
    expected: list[Tensor] = []
    for name, function in candidates.items():
        clear(p)
        try:
            function()
        except Exception as error:
            print(f"{name} does not run here: {first_line(error)}")
            continue
        gradients = [p.hidden.grad, p.weight.grad]
        if not expected:
            expected = [x.clone() for x in gradients]
        off = max(float((x - y).float().norm() / y.float().norm()) for x, y in zip(gradients, expected, strict=True))
        if off > limit:
            print(f"{name} left out: its gradients are off by {off:.2g}")
        else:
            kept[name] = function
    clear(p)
    return kept


def table(rows: int, dtype: str, rounds: int, without: list[str]) -> list[tuple[str, float, float, int | None]]:
    """(name, seconds of CPU time, times the GEMMs, bytes), the GEMMs first."""
    p = problem((rows, WIDTH, VOCAB), dtype=DTYPES[dtype])
    candidates = {name: f for name, f in contestants(p).items() if name.split()[0] not in without}
    functions = agreeing(candidates, p, SAME[dtype])
    memory = {name: peak_bytes(function, p) for name, function in functions.items()}
    clear(p)
    functions = {"the three GEMMs": gemms(p)["gemms"]} | functions
    times: dict[str, list[float]] = {name: [] for name in functions}
    functions["the three GEMMs"]()
    for _ in range(rounds):
        for name, function in functions.items():
            begin = time.process_time()
            function()
            times[name].append(time.process_time() - begin)
            clear(p)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    floor = medians["the three GEMMs"]
    return [(name, seconds, seconds / floor, memory.get(name)) for name, seconds in medians.items()]


def machine() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{processor()}, {capability}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description="The head's step on a CPU, beside the three GEMMs.")
    parser.add_argument("--rows", nargs="+", type=int, default=[256, 512, 1024, 4096], help="tokens, multiples of 8")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--without", nargs="*", default=[], help="first words of names that are left out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="256 tokens, without Liger")
    parser.add_argument("--out", type=Path, help="JSON lines, one for each table; what is there is not measured again")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.without = [256], [*options.without, "Liger"]
    torch.set_num_threads(options.threads)
    print(machine())
    lines = options.out.read_text().splitlines() if options.out and options.out.exists() else []
    known = {(t["machine"], t["dtype"], t["rows"]): t for t in map(json.loads, lines)}
    for dtype in options.dtypes:
        for rows in options.rows:
            measured = known.get((machine(), dtype, rows))
            if measured is None:
                measured = {"machine": machine(), "dtype": dtype, "rows": rows, "load": os.getloadavg()[0]}
                measured["table"] = table(rows, dtype, options.rounds, options.without)
                if options.out:
                    with options.out.open("a") as file:
                        file.write(json.dumps(measured) + "\n")
            print(f"\n{dtype}, {rows} tokens, load {measured['load']:.1f}")
            for name, seconds, ratio, memory in measured["table"]:
                held = "" if memory is None else f"{memory / 2**20:10.0f} MiB"
                print(f"  {name:28}{seconds:9.2f} s{ratio:8.2f} x{held}", flush=True)


if __name__ == "__main__":
    main()
