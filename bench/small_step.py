"""CPU seconds of a training step of the embedded reasoner, before and after: python bench/small_step.py BEFORE [...].

BEFORE is a commit; after is this checkout as it is. Both train the same steps in processes of their own with one
thread, turn about, so that a machine that does other work does it to both: `--rounds` times each. What counts is the
processor time (user and system) of sampling and of the update, the first steps left out; the losses of both must be the
same bit for bit, or the script says so and exits 1.

  demo    the recipe demo, 281 K parameters, caps to 96
  settle  the study's task, 125 K parameters, caps 48 and 24; its base is made on first use (minutes)
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
WARM_UP = 2
"""Steps that do not count."""
PARTS = ("collect", "learn")


def child(task: str, steps: int, folder: Path) -> None:
    """Train, and print seconds of each part of each step and the losses, as JSON."""
    import resource

    from siri.config import Config
    from siri.config.recipe import from_settings, load_recipe
    from siri.report.view import TerminalView
    from siri.store.jsonl import read_run
    from siri.study.runner import reasoner_folder
    from siri.study.study import Reasoner
    from siri.train import run as training
    from siri.train.loop import train

    settings = {**load_recipe("demo"), "steps": steps, "cycle": 40, "eval_data": [], "reward_workers": 1, "threads": 1}
    if task == "settle":
        base = reasoner_folder(Reasoner("settle", 1500, 0))
        settings |= {"model": str(base / "model"), "data": str(base / "train.jsonl"), "l_max": 48, "l_min": 24}
    seconds: dict[str, list[float]] = {}

    def timed(part: str) -> None:
        inner = getattr(training.Run, part)

        def outer(self, *arguments):
            before = resource.getrusage(resource.RUSAGE_SELF)
            result = inner(self, *arguments)
            after = resource.getrusage(resource.RUSAGE_SELF)
            used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
            seconds.setdefault(part, []).append(used)
            return result

        setattr(training.Run, part, outer)

    for part in PARTS:
        timed(part)
    train(from_settings(settings, Config, task), folder, recipe="demo", view=TerminalView(), quiet=True)
    losses = [row["loss"] for row in read_run(folder).metrics]
    print(json.dumps({"seconds": {part: values[WARM_UP:] for part, values in seconds.items()}, "losses": losses}))


def measured(tree: Path, task: str, steps: int) -> dict:
    """What a child says that runs the code of a tree."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", task, "--steps", str(steps), "--folder", f"{folder}/run"]
        paths = os.pathsep.join([str(tree), str(tree / "kernels")])
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", nargs="?", help="commit to compare with")
    parser.add_argument("--tasks", nargs="+", default=["demo", "settle"], choices=("demo", "settle"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.steps, options.folder)
        return
    if not options.before:
        parser.error("name the commit to compare with")
    moved = False
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        archive = ["git", "-C", str(ROOT), "archive", options.before, "siri", "kernels"]
        with subprocess.Popen(archive, stdout=subprocess.PIPE) as packed:
            subprocess.run(["tar", "-x", "-C", folder], stdin=packed.stdout, check=True)
        print("| task | part | before, CPU ms a step | after | after / before |\n|---|---|---|---|---|", flush=True)
        for task in options.tasks:
            rounds = [[measured(at, task, options.steps) for at in (tree, ROOT)] for _ in range(options.rounds)]
            for part in (*PARTS, "both"):
                parts = PARTS if part == "both" else (part,)
                figures = [[1000 * _step(said, parts) for said in pair] for pair in rounds]
                before, after = (median(figure[place] for figure in figures) for place in (0, 1))
                ratio = median(figure[1] / figure[0] for figure in figures)
                print(f"| {task} | {part} | {before:.0f} | {after:.0f} | {ratio:.2f} |", flush=True)
            if any(pair[0]["losses"] != pair[1]["losses"] for pair in rounds):
                print(f"{task}: the losses differ", flush=True)
                moved = True
    sys.exit(int(moved))


def _step(said: dict, parts: tuple[str, ...]) -> float:
    """Mean CPU seconds a step."""
    columns = [said["seconds"][part] for part in parts]
    return sum(map(sum, columns)) / len(columns[0])


if __name__ == "__main__":
    main()
