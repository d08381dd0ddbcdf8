"""Times the math reward of two checkouts on the same answers: `python bench/grading.py HERE OTHER --data FOLDER`.

Each checkout grades in a process of its own with its own code; both take the problems in the same order, in portions
that alternate, so that a busy machine slows both. Every gold answer is graded against itself, against itself in a
plainer spelling, and against its neighbour's.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

PORTION = 60
WORKER = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from {module} import math_reward
for warm in ("\\\\frac{{2}}{{\\\\sqrt{{2}}}}", "\\\\int_0^1 x dx", "\\\\sqrt{{2}}"):
    math_reward("</think>\\\\boxed{{" + warm + "}}", "\\\\sqrt{{2}} + 1")
print("ready", flush=True)
for line in sys.stdin:
    began = time.perf_counter()
    paid = sum(math_reward("</think>\\\\boxed{{" + answer + "}}", gold) for gold, answer in json.loads(line))
    print(json.dumps([time.perf_counter() - began, paid]), flush=True)
"""


def pairs(data: Path, every: int) -> list[tuple[str, str]]:
    """(gold, answer) of every problem: itself, itself without display fractions and spaces, and its neighbour's."""
    golds = []
    for name in ("aime24.json", "amc83.json", "math500.json", "math_train.json"):
        golds += [str(row["answer"]) for row in json.loads((data / name).read_text()) if row.get("answer") is not None]
    asked, golds = [], golds[::every]
    for gold, other in zip(golds, [*golds[1:], golds[0]], strict=True):
        asked += [(gold, gold), (gold, gold.replace("dfrac", "frac").replace(" ", "  ")), (gold, other)]
    return asked


def start(checkout: str) -> subprocess.Popen:
    code = WORKER.format(module="siri.rewards")
    process = subprocess.Popen(
        [sys.executable, "-c", code, checkout], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=checkout
    )
    assert process.stdout.readline() == "ready\n"
    return process


def grade(process: subprocess.Popen, portion: list[tuple[str, str]]) -> tuple[float, float]:
    process.stdin.write(json.dumps(portion) + "\n")
    process.stdin.flush()
    return tuple(json.loads(process.stdout.readline()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkouts", nargs=2, help="two folders that hold the package siri")
    parser.add_argument("--data", type=Path, required=True, help="the folder with the four problem files")
    parser.add_argument("--every", type=int, default=1, help="take one problem in so many")
    options = parser.parse_args()
    answers = pairs(options.data, options.every)
    processes = [start(str(Path(checkout).resolve())) for checkout in options.checkouts]
    times: list[list[float]] = [[], []]
    paid = [0.0, 0.0]
    for number, first in enumerate(range(0, len(answers), PORTION)):
        for place in (0, 1) if number % 2 == 0 else (1, 0):
            took, sum_paid = grade(processes[place], answers[first : first + PORTION])
            times[place].append(took)
            paid[place] += sum_paid
    for place, checkout in enumerate(options.checkouts):
        total = sum(times[place])
        print(
            f"{checkout}: {1e3 * total / len(answers):.3f} ms an answer, {len(answers)} answers, {paid[place]:.0f} paid"
        )
    ratios = [a / b for a, b in zip(*times, strict=True)]
    print(f"first over second: {sum(times[0]) / sum(times[1]):.2f} in all, {statistics.median(ratios):.2f} by portion")
    for process in processes:
        process.stdin.close()
        process.wait()


if __name__ == "__main__":
    main()
