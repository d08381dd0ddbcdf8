"""vLLM in the trainer's process. Each case has a process of its own, because an engine does not leave one clean."""

import subprocess
import sys

import pytest

from tests.vllm.server import ROOT


@pytest.mark.parametrize("model", [False, True, "head"], ids=["untied", "tied", "untied, config.json says tied"])
def test_samples_follows_and_is_found_out(models, tmp_path, model):
    tied = str(int(model is True))
    command = [sys.executable, "-m", "tests.vllm.colocated_worker", str(models[model]), str(tmp_path), tied]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    assert done.stdout.strip().endswith("all held")


def test_what_asynchronous_scheduling_leaves_over_is_harmless(models, tmp_path):
    """On a GPU vLLM schedules a batch before the one before has ended."""
    command = [sys.executable, "-m", "tests.vllm.late_worker", str(models[False]), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    assert done.stdout.strip().endswith("all held")
