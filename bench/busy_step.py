"""A training step beside busy processes: python bench/busy_step.py [--rounds N] [--width W --layers L] [--json FILE].

The recipe demo trains in a process of its own, once for each way to wait and number of threads. After every step
processes that only count are let run or stopped, so that the times with and without them come from one run, step about:
alone, beside as many as leave one core free (one process on two cores), and beside one for each core. What a step
waited for a core is measured, too (Linux tells it of a process's main thread): without it the ratios can be read on a
machine that does other work as well, since what is left is what the step computed, spun or slept for.

  chosen     what siri train takes by itself
  N passive  --threads N; threads that wait sleep, as siri sets it
  N spinning --threads N; threads that wait spin, as torch does by itself (OMP_WAIT_POLICY=ACTIVE is worse still)

With --width and --layers the model is one of that size with random weights, to see from where on a second thread pays.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median

from siri.runtime.threads import cores

OPTIONS = ["--schedule", "constant", "--eval-data", "--lr", "1e-9", "--save-every", "1000000", "--logger", "none"]
"""The same work in every step, and nothing beside it."""
WARM_UP = 2
"""Steps that do not count."""


def environment(spinning: bool) -> dict[str, str]:
    """This process's environment without what it says of OpenMP; with a spin of libgomp's own length if asked for."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
    # OMP_WAIT_POLICY, once siri has set it, would shorten the spin; 300,000 rounds are libgomp's default without it
    return clean | ({"GOMP_SPINCOUNT": "300000"} if spinning else {})


@contextmanager
def counting(most: int):
    """The function that lets so many of `most` processes run, which only count, and stops the others."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(most)]

    def let_run(count: int) -> None:
        for index, process in enumerate(processes):
            process.send_signal(signal.SIGCONT if index < count else signal.SIGSTOP)

    try:
        let_run(0)
        yield let_run
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(arguments: list[str], variables: dict[str, str], *, rounds: int, loads: list[int]) -> dict:
    """Median seconds of a step of `siri train demo` for each number of busy processes, with and without what it waited
    for a core; the threads it used; and how many cores nobody used while it was alone."""
    steps = WARM_UP + rounds * len(loads)
    with tempfile.TemporaryDirectory() as folder, counting(max(loads)) as let_run:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "siri", "train", "demo", *OPTIONS, *arguments, "--steps", str(steps)]
        training = subprocess.Popen([*command, "--run-dir", str(run), "--quiet"], env=variables)
        log, beside, seen = run / "metrics.jsonl", [0], 0
        clocks: list[tuple[float, float, float]] = []
        try:
            while training.poll() is None:
                done = log.read_bytes().count(b"\n") if log.exists() else 0
                clocks += [(time.monotonic(), waited_s(training.pid), idle_s())] * (done - len(clocks))
                if seen < done < steps:
                    beside.append(loads[max(0, done - WARM_UP) % len(loads)])
                    let_run(beside[-1])
                seen = done
                time.sleep(0.002)
        finally:
            training.kill()
            training.wait()
        if training.returncode != 0 or len(beside) != steps:
            raise SystemExit(f"busy_step: siri train ended with {training.returncode}, {len(beside)} of {steps} steps")
        seconds = [json.loads(line)["step_time_s"] for line in log.read_text().splitlines()]
        threads = json.loads((run / "config.json").read_text())["threads_used"]
    intervals = [[after - before for before, after in zip(*pair, strict=True)] for pair in pairwise(clocks)]
    counted = list(zip(beside[1:], seconds[1:], intervals, strict=False))[WARM_UP - 1 :]
    medians, net = {}, {}
    for load in loads:
        medians[load] = median(time for other, time, _ in counted if other == load)
        net[load] = median(wall - waited for other, _, (wall, waited, _) in counted if other == load)
    alone = [interval for other, _, interval in counted if other == 0]
    return {
        "threads": threads,
        "seconds": medians,
        "ratios": {load: medians[load] / medians[0] for load in loads},
        "net_ratios": {load: net[load] / net[0] for load in loads},
        "idle_cores_alone": sum(idle for _, _, idle in alone) / sum(wall for wall, _, _ in alone),
    }


def waited_s(pid: int) -> float:
    """Seconds for which the main thread of a process could have run and had no core; 0 where nothing says it."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def idle_s() -> float:
    """Seconds that all cores together were idle; 0 where nothing says it."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0


def random_model(folder: Path, width: int, layers: int) -> list[str]:
    """The options that train a model of another size, with the demo's tokenizer; written to `folder`."""
    import torch

    from siri.demo import task
    from siri.demo.tokenizer import build_tokenizer
    from siri.demo.warmup import Reasoner, build_model

    torch.set_num_threads(1)
    tokenizer = build_tokenizer(task)
    model = build_model(tokenizer, 0, Reasoner(task, width=width, layers=layers))
    print(f"{model.num_parameters():,} parameters")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ["--model", str(folder)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="steps of each kind")
    parser.add_argument("--width", type=int, default=0)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--ways", nargs="*", default=["chosen", f"{cores()} passive", f"{cores()} spinning"])
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="after --: more options of siri train")
    options = parser.parse_args()
    loads = [0, *sorted({cores() - 1, cores()} - {0})]
    extra = [argument for argument in options.arguments if argument != "--"]
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.width:
            extra += random_model(Path(folder), options.width, options.layers)
        print("Seconds of a step; in brackets over those alone, then both without what was waited for a core.\n")
        print("| threads | " + " | ".join(f"beside {load}" if load else "alone, s" for load in loads) + " |")
        print("|---|" + "---|" * len(loads))
        for way in options.ways:
            number, _, waiting = way.partition(" ")
            chosen = ["--threads", number] if waiting else []
            variables = environment(waiting == "spinning")
            rows[way] = row = measure([*chosen, *extra], variables, rounds=options.rounds, loads=loads)
            alone, *others = (row["seconds"][load] for load in loads)
            net = [row["net_ratios"][load] for load in loads[1:]]
            cells = [
                f"{value:.2f} ({value / alone:.1f}x, {rest:.1f}x)" for value, rest in zip(others, net, strict=True)
            ]
            cells.insert(0, f"{alone:.2f}")
            name = f"{way}: {row['threads']}" if way == "chosen" else way
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
