"""What sampling ahead saves on two cores: a vLLM server on one, the trainer on the other, in turn and overlapped.

    .venv-vllm/bin/python bench/overlap.py [--steps 12] [--rounds 2] [--group-size 16] [--out FILE]

The demo, with heads that vLLM's CPU attention takes, is trained with k = 0 and k = 1 in alternating rounds, the same
server throughout. A step is the median of those after the first two. The ideal is (a + b) / max(a, b) of the rollout a
and the rest b of a step in turn: what nobody can beat with two workers that never wait. It means something only where
nothing else runs on the two cores: the load of the machine is printed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.vllm.demo_model import widen  # noqa: E402
from tests.vllm.server import Server  # noqa: E402

WARM = 2
SERVER_CORE, TRAINER_CORE = 0, 1


def core(number: int) -> set[int]:
    """A set of one core of those that this process may use, for os.sched_setaffinity."""
    cores = sorted(os.sched_getaffinity(0))
    return {cores[number % len(cores)]}


class PinnedServer(Server):
    """A server whose threads and engine process stay on a core."""

    def start(self, *, wait: bool = True) -> None:
        super().start(wait=False)
        assert self.process is not None
        os.sched_setaffinity(self.process.pid, core(SERVER_CORE))
        if wait:
            self.wait()


def train(folder: Path, model: Path, url: str, staleness: int, options: argparse.Namespace) -> list[dict]:
    """The rows of a run."""
    command = [sys.executable, "-m", "siri", "train", "demo", "--model", str(model)]
    command += ["--rollout-servers", url, "--rollout-insecure"]
    command += ["--steps", str(options.steps), "--schedule", "constant", "--eval-problems", "8", "--save-every", "1000"]
    command += ["--group-size", str(options.group_size), "--mini-batch-prompts", str(options.mini_batch)]
    command += ["--importance", "tis", "--staleness", str(staleness), "--quiet", "--run-dir", str(folder)]
    with folder.with_suffix(".log").open("wb") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        os.sched_setaffinity(process.pid, core(TRAINER_CORE))
    if process.wait():
        sys.exit(folder.with_suffix(".log").read_text()[-2000:])
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][WARM:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("steps", 12), ("rounds", 2), ("group-size", 16), ("mini-batch", 4), ("sequences", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, help="a JSON lines file that gets the row")
    options = parser.parse_args()
    seconds: dict[int, list[float]] = {0: [], 1: []}
    parts: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = widen(folder / "model")
        with PinnedServer(model, folder / "server.log", "--max-num-seqs", str(options.sequences)) as server:
            for number in range(options.rounds):
                for staleness in (0, 1):
                    rows = train(folder / f"{number}-{staleness}", model, server.url, staleness, options)
                    seconds[staleness].append(median(row["step_time_s"] for row in rows))
                    if not staleness:
                        rollout = median(row["rollout_s"] for row in rows)
                        parts.append((rollout, seconds[0][-1] - rollout))
    in_turn, overlapped = median(seconds[0]), median(seconds[1])
    rollout, rest = (median(values) for values in zip(*parts, strict=True))
    row = {
        "in_turn_s": in_turn,
        "overlapped_s": overlapped,
        "speed_up": in_turn / overlapped,
        "rollout_s": rollout,
        "rest_s": rest,
        "ideal": (rollout + rest) / max(rollout, rest),
        "rounds": seconds,
        "load": os.getloadavg()[0],
        "options": {key: value for key, value in vars(options).items() if key != "out"},
    }
    print(json.dumps(row))
    if options.out:
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
