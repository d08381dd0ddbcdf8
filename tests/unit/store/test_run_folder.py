"""The run folder: whose it is, what a kill leaves in it, and which versions go on with it."""

import errno
import gc
import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import patch

import pytest

from siri.config import Config
from siri.errors import InputError
from siri.store import files
from siri.store.files import write_atomic
from siri.store.jsonl import MetricsLog
from siri.store.run_folder import FORMAT, RunFolder
from siri.train.evaluate import Evaluation
from tests.support.training import rows

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
    with patch.object(
        os, "replace", side_effect=lambda source, target: (names.append(Path(source).name), os.rename(source, target))
    ):
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
