"""The runs of a study: made, skipped, stopped, continued and drawn."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from siri.cli import main
from siri.study.compare import curve_of_row
from siri.study.runner import run_pair
from siri.study.study import find, finished, swept_values
from siri.study.study_file import read_studies, read_study
from siri.study.tasks import task_runs
from siri.train.run import STOPPED
from tests.support import warm
from tests.support.studies import SMALL, TASKS_OF_TWO, write

ROOT = Path(__file__).parents[3]


def test_runs_are_made_skipped_and_drawn(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = str(write(tmp_path / "mine"))
    assert main(["study", path, "--limit", "1"]) == 0
    assert "sweeps are not finished yet; the same command continues" in capsys.readouterr().out
    assert main(["study", path, "--limit", "2"]) == 0
    study = read_study(path)
    rows = finished(study)
    assert [(row["arm"], row["seed"]) for row in rows] == [("cap=20", 7), ("cap=24", 7), ("siri", 0)]
    assert main(["study", path, "--jobs", "2"]) == 0
    rows = finished(study)
    chosen = swept_values(study, rows)
    distinct = {(pair.seed, pair.config_hash) for pair in study.arm_pairs(None, chosen)}
    assert len(rows) == 2 + len(distinct), "one line a run, and none twice"
    assert all(find(rows, pair) for pair in study.arm_pairs(None, chosen))
    first = rows[2]
    assert first["accuracy"] == first["evals"][-1]["accuracy"] and first["cpu_s"] > 0
    assert len(first["steps"]["cap"]) == 2 and first["steps"]["cap"] == [24, 12]
    assert {"backtracking_per_response", "repetition_rate", "zero_variance_groups"} <= first["steps"].keys()
    assert first["model_sha256"] and len(first["settings"]) > 5
    assert str(ROOT) not in json.dumps(first) or first["settings"]["model"].startswith("siri:")
    used = [json.loads(path.read_text()) for path in (tmp_path / "runs" / "study-mine").glob("*/config.json")]
    assert used and all((held["threads"], held["threads_used"]) == (1, 1) for held in used)
    assert {"table.md", "pareto.png", "steps.png", "training_tokens.png"} <= {
        p.name for p in (tmp_path / "mine").iterdir()
    }
    capsys.readouterr()
    before = study.results.read_bytes()
    assert main(["study", path]) == 0
    assert study.results.read_bytes() == before, "nothing was left to run"
    assert "| siri | 2 |" in capsys.readouterr().out
    again = read_study(write(tmp_path / "mine", SMALL + "\n"))
    study.results.unlink()
    assert main(["study", str(again.path), "--limit", "1", "--runs", str(tmp_path / "fresh")]) == 0
    repeated = finished(again)[0]
    for key in ("evals", "steps", "config_hash", "model_sha256"):
        assert repeated[key] == rows[0][key], f"{key}: the same run in another process gives the same figures"


def test_a_stopped_study_saves_its_run_and_continues(tmp_path):
    path = write(tmp_path, SMALL.replace("\nsteps = 2", "\nsteps = 400").replace("eval_every = 1", "eval_every = 400"))
    command = [sys.executable, "-m", "siri", "study", str(path), "--limit", "1", "--runs", str(tmp_path / "runs")]
    process = warm.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)
    deadline = time.time() + 600
    while not list(tmp_path.glob("runs/*/metrics.jsonl")):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 75 and "the same command continues" in out
    assert not (tmp_path / "results.jsonl").exists()
    assert list(tmp_path.glob("runs/*/checkpoints/step_*"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_parent_sleeps_while_its_workers_work(tmp_path):
    """It is woken by a worker, by a signal, or once a second to draw the bar in a terminal; here by nothing."""
    path = write(
        tmp_path, SMALL.replace("\nsteps = 2", "\nsteps = 4000").replace("eval_every = 1", "eval_every = 4000")
    )
    command = [sys.executable, "-m", "siri", "study", str(path), "--limit", "1", "--runs", str(tmp_path / "runs")]
    parent = warm.Popen(command, stderr=subprocess.DEVNULL)

    def spent() -> tuple[int, float]:
        """How often its threads went to sleep, and the seconds that they ran."""
        tasks = list(Path(f"/proc/{parent.pid}/task").iterdir())
        sleeps = sum(
            int((task / "status").read_text().split("\nvoluntary_ctxt_switches:")[1].split()[0]) for task in tasks
        )
        return sleeps, sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    try:
        deadline = time.monotonic() + 600
        while not list(tmp_path.glob("runs/*/metrics.jsonl")):
            assert time.monotonic() < deadline and parent.poll() is None
            time.sleep(0.1)
        before = spent()
        time.sleep(4)
        sleeps, seconds = (now - then for now, then in zip(spent(), before, strict=True))
        assert parent.poll() is None and sleeps <= 2 and seconds < 0.004, f"{sleeps} times awake, {seconds:.4f} s"
    finally:
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(600) == 75


def test_tasks_are_run_seed_by_seed_and_a_branch_goes_on_from_its_trunk(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = str(write(tmp_path / "mine", TASKS_OF_TWO))
    some = ["--only", "high", "down", "--runs", str(tmp_path / "runs")]
    assert main(["study", path, *some, "--limit", "4"]) == 0
    studies = read_studies(path)
    rows = finished(studies[0])
    done = [(row["task"], row["arm"], row["seed"]) for row in rows]
    assert done == [("demo", "high", 0), ("demo", "down", 0), ("more", "high", 0), ("more", "down", 0)]
    trunk, branch = rows[:2]
    assert [row["step"] for row in branch["evals"]] == [0, 1, 2]
    assert branch["evals"][:2] == trunk["evals"][:2], "up to the branch it is the trunk"
    assert branch["evals"][2]["train_tokens"] > branch["evals"][1]["train_tokens"] == trunk["evals"][1]["train_tokens"]
    assert branch["steps"]["cap"] == [24, 24] and branch["steps"]["response_tokens_mean"][0] > 0
    assert branch["trunk"] == {"config_hash": trunk["config_hash"], "at": 1}
    for row in rows:
        for evaluation in row["evals"]:
            assert [half["problems"] for half in evaluation["halves"]] == [8, 8]
            mean = sum(half["accuracy"] for half in evaluation["halves"]) / 2
            assert evaluation["accuracy"] == pytest.approx(mean)
    assert curve_of_row(branch).steps["phase"] == ["expansion", "expansion"], "its cap has not fallen yet"
    longer = {**branch, "steps": {"cap": [24, 24, 18, 12]}}
    assert curve_of_row(longer).steps["phase"] == ["expansion"] * 2 + ["compression"] * 2
    runs = task_runs(studies[0], rows)
    cost = branch["cpu_s"] + trunk["cpu_s"] / 2
    assert runs.core_seconds["down", 0] == pytest.approx(cost), "half of the trunk is the branch's, too"
    text = (tmp_path / "mine" / "table.md").read_text()
    assert "4 of 16 runs" in text and "Task demo" in text and "Regret" in text
    assert "Not run yet in demo: siri-0" in text and "best: its sweep" in text
    assert all((tmp_path / "mine" / f"{name}.png").stat().st_size > 1000 for name in ("lengths", "regret"))
    assert not list((tmp_path / "runs").rglob("report.html")), "siri report draws those that somebody looks at"
    halves = [p for name in ("a", "b") for p in (tmp_path / "cache").rglob(f"heldout-{name}.jsonl")]
    problems = [set(half.read_text().splitlines()) for half in halves]
    assert not problems[0] & problems[1] and sum(map(len, problems)) == 2048
    capsys.readouterr()
    assert main(["study", path, *some, "--limit", "0"]) == 0 and len(finished(studies[0])) == 8
    assert len(list((tmp_path / "runs").iterdir())) == 8, "a trunk that is there is not run again"


def test_a_failing_run_names_its_arm(tmp_path, capsys):
    path = write(tmp_path, SMALL.replace("[arms.siri]", '[arms.siri]\ndata = "nowhere.jsonl"'))
    assert main(["study", str(path), "--runs", str(tmp_path / "runs"), "--only", "siri"]) == 2
    assert "siri-0: nowhere.jsonl" in capsys.readouterr().err


def test_results_that_are_a_link_are_refused_before_anything_is_trained(tmp_path, capsys):
    path = write(tmp_path, SMALL)
    (tmp_path / "elsewhere.jsonl").touch()
    (tmp_path / "results.jsonl").symlink_to("elsewhere.jsonl")
    assert main(["study", str(path), "--runs", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "results.jsonl: is a link" in error and not (tmp_path / "runs").exists()


def test_what_an_error_names_is_there(tmp_path, monkeypatch):
    """`--rewind`, where a run's checkpoints are gone."""
    seen = []
    monkeypatch.setattr("siri.train.loop.train", lambda *_, **how: seen.append(how) or STOPPED)
    pair = next(iter(read_study(str(write(tmp_path, SMALL))).sweep_pairs(None)))
    for rewind in (False, True):
        assert run_pair(pair, tmp_path / "runs", rewind=rewind) is None
    assert [how["rewind"] for how in seen] == [False, True]
    assert main(["study", str(tmp_path / "none.toml"), "--rewind"]) == 2
