"""A run that was stopped, killed or damaged goes on bit for bit as if it had not been."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import siri
from tests.support import warm
from tests.support.saving import file_of
from tests.support.training import SMALL, reproducible, rows, same_run, train, weights

ROOT = Path(siri.__file__).parent.parent


def test_the_run_is_worth_resuming(straight):
    """Weights move at every step, or the tests below would pass for nothing."""
    metrics = rows(straight)
    assert (
        sum(row["grad_norm"] > 0 for row in metrics) >= 5 and len({row["response_tokens_mean"] for row in metrics}) == 6
    )
    first, last = weights(straight, "step_000001"), weights(straight, "step_000006")
    assert not torch.equal(first["weights/lm_head.weight"], last["weights/lm_head.weight"])


def test_the_same_seed_gives_the_same_run_and_another_does_not(straight, tmp_path):
    common = ["--steps", "2", "--save-every", "1", "--quiet"]
    train(tmp_path / "same", *common)
    assert reproducible(rows(tmp_path / "same")) == reproducible(rows(straight)[:2])
    train(tmp_path / "other", *common, "--seed", "1")
    assert reproducible(rows(tmp_path / "other")) != reproducible(rows(straight)[:2])


def test_a_shorter_run_continues_as_the_longer_one(straight, tmp_path, capsys):
    common = ["--save-every", "1", "--keep-checkpoints", "9"]
    train(tmp_path / "run", "--steps", "3", *common, "--quiet")
    # what a kill in the middle of step 4 leaves: a row that no checkpoint knows, and half a row
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    train(tmp_path / "run", "--steps", "6", *common, "--resume", "--quiet")
    same_run(tmp_path / "run", straight)
    base, later = rows(straight, "eval"), rows(tmp_path / "run", "eval")
    assert [row for row in later if row["name"] != "final"] == base

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    capsys.readouterr()
    for flag in ("--auto-resume", "--resume"):
        train(tmp_path / "run", "--steps", "6", *common, flag)
        text = capsys.readouterr().out
        assert "siri-low-2" in text and "Against base" in text
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_run_with_its_state_saved(number, straight, tmp_path):
    folder = tmp_path / "run"
    arguments = ["train", "demo", *SMALL, "--steps", "6", "--save-every", "3", "--run-dir", str(folder)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with warm.Popen(
        [sys.executable, "-m", "siri", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        patience = time.monotonic() + 600
        log = folder / "metrics.jsonl"
        while not (log.exists() and log.read_text().count("\n") >= 1):
            assert process.poll() is None and time.monotonic() < patience
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=600)
    done = len(rows(folder))
    if process.returncode == 0 and done == 6:
        pytest.skip("the run was over before the signal came")
    assert (process.returncode, err) == (75, "")
    assert f"stopped at step {done}, state saved; continue with --resume" in out and 1 <= done < 6
    assert (folder / "checkpoints" / f"step_{done:06d}").is_dir() and (folder / "report.html").exists()
    train(folder, "--steps", "6", "--save-every", "3", "--auto-resume", "--quiet")
    same_run(folder, straight)


def test_damaged_checkpoints(straight, tmp_path, capsys):
    common = ["--save-every", "1", "--keep-checkpoints", "2"]
    folder = tmp_path / "run"
    train(folder, "--steps", "5", *common, "--quiet")
    saved = sorted(path.name for path in (folder / "checkpoints").glob("step_*"))
    assert saved == ["step_000002", "step_000003", "step_000004", "step_000005"], "two named, two newest"
    damaged = file_of(folder / "checkpoints" / "step_000005", "optimizer")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    capsys.readouterr()
    train(folder, "--steps", "6", *common, "--resume")
    text = capsys.readouterr().out
    assert "step_000005: damaged, optimizer/shard-00001-model-00001-of-00001.safetensors has" in text
    same_run(folder, straight)

    for path in (folder / "checkpoints").glob("step_*/state.json"):
        path.write_text("{}")
    before = (folder / "metrics.jsonl").read_bytes()
    for flag in ("--resume", "--auto-resume"):
        capsys.readouterr()
        train(folder, "--steps", "7", *common, flag, expect=2)
        error = capsys.readouterr().err
        assert "no good checkpoint" in error and "step_000006: damaged" in error and error.count("\n") == 1
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_resume_of_a_run_without_a_checkpoint_starts_over(straight, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_bytes((straight / "config.json").read_bytes())
    train(folder, "--steps", "6", "--save-every", "1", "--keep-checkpoints", "9", "--resume", "--quiet")
    same_run(folder, straight)
    assert rows(folder, "eval") == rows(straight, "eval")
