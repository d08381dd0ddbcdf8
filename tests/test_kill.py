"""kill -9 at any moment, and --auto-resume: in the end nothing differs from the run that was left alone."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from siri import cli

OPTIONS = ["train", "demo", "--steps", "10", "--cycle", "4", "--prompts-per-step", "4", "--group-size", "4"]
OPTIONS += ["--mini-batch-prompts", "2", "--eval-problems", "12", "--save-every", "1", "--quiet"]


def command(run: Path) -> list[str]:
    return [sys.executable, "-m", "siri", *OPTIONS, "--run-dir", str(run), "--auto-resume"]


def lasting(path: Path) -> list[dict]:
    """Rows of a log without what depends on the clock or the machine."""
    clock = ("_s", "per_s", "time", "memory", "mfu")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if not k.endswith("_s") and not any(w in k for w in clock[1:])} for row in rows
    ]


@pytest.mark.parametrize("seed", [time.time_ns() % 10**6])
def test_killed_again_and_again_and_none_the_wiser(tmp_path, monkeypatch, seed):
    # one thread: how many work on a sum decides its last bit
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    began = time.monotonic()
    subprocess.run(command(calm), check=True, timeout=300)
    whole = time.monotonic() - began
    draw = random.Random(seed)
    kills = 0
    for _ in range(40):
        if kills == 3:
            break
        process = subprocess.Popen(command(stormy))
        # the first half of a run is start-up: aim at the other half
        pause = draw.uniform(0.35, 0.95) * whole
        try:
            assert process.wait(pause) == 0, f"seed {seed}: the resumed run failed"
            if kills >= 2:
                break  # it got through before the next kill
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    subprocess.run(command(stormy), check=True, timeout=300)
    assert kills >= 2, f"seed {seed}: only {kills} kills landed in {whole:.1f} s"
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert lasting(calm / name) == lasting(stormy / name), f"seed {seed}: {name} differs"
    last = "checkpoints/step_000010"
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        assert (calm / last / name).read_bytes() == (stormy / last / name).read_bytes(), f"seed {seed}: {name} differs"
    assert sorted(p.name for p in (calm / "checkpoints").iterdir()) == sorted(
        p.name for p in (stormy / "checkpoints").iterdir()
    )


def test_two_processes_do_not_share_a_run_folder(tmp_path, capsys):
    run = tmp_path / "run"
    first = subprocess.Popen([*command(run)[:-1], "--steps", "400"])
    try:
        deadline = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        before = (run / "config.json").read_bytes()
        assert cli.main([*OPTIONS, "--steps", "400", "--run-dir", str(run), "--resume"]) == 2
        assert "another process is training there" in capsys.readouterr().err
        assert (run / "config.json").read_bytes() == before and first.poll() is None
    finally:
        first.kill()
        first.wait()
