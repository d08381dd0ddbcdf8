"""A run folder as release 0.1.0 wrote it, after 4 of its steps: resumed, replayed, exported and reported by today's.

It was made with the options below and --steps 4; `continued/` holds the logs of the same run with 6 steps in one go.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden.demo import GOLDEN, environment
from tests.support import warm
from tests.support.processes import lasting

RUN = Path(__file__).parent / "run_0.1.0"
OPTIONS = [
    *("train", "demo", "--cycle", "4", "--prompts-per-step", "2", "--group-size", "4", "--mini-batch-prompts", "1"),
    *("--eval-problems", "4", "--keep-checkpoints", "1", "--save-every", "4", "--bundles", "1", "--quiet"),
]


@pytest.fixture
def run(tmp_path) -> Path:
    return Path(shutil.copytree(RUN, tmp_path / "run", symlinks=True))


def siri(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "siri", *arguments]
    return warm.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


def test_it_resumes_as_if_it_had_never_stopped(run):
    resumed = siri(*OPTIONS, "--steps", "6", "--run-dir", str(run), "--resume")
    assert resumed.returncode == 0, resumed.stderr
    for name in ("metrics", "eval"):
        now, expected = lasting(run / f"{name}.jsonl"), lasting(RUN / "continued" / f"{name}.jsonl")
        if environment() == json.loads(GOLDEN.read_text())["environment"]:
            assert [{key: row[key] for key in expected[0]} for row in now] == expected
        else:  # another last bit grows into other samples
            assert [row["step"] for row in now] == [row["step"] for row in expected]
            assert [row["cap"] for row in now] == [row["cap"] for row in expected]


def test_its_post_mortem_is_replayed(run):
    replayed = siri("replay", str(run / "postmortem" / "step_000001"))
    same = environment() == json.loads(GOLDEN.read_text())["environment"]
    assert replayed.returncode in ((0,) if same else (0, 1)), replayed.stderr
    assert "recorded" in replayed.stdout


def test_its_checkpoint_is_exported_and_its_report_drawn(run, tmp_path):
    exported = siri("export", str(run / "checkpoints" / "siri-high-1"), str(tmp_path / "model"))
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert siri("report", str(run)).returncode == 0
    assert (run / "report.html").stat().st_size > 10_000
