"""kill -9 at any moment, signals, and a supervisor: in the end nothing differs from the run that was left alone."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from siri import cli
from tests.support.processes import UNREPORTED, assert_same_run, family, finish, kill, start

pytestmark = [
    pytest.mark.torture,
    pytest.mark.skipif(sys.platform != "linux", reason="finds the processes of a run in /proc"),
]
OPTIONS = ["train", "demo", "--steps", "8", "--cycle", "4", "--prompts-per-step", "4", "--group-size", "4"]
OPTIONS += ["--mini-batch-prompts", "2", "--eval-data", "siri:demo/heldout.jsonl", "siri:demo/train.jsonl"]
OPTIONS += ["--eval-problems", "12", "--save-every", "1", "--quiet"]
KILLS = {1: 3, 2: 2}
"""In make test, for each number of ranks."""
TORTURE_KILLS = {1: 30, 2: 20}


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """For each number of ranks a run that was left alone, and how long it took, with its report or without."""
    runs = {}

    def run(ranks: int, module: str = UNREPORTED) -> tuple[Path, float]:
        if (ranks, module) not in runs:
            folder = tmp_path_factory.mktemp(f"calm_{ranks}") / "run"
            began = time.monotonic()
            assert finish(start(folder, OPTIONS, ranks=ranks, module=module)) == 0
            runs[ranks, module] = folder, time.monotonic() - began
        return runs[ranks, module]

    return run


def wait_for_a_moment(process: subprocess.Popen, run: Path, draw: random.Random, whole: float) -> str | None:
    """Let it run for a while, and perhaps until something special is going on; what that is, None at its end."""
    # the first half of a run is start-up: aim at the other half
    end = time.monotonic() + draw.uniform(0.35, 0.9) * whole
    while time.monotonic() < end:
        if process.poll() is not None:
            return None
        time.sleep(0.02)
    aim = draw.choice(["anything", "a save", "a save", "an evaluation", "one rank"])
    patience = time.monotonic() + whole / 2
    while process.poll() is None and time.monotonic() < patience:
        saving = any((run / "checkpoints").glob(".step_*.part"))
        evaluating = (run / "eval_partial.jsonl").exists() and (run / "eval_partial.jsonl").stat().st_size > 0
        if aim in ("anything", "one rank") or (aim == "a save" and saving) or (aim == "an evaluation" and evaluating):
            return aim
        time.sleep(0.0005)
    return "anything" if process.poll() is None else None


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_again_and_again_and_none_the_wiser(tmp_path, calm, ranks, long, fault):
    seed = time.time_ns() % 10**6
    wanted = long(KILLS[ranks], TORTURE_KILLS[ranks])
    module = "siri" if wanted > KILLS[ranks] else UNREPORTED  # a report takes as long as such a run
    quiet, whole = calm(ranks, module)
    draw, kills, storms = random.Random(seed), [], 0
    while len(kills) < wanted:
        stormy = tmp_path / f"stormy_{storms}"
        storms += 1
        over = False
        while not over:
            began, fresh = time.monotonic(), not stormy.exists()
            process = start(stormy, OPTIONS, ranks=ranks, module=module)
            moment = wait_for_a_moment(process, stormy, draw, whole) if len(kills) < wanted else None
            if moment is None:
                assert finish(process) == 0, f"seed {seed}: the resumed run failed after {kills}"
                over = True
                if fresh:  # nothing came in time: the machine is less busy than when the calm run was timed
                    whole = min(whole, time.monotonic() - began)
            elif moment == "one rank" and ranks > 1 and (workers := family(process.pid)[1:]):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(draw.choice(workers), signal.SIGKILL)
                # torchrun ends the others, unless this one had already left at the end of the run
                over = finish(process) == 0
                kills += [moment] * (not over)
            else:
                kill(process)
                kills.append(moment)
        assert_same_run(quiet, stormy, hint=f"seed {seed}, kills in {kills}")
    told = ", ".join(f"{kills.count(kind)} in {kind}" for kind in sorted(set(kills)))
    fault(f"kill -9, {ranks} rank(s)", f"{len(kills)} ({told})", "metrics, evaluations, weights as without")


def test_a_supervisor_starts_and_continues(tmp_path, calm, fault):
    """What a scheduler does: --auto-resume again and again, until it exits with 0; 75 in between."""
    quiet, whole = calm(1)
    folder = tmp_path / "run"
    draw = random.Random(whole)
    codes = []
    while not codes or codes[-1] != 0:
        assert len(codes) < 12
        process = start(folder, OPTIONS, module=UNREPORTED)
        if len(codes) < 2:
            time.sleep(draw.uniform(0.3, 0.6) * whole)
            process.send_signal(draw.choice([signal.SIGTERM, signal.SIGINT]))
        codes.append(finish(process))
        # a signal during the imports is Python's to answer
        assert codes[-1] in (0, 75, 130, -signal.SIGTERM, -signal.SIGINT), codes
    assert_same_run(quiet, folder)
    assert finish(start(folder, OPTIONS, module=UNREPORTED)) == 0, "once more after the end: nothing to do"
    fault("pre-empted under a supervisor", f"{len(codes) - 1} signals", f"exit codes {codes}, same run in the end")


def test_two_processes_do_not_share_a_run_folder(tmp_path, capsys, fault):
    run = tmp_path / "run"
    first = start(run, [*OPTIONS, "--steps", "400"])
    try:
        deadline = time.monotonic() + 600
        while not (run / "metrics.jsonl").exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        before = (run / "config.json").read_bytes()
        for flag in ("--resume", "--auto-resume"):
            assert cli.main([*OPTIONS, "--steps", "400", "--run-dir", str(run), flag]) == 2
            assert "another process is training there" in capsys.readouterr().err
        assert (run / "config.json").read_bytes() == before and first.poll() is None
    finally:
        kill(first)
    fault("two processes on one run folder", "2", "the second is refused, the first goes on")
