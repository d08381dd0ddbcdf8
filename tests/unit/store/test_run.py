"""The run folder: whose it is, what is read from it, and where an evaluation in progress goes on."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import patch

import pytest

import siri.commands.dry_run
from siri import cli
from siri.commands.train import TrainOptions, run_train
from siri.config import Config
from siri.config.recipe import resolve
from siri.errors import InputError
from siri.report.html import write_report
from siri.store.run_folder import RunFolder
from siri.train import evaluations
from siri.train.evaluate import Evaluation
from tests.support.training import SMALL, rows

CONFIG = Config(model="m", data="d")


def held(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG.to_json()))
    return path


def test_the_lock_goes_with_its_holder(tmp_path):
    path = held(tmp_path / "run")
    first = RunFolder(path, CONFIG, "demo", "must")
    with pytest.raises(InputError, match="another process is training there"):
        RunFolder(path, CONFIG, "demo", "must")
    del first
    RunFolder(path, CONFIG, "demo", "must").create()


def train(folder: Path, *arguments: str, expect: int = 0) -> None:
    with patch("siri.report.view.write_report"):
        assert cli.main(["train", "demo", *SMALL, "--quiet", *arguments, "--run-dir", str(folder)]) == expect


def test_an_evaluation_goes_on_at_the_benchmark_it_was_at(tmp_path, monkeypatch):
    options = ["--steps", "2", "--eval-data", "siri:demo/heldout.jsonl", "siri:demo/train.jsonl"]
    train(tmp_path / "calm", *options)
    evaluate, calls = evaluations.evaluate, []

    def cut_short(*args, **settings):
        calls.append(1)
        if len(calls) == 4:  # the second benchmark after step 2
            raise KeyboardInterrupt
        return evaluate(*args, **settings)

    monkeypatch.setattr(evaluations, "evaluate", cut_short)
    train(tmp_path / "cut", *options, expect=130)
    assert len(rows(tmp_path / "cut", "eval")) == 1 and len(rows(tmp_path / "cut", "eval_partial")) >= 1
    calls.clear()
    train(tmp_path / "cut", *options, "--resume")
    assert len(calls) == 1, "only the benchmark that was missing"
    assert rows(tmp_path / "cut", "eval") == rows(tmp_path / "calm", "eval")


def test_an_evaluation_that_is_measured_otherwise_begins_anew(tmp_path):
    """Settings of the evaluation may change when a run continues; a benchmark that was measured by the old ones must
    not count for the new ones, or pass for another benchmark."""
    shares = dict.fromkeys(("accuracy", "reward_mean", "truncation_rate"), 0.5)
    lengths = dict.fromkeys(("tokens_mean", "tokens_right_mean", "tokens_wrong_mean"), 3.0)
    counts = dict.fromkeys(("cap", "problems", "samples", "left_out", "reward_timeouts", "reward_errors"), 2)
    figures = Evaluation(pass_at_k={"1": 0.5}, **shares, **lengths, **counts)
    config = replace(CONFIG, eval_data=("a", "b"), eval_problems=8)
    path = tmp_path / "run"
    first = RunFolder(path, config, "demo", "never")
    first.create()
    first.keep_measured(0, figures)
    del first
    for changed in ({"eval_data": ("b", "a")}, {"eval_problems": 4}, {"eval_samples": 3}, {"eval_temperature": 0.1}):
        assert RunFolder(path, replace(config, **changed), "demo", "must").measured(0) == [], changed
    again = RunFolder(path, config, "demo", "must")
    again.create()
    assert again.measured(0) == [asdict(figures)] and again.measured(1) == []


def test_a_kill_before_the_report_does_not_cost_it(tmp_path):
    train(tmp_path / "run", "--steps", "2")  # without one, as `train` here has it
    assert not (tmp_path / "run" / "report.html").exists()
    for _ in range(2):
        with patch("siri.report.view.write_report", wraps=write_report) as wrote:
            command = ["train", "demo", *SMALL, "--quiet", "--steps", "2", "--auto-resume"]
            assert cli.main([*command, "--run-dir", str(tmp_path / "run")]) == 0
        assert (tmp_path / "run" / "report.html").exists()
    wrote.assert_not_called()


def test_rows_that_are_missing_are_told(tmp_path, capsys):
    train(tmp_path / "run", "--steps", "2", "--save-every", "1")
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text(log.read_text().split("\n", 1)[1])
    with patch("siri.report.view.write_report"):
        assert cli.main(["train", "demo", *SMALL, "--steps", "3", "--resume", "--run-dir", str(tmp_path / "run")]) == 0
    assert "metrics.jsonl: 1 of 2 steps have no row" in capsys.readouterr().out


def test_weights_that_blow_up_end_the_run_with_one_line(tmp_path, capsys):
    train(tmp_path / "run", "--steps", "9", "--lr", "1e30", "--eval-data", expect=2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "the weights have blown up" in error


def test_a_run_continues_with_the_loss_that_it_has_had(tmp_path, monkeypatch):
    """What nobody gives is the run's own, as 0.1.0 had it, and not what the loss means by default today."""
    options = ["--loss", "gspo", "--run-dir", str(tmp_path / "run"), "--resume", "--dry-run"]
    former = {"clip_low": 0.2, "clip_high": 0.28, "aggregation": "token_mean"}
    before = replace(resolve("demo", TrainOptions, options).config(), **former)
    RunFolder(tmp_path / "run", before, "demo", "never").create()
    seen = []
    monkeypatch.setattr(siri.commands.dry_run, "dry_run", lambda config, *_, **__: seen.append(config) or 0)
    assert run_train(resolve("demo", TrainOptions, options)) == 0
    assert seen == [before]
    RunFolder(tmp_path / "run", seen[0], "demo", "must")
    run_train(resolve("demo", TrainOptions, [*options, "--clip-high", "0.1"]))
    with pytest.raises(InputError, match=r"another configuration \(clip_high\)"):
        RunFolder(tmp_path / "run", seen[1], "demo", "must")
