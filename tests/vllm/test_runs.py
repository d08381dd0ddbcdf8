"""Whole commands with vLLM: training steps beside the embedded engine's, and an evaluation that is killed."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.vllm.demo_model import widen
from tests.vllm.server import CPU, ROOT


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return widen(tmp_path_factory.mktemp("demo") / "model")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "siri", *map(str, arguments)]


def siri(*arguments: object) -> str:
    done = subprocess.run(
        command(*arguments), cwd=ROOT, env=os.environ | CPU, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_three_steps_of_the_demo_beside_the_embedded_engine(demo, tmp_path):
    """The same prompts and update, other random numbers. A step's mean reward over 16 prompts x 16 responses has a
    standard error of at most 0.5 / 16 = 0.031 given the prompts; the two engines' may differ by 4 times the error of
    a difference of means over three steps (0.102), and single steps by 4 times their own (0.177)."""
    common = ["--model", demo, "--steps", 3, "--eval-problems", 64, "--save-every", 100]
    siri("train", "demo", *common, "--rollout", "vllm", "--run-dir", tmp_path / "vllm")
    siri("train", "demo", *common, "--rollout", "local", "--run-dir", tmp_path / "local")
    rows_of_vllm, rows_of_local = (rows(tmp_path / name / "metrics.jsonl") for name in ("vllm", "local"))
    error = 0.5 / 16 * math.sqrt(2)
    gaps = [a["reward_mean"] - b["reward_mean"] for a, b in zip(rows_of_vllm, rows_of_local, strict=True)]
    assert all(abs(gap) < 4 * error for gap in gaps) and abs(sum(gaps) / 3) < 4 * error / math.sqrt(3), gaps
    for a, b in zip(rows_of_vllm, rows_of_local, strict=True):
        assert (a["cap"], a["responses"]) == (b["cap"], b["responses"]) and a["response_tokens_max"] <= a["cap"]
        assert abs(a["truncation_rate"] - b["truncation_rate"]) < 4 * error
        # on-policy: what vLLM says of a token is what the trainer says of it before the first update
        assert abs(a["mismatch_k1"]) < 1e-4 and abs(a["mismatch_k3"]) < 1e-4 and a["mismatch_max"] < 1e-2
        assert a["fingerprint_gap_max"] < 1e-3 and 0 <= a["rollout_idle_time_share"] < 1
    evaluations = [rows(tmp_path / name / "eval.jsonl") for name in ("vllm", "local")]
    for a, b in zip(*evaluations, strict=True):
        assert abs(a["accuracy"] - b["accuracy"]) < 4 * 0.5 / 8 * math.sqrt(2), "64 problems, one sample each"


def test_an_evaluation_with_64_samples_survives_a_kill(demo, tmp_path):
    """Killed once a portion is down, it continues, and its figures are those of an evaluation in one go up to what
    another batch rounds otherwise."""
    out = tmp_path / "figures.json"
    arguments = ["eval", demo, "--data", "siri:demo/heldout.jsonl", "--template", "plain", "--instruction", ""]
    arguments += ["--reward", "exact", "--cap", 40, "--problems", 64, "--samples", 64, "--rollout", "vllm"]
    partial = Path(f"{out}.partial.jsonl")
    with (tmp_path / "log.txt").open("w") as log:
        first = subprocess.Popen(
            command(*arguments, "--out", out), cwd=ROOT, env=os.environ | CPU, stdout=log, stderr=log
        )
        deadline = time.monotonic() + 300
        while not (partial.exists() and len(partial.read_text().splitlines()) >= 2):
            assert first.poll() is None and time.monotonic() < deadline, (tmp_path / "log.txt").read_text()[-3000:]
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert not out.exists()
    assert "continuing with" in siri(*arguments, "--out", out)
    row = json.loads(out.read_text())
    assert (row["samples"], row["problems"], row["cap"]) == (64, 64, 40) and not partial.exists()
    assert set(row["pass_at_k"]) == {"1", "2", "4", "8", "16", "32", "64"}
    assert 0.2 < row["accuracy"] < 0.7 and row["pass_at_k"]["64"] > row["accuracy"]


def test_two_ranks_with_an_engine_each(demo, tmp_path):
    """torchrun, the model sharded with FSDP2: every rank's engine is loaded from the shards, and proves it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "siri"]
    command += ["train", "demo", "--model", str(demo), "--steps", "2", "--eval-problems", "8", "--save-every", "100"]
    command += ["--prompts-per-step", "5", "--group-size", "8", "--rollout", "vllm", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | CPU, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    metrics = rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["responses"] for row in metrics] == [40, 40]
    for row in metrics:
        assert row["fingerprint_gap_max"] < 1e-3 and row["mismatch_max"] < 1e-2
        assert row["mismatch_abs_mean"] < 1e-4 and row["mismatch_outside_fraction"] == 0
    assert len((tmp_path / "run" / "lengths.jsonl").read_text().splitlines()) >= 4, "two ranks, two steps"
