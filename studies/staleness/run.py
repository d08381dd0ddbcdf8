"""How much older weights cost in accuracy: k against the demo, with the decoupled objective and without, five seeds.

    python studies/staleness/run.py [--seeds 0 1 2 3 4] [--minutes 30]

The embedded engine samples k steps ahead, so that a run is the same bit for bit wherever it is stopped. Each run is a
`siri train demo` of STEPS steps under a constant cap with a learning rate that staleness can hurt, evaluated at its end
on all held-out problems. results.jsonl beside this file gets one object a run; those that are there are skipped, so the
study goes on where it was left, and --minutes bounds one sitting. The table and the picture are of all rows that there
are.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
STEPS = 40
AHEAD = (0, 1, 2, 4, 8)
OPTIONS = {"schedule": "constant", "l-max": 64, "eval-cap": 64, "steps": STEPS, "lr": 5e-4}
OPTIONS |= {"prompts-per-step": 8, "group-size": 16, "mini-batch-prompts": 4, "eval-problems": 512}
OPTIONS |= {"eval-every": 1000, "save-every": 1000, "keep-responses": 0}
COMMON = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
T_975 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Student's t for the 95 % interval of a mean of so many seeds."""


def arms() -> list[tuple[int, str]]:
    """(k, objective), k = 0 once: with a policy that is current the two are the same but for rounding."""
    return [(k, objective) for k in AHEAD for objective in (("naive", "decoupled") if k else ("decoupled",))]


def train(k: int, objective: str, seed: int) -> dict:
    """One run, from its beginning to its last evaluation."""
    how = ["--importance", "tis"] if objective == "decoupled" else ["--allow-bias"]
    command = [sys.executable, "-m", "siri", "train", "demo", *COMMON, *how, "--staleness", str(k), "--seed", str(seed)]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        began = time.monotonic()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, "--run-dir", str(run), "--quiet"], check=True, env=environment)
        seconds = time.monotonic() - began
        evaluations = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = evaluations[-1]
    return {
        "k": k,
        "objective": objective,
        "seed": seed,
        "accuracy": last["accuracy"],
        "tokens_mean": last["tokens_mean"],
        "base": evaluations[0]["accuracy"],
        "importance_mean": fmean(row["importance_mean"] for row in rows if row.get("importance_mean") is not None),
        "seconds": round(seconds, 1),
    }


def read() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def mean_and_half(values: list[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95 % interval over seeds."""
    if len(values) < 2:
        return fmean(values), None
    return fmean(values), T_975.get(len(values), 2.0) * stdev(values) / sqrt(len(values))


def table(rows: list[dict]) -> str:
    """Accuracy by k and objective, and what the objective changes seed by seed, in Markdown."""
    lines = ["| k | naive | decoupled | decoupled - naive | seeds |", "|---|---|---|---|---|"]
    for k in AHEAD:
        naive, decoupled = (
            {row["seed"]: 100 * row["accuracy"] for row in rows if (row["k"], row["objective"]) == (k, objective)}
            for objective in ("naive", "decoupled")
        )
        gains = [decoupled[seed] - naive[seed] for seed in decoupled.keys() & naive.keys()]
        cells = " | ".join(cell(list(values)) for values in (naive.values(), decoupled.values(), gains))
        if naive or decoupled:
            lines.append(f"| {k} | {cells} | {len(naive.keys() | decoupled.keys())} |")
    return "\n".join(lines)


def cell(values: list[float]) -> str:
    """Mean with its interval; nothing of no values."""
    if not values:
        return ""
    mean, half = mean_and_half(values)
    return f"{mean:.1f}" + ("" if half is None else f" +- {half:.1f}")


def draw(rows: list[dict], path: Path) -> None:
    """k against accuracy, with intervals."""
    import matplotlib.pyplot as plt

    from siri.report.style import LIGHT, rc_style

    with plt.rc_context(rc_style()):
        figure, axes = plt.subplots(figsize=(5.4, 3.0))
        for objective, colour in (("decoupled", LIGHT["ink"]), ("naive", LIGHT["part4"])):
            points = []
            for k in AHEAD:
                accuracies = [100 * row["accuracy"] for row in rows if row["k"] == k and row["objective"] == objective]
                if accuracies:
                    aside = 0.08 if objective == "naive" else -0.08  # so that intervals can be told apart
                    points.append((k + aside, *mean_and_half(accuracies)))
            ks, means, halves = zip(*points, strict=True)
            axes.errorbar(ks, means, [half or 0.0 for half in halves], color=colour, marker="o", ms=4, label=objective)
        axes.set_xlabel("staleness k, steps")
        axes.set_ylabel("held-out accuracy, %")
        axes.legend(frameon=False)
        figure.savefig(path, dpi=160, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    known = {(row["k"], row["objective"], row["seed"]) for row in read()}
    for seed in options.seeds:
        for k, objective in arms():
            if (k, objective, seed) in known or time.monotonic() > end:
                continue
            row = train(k, objective, seed)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    rows = read()
    print(table(rows))
    if {row["objective"] for row in rows} == {"naive", "decoupled"}:
        draw(rows, HERE / "staleness.png")


if __name__ == "__main__":
    main()
