"""The run folder: whose it is, what is read from it, and where an evaluation in progress goes on."""

import errno
import gc
import json
import os
import re
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import patch

import pytest

import siri.commands.dry_run
from siri import cli
from siri.commands.train import TrainOptions, run_train
from siri.config import Config
from siri.config.recipe import resolve
from siri.data.problems import resolve_path
from siri.errors import InputError
from siri.report.html import write_report
from siri.rollout.local import LocalRollout
from siri.store import files, saver
from siri.store.checkpoint import newest_good
from siri.store.files import write_atomic
from siri.store.jsonl import MetricsLog
from siri.store.run_folder import FORMAT, RunFolder
from siri.train import evaluations, mirror, saves
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


# --- what a kill leaves, and what is gone ---


def begun(path: Path, config: Config = CONFIG) -> RunFolder:
    folder = RunFolder(path, config, "demo", "never")
    folder.create()
    return folder


@pytest.mark.parametrize("left", [[".lock"], [".lock", ".lease"], [".lock", "data.json", ".config.json.00ab.tmp"]])
@pytest.mark.parametrize("resume", ["never", "auto"])
def test_a_kill_before_the_first_file_leaves_a_fresh_folder(tmp_path, left, resume):
    for name in left:
        (tmp_path / name).touch()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="no run there to resume"):
        RunFolder(tmp_path, CONFIG, "demo", "must")
    RunFolder(tmp_path, CONFIG, "demo", resume).create()
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))
    assert RunFolder(tmp_path, CONFIG, "demo", "must").start == 0


def test_what_is_not_a_runs_is_left_alone(tmp_path):
    for name in ("data.json", "notes.txt", "checkpoints"):
        path = tmp_path / name.replace(".", "_")
        path.mkdir()
        (path / name).mkdir() if name == "checkpoints" else (path / name).write_text("mine")
        with pytest.raises(InputError, match="exists and is no run folder"):
            RunFolder(path, CONFIG, "demo", "auto")
        assert [each.name for each in path.iterdir()] == [name]
    path = tmp_path / "lost"
    del (folder := {"run": begun(path)})["run"]
    MetricsLog(path / "metrics.jsonl").append({"step": 0})
    (path / "config.json").unlink()
    for resume in ("never", "auto"):
        with pytest.raises(InputError, match=r"holds a run without its config\.json; restore that file"):
            RunFolder(path, CONFIG, "demo", resume)
    assert (path / "metrics.jsonl").exists() and not folder


def with_rows(path: Path, rows: int, config: Config = CONFIG) -> Path:
    """A run of so many steps whose checkpoints are gone."""
    begun(path, config)
    gc.collect()
    for step in range(rows):
        MetricsLog(path / "metrics.jsonl").append({"step": step})
    return path


def test_checkpoints_that_are_gone_stop_the_run_and_cost_no_row(tmp_path):
    """Purged by a cleaner of the file system, or not mounted."""
    path = with_rows(tmp_path / "run", 2)
    (path / "saved.json").write_text('{"step": 1}')
    for missing in (False, True):
        if missing:
            (path / "checkpoints").rmdir()
        with pytest.raises(InputError, match=r"the checkpoint after step 1 cannot be found.*give --rewind"):
            RunFolder(path, CONFIG, "demo", "auto")
        assert len(rows(path)) == 2
    folder = RunFolder(path, CONFIG, "demo", "auto", rewind=True)
    folder.create()
    assert rows(path) == [] and len((path / "metrics.jsonl.before-step-0").read_text().splitlines()) == 2
    assert any("metrics.jsonl.before-step-0" in note for note in folder.notes)
    del folder
    RunFolder(path, CONFIG, "demo", "auto")  # once accepted, it is


def test_an_older_folder_whose_checkpoints_are_gone_stops_where_a_kill_is_no_reason(tmp_path):
    config = replace(CONFIG, save_every=4)
    assert RunFolder(with_rows(tmp_path / "killed", 11, config), config, "demo", "must").start == 0
    with pytest.raises(InputError, match="the checkpoints of 12 steps cannot be found"):
        RunFolder(with_rows(tmp_path / "purged", 12, config), config, "demo", "must")


def test_a_run_that_began_and_ended_meanwhile_is_not_wiped(tmp_path):
    """A fresh start looks once more when it has the lock."""
    for resume in ("never", "auto"):
        path = tmp_path / resume
        late = RunFolder(path, CONFIG, "demo", resume)
        first = begun(path)
        first.metrics.append({"step": 0})
        with pytest.raises(InputError, match="another process is training there"):
            late.create()
        del first
        gc.collect()
        with pytest.raises(InputError, match="began a run there meanwhile; continue it with --resume"):
            late.create()
        assert rows(path) == [{"step": 0}]


