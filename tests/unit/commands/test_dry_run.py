"""A dry run under torchrun, and of a run that continues."""

import json

import pytest

from siri import cli
from siri.store.lock import FolderLock
from tests.support.training import SMALL


def dry(run, *arguments: str) -> int:
    return cli.main(["train", "demo", "--run-dir", str(run), "--dry-run", *SMALL, *arguments])


def test_the_other_ranks_leave_the_folder_alone(tmp_path, monkeypatch, capsys):
    """One process locks it; the others would be told that a run is going on there."""
    assert cli.main(["train", "demo", "--run-dir", str(tmp_path / "run"), *SMALL, "--steps", "1", "--quiet"]) == 0
    held = FolderLock(tmp_path / "run")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert dry(tmp_path / "run", "--resume", "--steps", "2") == 0
    assert "would be trained" not in capsys.readouterr().out
    monkeypatch.setenv("RANK", "0")
    assert dry(tmp_path / "run", "--resume", "--steps", "2") == 2
    held.release()
    assert dry(tmp_path / "run", "--resume", "--steps", "2") == 0
    FolderLock(tmp_path / "run").release()  # a dry run gives it back


def test_it_knows_the_model_that_the_run_began_with(tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.main(["train", "demo", "--run-dir", str(run), *SMALL, "--steps", "1", "--quiet"]) == 0
    held = json.loads((run / "model.json").read_text())
    held["files"]["config.json"] = "0" * 64
    (run / "model.json").write_text(json.dumps(held))
    assert dry(run, "--resume", "--steps", "2") == 2
    assert "is not the one that the run began with" in capsys.readouterr().err
    assert dry(run, "--resume", "--steps", "2", "--model-changed", "accept") == 0
    assert "; accepted" in capsys.readouterr().out


def test_it_and_the_first_lines_of_a_run_say_what_holds_the_graders_in(tmp_path, capsys):
    assert dry(tmp_path / "run", "--reward", "math") == 0
    assert "graders: shut in by " in "".join(capsys.readouterr())
    line = ["train", "demo", "--run-dir", str(tmp_path / "run"), *SMALL, "--steps", "1", "--reward", "math"]
    assert cli.main(line) == 0
    assert "graders: shut in by " in "".join(capsys.readouterr())


def test_it_tells_what_becomes_of_the_problems(tmp_path, capsys):
    """As the first lines of a run do: what is left out, what repeats, what is measured and trained on."""
    rows = [{"problem": f"a{n} b2 <think>", "answer": str(n)} for n in (1, 2, 3, 1)] + [
        {"problem": "a9", "answer": None}
    ]
    data = tmp_path / "set.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = ["--data", str(data), "--eval-data", str(data)]
    assert dry(tmp_path / "run", *sets) == 0
    out = capsys.readouterr().out
    assert f"{data}: 1 rows without prompt or answer left out" in out and "1 of 4 problems repeat another" in out
    assert f"{data}: 4 of 4 held-out problems have a prompt that is trained on" in out
    assert cli.main(["train", "demo", "--run-dir", str(tmp_path / "run"), *SMALL, *sets, "--steps", "1"]) == 0
    begun = capsys.readouterr().out
    lines = [line for line in out.splitlines() if str(data) in line and "problems of" not in line]
    assert len(lines) >= 4 and all(line in begun for line in lines)


@pytest.mark.parametrize("resume", [[], ["--auto-resume"]])
def test_a_fresh_folder_stays_as_it_is(tmp_path, resume):
    assert dry(tmp_path / "run", *resume) == 0 and not (tmp_path / "run").exists()
