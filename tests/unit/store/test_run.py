"""Whole runs: where they go on, and what a failure on the way costs."""

import errno
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

import siri.commands.dry_run
from siri import cli
from siri.commands.train import TrainOptions, run_train
from siri.config.recipe import resolve
from siri.data.problems import resolve_path
from siri.errors import InputError
from siri.report.html import write_report
from siri.rollout.local import LocalRollout
from siri.store import saver
from siri.store.checkpoint import newest_good
from siri.store.run_folder import RunFolder
from siri.train import evaluations, mirror, saves
from tests.support.training import SMALL, rows


def train(folder: Path, *arguments: str, expect: int = 0) -> None:
    with patch("siri.report.view.write_report"):
        assert cli.main(["train", "demo", *SMALL, "--quiet", *arguments, "--run-dir", str(folder)]) == expect


def test_an_evaluation_goes_on_at_the_benchmark_it_was_at(tmp_path, monkeypatch):
    options = ["--steps", "2", "--eval-data", "siri:demo/heldout.jsonl", "siri:demo/train.jsonl"]
    train(tmp_path / "calm", *options)
    evaluate, calls = evaluations.evaluate, []

    def cut_short(*args, **settings):
        calls.append(1)
        if len(calls) == 4:  # the second benchmark after step 2, whose checkpoint is written meanwhile
            deadline = time.monotonic() + 120
            while not (tmp_path / "cut" / "checkpoints" / "step_000002").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            raise KeyboardInterrupt
        return evaluate(*args, **settings)

    monkeypatch.setattr(evaluations, "evaluate", cut_short)
    train(tmp_path / "cut", *options, expect=130)
    assert len(rows(tmp_path / "cut", "eval")) == 1 and len(rows(tmp_path / "cut", "eval_partial")) >= 1
    calls.clear()
    train(tmp_path / "cut", *options, "--resume")
    assert len(calls) == 1, "only the benchmark that was missing"
    assert rows(tmp_path / "cut", "eval") == rows(tmp_path / "calm", "eval")


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
    rare = ["--save-every", "100", "--schedule", "constant"]
    train(tmp_path / "run", "--steps", "9", "--lr", "1e30", "--eval-data", *rare, expect=2)
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
    assert not list((tmp_path / "run" / "checkpoints").iterdir()), "they are not saved"


def test_an_error_in_a_rollout_saves_what_was_done(tmp_path, monkeypatch, capsys):
    """As where a rollout server is gone for good."""
    generate, calls = LocalRollout.generate, []

    def fails(self, *args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise InputError("the server is gone; start it")
        return generate(self, *args, **options)

    monkeypatch.setattr(LocalRollout, "generate", fails)
    options = ["--save-every", "100", "--schedule", "constant", "--eval-data"]
    train(tmp_path / "run", "--steps", "4", *options, expect=2)
    assert capsys.readouterr().err == "siri: the server is gone; start it\n"
    assert newest_good(tmp_path / "run" / "checkpoints")[0].name == "step_000002"
    calls[:] = [1] * 9
    train(tmp_path / "run", "--steps", "4", *options, "--resume")
    assert len(rows(tmp_path / "run")) == 4


def test_an_engine_that_does_not_take_the_weights_costs_no_step(tmp_path, monkeypatch):
    calls = []

    def fails(_self):
        calls.append(1)
        if len(calls) == 3:  # after the second step; the first is before the run
            raise InputError("the server is gone; start it")

    monkeypatch.setattr(LocalRollout, "sync", fails)
    options = ["--save-every", "100", "--schedule", "constant", "--eval-data"]
    train(tmp_path / "run", "--steps", "4", *options, expect=2)
    assert len(rows(tmp_path / "run")) == 2
    assert newest_good(tmp_path / "run" / "checkpoints")[0].name == "step_000002"


def test_the_last_save_is_tried_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(saves, "PAUSE_S", 0.0)
    write, failing = saver.write_pieces, [True, True]

    def sometimes(*args, **options):
        if failing and failing.pop(0):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(*args, **options)

    monkeypatch.setattr(saver, "write_pieces", sometimes)
    options = ["--save-every", "100", "--schedule", "constant", "--eval-data", "--run-dir", str(tmp_path / "run")]
    with patch("siri.report.view.write_report"):
        assert cli.main(["train", "demo", *SMALL, "--steps", "1", *options]) == 0
    assert not failing and newest_good(tmp_path / "run" / "checkpoints")[0].name == "step_000001"
    assert "(No space left on device); the next try was" in capsys.readouterr().out


def test_a_logger_that_cannot_be_had_leaves_no_folder_and_one_that_fails_ends_no_run(tmp_path, monkeypatch, capsys):
    def refuses(*_):
        raise InputError("--logger wandb: no key")

    monkeypatch.setattr(mirror, "make_logger", refuses)
    train(tmp_path / "run", "--steps", "1", "--logger", "wandb", "--eval-data", expect=2)
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    train(tmp_path / "mine", "--steps", "1", "--logger", "wandb", "--eval-data", expect=2)
    assert list((tmp_path / "mine").iterdir()) == []

    class Fails(mirror.Logger):
        def log(self, row, step):
            raise ConnectionError("away")

    seen = []
    monkeypatch.setattr(
        mirror, "make_logger", lambda _kind, path, _config: seen.append(list(path.iterdir())) or Fails()
    )
    with patch("siri.report.view.write_report"):
        options = ["--steps", "2", "--logger", "wandb", "--eval-data", "--run-dir", str(tmp_path / "run")]
        assert cli.main(["train", "demo", *SMALL, *options]) == 0
    assert tmp_path / "run" / "config.json" in seen[0], "a kill while it starts leaves a run that can be resumed"
    assert capsys.readouterr().out.count("failed (away); the run goes on without it") == 1


def test_another_model_of_the_same_name_stops_the_run(tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(resolve_path("siri:demo/model"), model)
    options = ["--model", str(model), "--eval-data", "--save-every", "1"]
    train(tmp_path / "run", "--steps", "1", *options)
    before = (tmp_path / "run" / "config.json").read_bytes()
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    train(tmp_path / "run", "--steps", "2", *options, "--resume", expect=2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "model.safetensors of" in error and "--model-changed accept" in error
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    train(tmp_path / "run", "--steps", "2", *options, "--resume", "--model-changed", "accept")
    train(tmp_path / "run", "--steps", "3", *options, "--resume")
    assert len(rows(tmp_path / "run")) == 3