def test_a_second_look_that_fails_deletes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "run"
    late = RunFolder(path, CONFIG, "demo", "auto")
    begun(path)
    gc.collect()
    read = files.read

    def fails(name: Path) -> bytes:
        if name.name == "config.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(name)

    with monkeypatch.context() as patched, pytest.raises(InputError, match="Input/output error"):
        patched.setattr(files, "read", fails)
        late.create()
    assert (path / "config.json").exists() and (path / ".lock").exists()


def test_a_run_that_cannot_begin_leaves_nothing(tmp_path, monkeypatch):
    write = files.write_atomic

    def fails(path: Path, data: bytes) -> None:
        if path.name == "config.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)

    monkeypatch.setattr(files, "write_atomic", fails)
    (tmp_path / "mine").mkdir()
    for name in ("new", "mine"):
        with pytest.raises(InputError, match="No space left on device"):
            begun(tmp_path / name)
    assert [each.name for each in tmp_path.iterdir()] == ["mine"] and not list((tmp_path / "mine").iterdir())


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", ".lock", "checkpoints", "eval.jsonl", "postmortem"])
def test_links_in_a_run_folder_are_refused(tmp_path, name):
    outside = tmp_path / "outside"
    (outside / "step_000009").mkdir(parents=True) if "." not in name else outside.write_text("{}\n")
    path = tmp_path / "run"
    begun(path)
    gc.collect()
    if (path / name).is_dir():
        (path / name).rmdir()
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(outside)
    with pytest.raises(InputError, match=f"{re.escape(name)} is a link, which a run folder does not hold"):
        RunFolder(path, CONFIG, "demo", "auto")
    assert (outside / "step_000009").is_dir() if outside.is_dir() else outside.read_text() == "{}\n"


def test_nothing_is_written_through_a_link_or_a_name_that_can_be_guessed(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / "log.jsonl").symlink_to(outside)
    with pytest.raises(InputError, match=r"log\.jsonl: cannot be written"):
        MetricsLog(tmp_path / "log.jsonl").append({"step": 0})
    names = []
    with patch.object(os, "replace", side_effect=lambda one, two: (names.append(Path(one).name), os.rename(one, two))):
        write_atomic(tmp_path / "log.jsonl", b"new")
        write_atomic(tmp_path / "log.jsonl", b"newer")
    assert outside.read_text() == "mine" and (tmp_path / "log.jsonl").read_text() == "newer"
    assert len(set(names)) == 2 and str(os.getpid()) not in names[0].split(".")


def test_a_folder_that_is_made_is_on_the_disk_with_its_parents(tmp_path):
    synced = []
    with patch.object(os, "fsync", side_effect=lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}"))):
        begun(tmp_path / "a" / "b" / "run").metrics.append({"step": 0})
    root = tmp_path.resolve()
    folders = [root, root / "a", root / "a" / "b", root / "a" / "b" / "run"]
    assert {str(folder) for folder in folders} <= set(synced)
    assert synced[-1] == str(folders[-1]), "the name of the log, after its first row"


# --- versions ---


def test_a_setting_that_the_older_version_did_not_have_was_at_its_default(tmp_path):
    path = held(tmp_path / "run")
    old = {key: value for key, value in CONFIG.to_json().items() if key not in ("overlong", "importance", "think")}
    (path / "config.json").write_text(json.dumps(old))
    RunFolder(path, CONFIG, "demo", "must").create()
    (path / "config.json").write_text(json.dumps(old))
    with pytest.raises(InputError, match=r"another configuration \(overlong\)"):
        RunFolder(path, replace(CONFIG, overlong="mask"), "demo", "must")


@pytest.mark.parametrize("number", [FORMAT + 1, 10**9, "2", None, -1])
def test_a_folder_of_a_later_format_is_left_alone(tmp_path, number):
    path = held(tmp_path / "run")
    (path / "config.json").write_text(json.dumps({"format": number, **CONFIG.to_json()}))
    with pytest.raises(InputError, match="continue it with the version that wrote it"):
        RunFolder(path, CONFIG, "demo", "auto")


def test_the_format_is_in_the_folder(tmp_path):
    begun(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["format"] == FORMAT


# --- whole runs ---


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
    train(tmp_path / "run", "--steps", "1", "--eval-data", expect=2)
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    train(tmp_path / "mine", "--steps", "1", "--eval-data", expect=2)
    assert list((tmp_path / "mine").iterdir()) == []

    class Fails(mirror.Logger):
        def log(self, row, step):
            raise ConnectionError("away")

    seen = []
    monkeypatch.setattr(
        mirror, "make_logger", lambda _kind, path, _config: seen.append(list(path.iterdir())) or Fails()
    )
    with patch("siri.report.view.write_report"):
        options = ["--steps", "2", "--eval-data", "--run-dir", str(tmp_path / "run")]
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
