"""The demo against fixed caps: arms x seeds at equal steps and at equal training tokens.

    python studies/demo/run.py [--seeds 0 1 2] [--jobs 2]

Every run is a `siri train demo` with the cap changed, one thread each, evaluated on all 2,048 held-out problems
at cap 96. Finished runs are skipped, so the study can be stopped and started. results.jsonl beside this file gets one
object a run and comparison point; the table is printed at the end.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
STEPS = 120
COMMON = ["--eval-problems", "0", "--eval-every", "10"]
ARMS = {
    "siri": [],
    "fixed-96": ["--schedule", "constant"],
    "fixed-20": ["--schedule", "constant", "--l-max", "20", "--eval-cap", "96"],
    "fixed-28": ["--schedule", "constant", "--l-max", "28", "--eval-cap", "96"],
}


def train(arm: str, seed: int, runs: Path, limit: int = 0) -> list[dict]:
    """Run one arm for STEPS steps, or to `limit` training tokens, and return its evaluations."""
    folder = runs / f"{arm}-{seed}{'-tokens' if limit else ''}"
    length = ["--steps", "1000", "--train-tokens", str(limit)] if limit else ["--steps", str(STEPS)]
    command = [sys.executable, "-m", "siri", "train", "demo", *ARMS[arm], *COMMON, *length, "--seed", str(seed)]
    command += ["--run-dir", str(folder), "--auto-resume", "--quiet"]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]


def point(arm: str, seed: int, at: str, row: dict) -> dict:
    keys = ("step", "train_tokens", "accuracy", "tokens_mean", "truncation_rate")
    return {"arm": arm, "seed": seed, "at": at, **{key: row[key] for key in keys}}


def study(seed: int, runs: Path) -> list[dict]:
    """All arms of one seed."""
    named = {row["name"]: row for row in train("siri", seed, runs)}
    end = named["siri-high-3"]
    points = [point("base", seed, "start", named["base"])]
    points += [point("siri", seed, name, named[name]) for name in ("siri-low-3", "siri-high-3")]
    for arm in ("fixed-96", "fixed-20", "fixed-28"):
        # a run to as many tokens as SIRI sampled; the short caps take more than STEPS steps for it
        tokens = train(arm, seed, runs, limit=end["train_tokens"])
        long_enough = tokens if tokens[-1]["step"] >= STEPS else train(arm, seed, runs)
        points.append(point(arm, seed, "equal steps", next(row for row in long_enough if row["step"] == STEPS)))
        points.append(point(arm, seed, "equal tokens", tokens[-1]))
    return points


def table(points: list[dict]) -> str:
    """Mean over seeds, and the range, of every arm and comparison point, as Markdown."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in points:
        groups.setdefault((row["arm"], row["at"]), []).append(row)
    lines = ["| arm | at | step | training tokens | accuracy | tokens |", "|---|---|---|---|---|---|"]
    for (arm, at), rows in groups.items():
        shown = [spread([row["accuracy"] for row in rows], ".1%"), spread([row["tokens_mean"] for row in rows], ".1f")]
        steps, trained = (sum(row[key] for row in rows) / len(rows) for key in ("step", "train_tokens"))
        lines.append(f"| {arm} | {at} | {steps:.0f} | {trained / 1000:.0f} K | {shown[0]} | {shown[1]} |")
    return "\n".join(lines)


def spread(values: list[float], form: str) -> str:
    mean = format(sum(values) / len(values), form)
    return mean if len(set(values)) == 1 else f"{mean} ({format(min(values), form)} to {format(max(values), form)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/study-demo"))
    options = parser.parse_args()
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda seed: study(seed, options.runs), options.seeds))
    points = [row for rows in results for row in rows]
    (HERE / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in points))
    print(table(points))


if __name__ == "__main__":
    main()
