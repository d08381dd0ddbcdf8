"""Length in epochs, and the checkpoint that was best."""

import json
from pathlib import Path

import pytest

from siri.cli import main
from siri.train.evaluations import BEST, figure_of_merit
from tests.support.training import SMALL, rows, same_run, train


def problems(path: Path, count: int) -> Path:
    from siri.data.problems import resolve_path

    lines = Path(resolve_path("siri:demo/train.jsonl")).read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:count]))
    return path


def test_epochs_become_steps(tmp_path, capsys):
    data = problems(tmp_path / "set.jsonl", 10)
    metrics = train(tmp_path / "run", "--data", str(data), "--epochs", "1.5")
    said = capsys.readouterr().out
    assert "1.5 epochs of 10 problems at 4 a step: 4 steps (epochs go before steps, which says" in said
    assert len(metrics) == 4 and [row["epoch"] for row in metrics] == [0, 0, 1, 1]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["epochs"], config["steps"]) == (1.5, 4)
    assert train(tmp_path / "run", "--data", str(data), "--epochs", "1.5", "--resume") == metrics, "finished"
    more = train(tmp_path / "run", "--data", str(data), "--epochs", "2", "--resume")
    assert len(more) == 5 and more[:4] == metrics


def test_epochs_of_weighted_sources(tmp_path, capsys):
    first, second = problems(tmp_path / "one.jsonl", 8), problems(tmp_path / "two.jsonl", 4)
    metrics = train(tmp_path / "run", "--data", f"{first}@weight=0.5", f"{second}@weight=2", "--epochs", "1")
    assert len(metrics) == 3 and "1 epochs of 12 problems" in capsys.readouterr().out
    whole = train(tmp_path / "whole", "--data", f"{first}@weight=0.5", f"{second}@weight=2", "--steps", "4", "--quiet")
    split = ["--data", f"{first}@weight=0.5", f"{second}@weight=2", "--quiet", "--save-every", "1"]
    train(tmp_path / "split", *split, "--steps", "2")
    train(tmp_path / "split", *split, "--steps", "4", "--resume")
    assert len(whole) == 4
    same_run(tmp_path / "whole", tmp_path / "split", "step_000004")
    capsys.readouterr()
    other = ["--data", f"{first}@weight=0.5", f"{second}@weight=3", "--quiet", "--steps", "5", "--resume"]
    assert main(["train", "demo", *SMALL, *other, "--run-dir", str(tmp_path / "split")]) == 2
    assert "other weights or sizes than the run began with; restore what the run" in capsys.readouterr().err


def test_a_warm_up_that_is_longer_than_the_epochs_is_refused(tmp_path, capsys):
    data = problems(tmp_path / "set.jsonl", 8)
    command = ["train", "demo", *SMALL, "--data", str(data), "--epochs", "1", "--lr-warmup", "5"]
    assert main([*command, "--run-dir", str(tmp_path / "run")]) == 2
    assert "lr_warmup is 5, but steps is 2" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert main([*command[:-2], "--epochs", "-1", "--run-dir", str(tmp_path / "run")]) == 2
    assert "epochs is -1" in capsys.readouterr().err


def test_the_best_checkpoint_keeps_its_name(tmp_path):
    run = tmp_path / "run"
    options = ["--keep-best", "reward_mean", "--eval-every", "1", "--keep-checkpoints", "1", "--quiet"]
    train(run, *options, "--steps", "6", "--cycle", "100", "--save-every", "100")
    evals = [row for row in rows(run, "eval") if row["step"]]
    assert len(evals) == 6
    best = max(evals, key=lambda row: (row["reward_mean"], -row["step"]))
    link = run / "checkpoints" / BEST
    assert link.is_symlink() and link.resolve().name == f"step_{best['step']:06d}"
    assert {path.name for path in (run / "checkpoints").iterdir()} == {BEST, link.resolve().name, "step_000006"}
    assert main(["export", str(link), str(tmp_path / "out")]) == 0


def test_what_best_means():
    base = {"accuracy": 0.5, "tokens_mean": 40.0, "reward_mean": 0.4}
    row = {"accuracy": 0.6, "tokens_mean": 20.0, "reward_mean": 0.5}
    assert figure_of_merit("accuracy", row, None) == 0.6 and figure_of_merit("reward_mean", row, None) == 0.5
    assert figure_of_merit("efficiency", row, base) == pytest.approx((0.6 / 0.5 - 1) / 0.5)
    assert figure_of_merit("efficiency", row, None) is None
    assert figure_of_merit("efficiency", row, {"benchmarks": {"x": base}}) is None


def test_best_needs_a_measure(tmp_path, capsys):
    command = ["train", "siri-1.5b", "--keep-best", "accuracy", "--run-dir", str(tmp_path / "run")]
    assert main(command) == 2
    assert "nothing is measured; give --eval-data" in capsys.readouterr().err and not (tmp_path / "run").exists()
