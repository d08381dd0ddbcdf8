"""The first signal saves and exits 75 within the grace time, whatever is going on and however often it is repeated; a
second Ctrl-C ends the run at once."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from siri.runtime import signals
from siri.runtime.signals import SAME_S, Interrupted, Stop
from siri.store.checkpoint import newest_good
from tests.support.processes import UNREPORTED, finish, start

pytestmark = pytest.mark.torture
GRACE_S = 15.0
"""Slurm gives 30 by default. On a busy machine twice the time that the run took to begin, if that is more."""


def test_work_that_may_be_left_undone_is_broken_off():
    with Stop() as stop:
        assert stop.heed(lambda: 7) == 7 and not stop
        began = time.monotonic()
        with pytest.raises(Interrupted):
            stop.heed(lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(600)))
        assert time.monotonic() - began < 60 and stop.received == [signal.SIGTERM]
        with pytest.raises(Interrupted):
            stop.heed(lambda: pytest.fail("asked to stop before it began"))


def test_work_that_others_wait_for_is_finished_first():
    done = []
    with Stop() as stop:
        stop.heed(lambda: (os.kill(os.getpid(), signal.SIGINT), done.append(1)), at_once=False)
        assert stop and done == [1], "what was done is used"
        with pytest.raises(Interrupted):
            stop.heed(lambda: done.append(2), at_once=False)
    assert done == [1]


def test_outside_signals_are_what_they_were():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Stop() as stop:
        assert signal.getsignal(signal.SIGTERM) != before[0]
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.received == [signal.SIGTERM]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_signals_that_are_repeated_do_not_end_it(monkeypatch):
    """A supervisor repeats SIGTERM; the terminal, torchrun and a study each pass one Ctrl-C on."""
    raised = []
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    clock = [100.0]
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with Stop() as stop:
        stop._note(signal.SIGTERM, None)
        for later in (0.001, SAME_S - 0.1, SAME_S + 1, 60.0):
            clock[0] = 100.0 + later
            stop._note(signal.SIGTERM, None)
            if later < SAME_S:
                stop._note(signal.SIGINT, None)
            assert raised == [], later
        stop._note(signal.SIGINT, None)
        assert raised == [signal.SIGINT] and signal.getsignal(signal.SIGINT) == signal.SIG_DFL


OPTIONS = ["train", "demo", "--steps", "4", "--cycle", "4", "--prompts-per-step", "4", "--group-size", "4", "--quiet"]
LONG = ["--eval-problems", "2048", "--eval-samples", "64"]


def wait_until(condition, process: subprocess.Popen) -> None:
    patience = time.monotonic() + 600
    while not condition():
        assert process.poll() is None and time.monotonic() < patience
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "ranks"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_long_evaluation_does_not_use_up_the_grace(tmp_path, number, ranks, fault):
    """The first evaluation would take minutes; the run is stopped inside it, and resumed with a shorter one."""
    folder = tmp_path / "run"
    started = time.monotonic()
    process = start(folder, [*OPTIONS, *LONG], ranks=ranks, module=UNREPORTED)
    wait_until((folder / "config.json").exists, process)
    grace = max(GRACE_S, 2 * (time.monotonic() - started))
    time.sleep(2.0)
    assert not (folder / "eval.jsonl").exists()
    began = time.monotonic()
    process.send_signal(number)
    code = finish(process)
    took = time.monotonic() - began
    assert took < grace, (took, grace)
    assert code == 75 if ranks == 1 else code != 0, "torchrun has an exit code of its own"
    assert not (folder / "eval.jsonl").exists() and not (folder / "metrics.jsonl").exists()
    assert finish(start(folder, [*OPTIONS, "--eval-problems", "4"], ranks=ranks, module=UNREPORTED)) == 0
    fault(f"{number.name} in an evaluation, {ranks} rank(s)", "1", f"over within {grace:.0f} s, resumed")


def test_a_signal_in_a_long_rollout_saves_what_was_done(tmp_path, fault):
    """Step 3 samples for minutes: the state after step 2 is saved although no save was due, and nothing else."""
    folder = tmp_path / "run"
    slow = """
import sys, time
from siri import cli
from siri.rollout.local import LocalRollout
generate, calls = LocalRollout.generate, []
def slowly(self, *args, **options):
    calls.append(1)
    if len(calls) == 3:
        print("sampling", flush=True)
        time.sleep(600)
    return generate(self, *args, **options)
LocalRollout.generate = slowly
sys.exit(cli.main(sys.argv[1:]))
"""
    options = [*OPTIONS, "--save-every", "100", "--schedule", "constant", "--run-dir", str(folder)]
    options = [option for option in options if option] + ["--eval-data"]
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", slow, *options], stdout=subprocess.PIPE, text=True)
    assert "sampling" in process.stdout.readline()
    grace = max(GRACE_S, 2 * (time.monotonic() - started))
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(600) == 75 and time.monotonic() - began < grace
    process.stdout.close()
    assert newest_good(folder / "checkpoints")[0].name == "step_000002"
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    fault("SIGTERM in a rollout", "1", "the steps before it are saved, exit 75")


def test_a_second_ctrl_c_ends_it_at_once_and_sigterm_does_not(tmp_path, fault):
    """Though the save that the first one asked for hangs."""
    folder = tmp_path / "run"
    stuck = """
import sys, time
from siri.store import saver
from siri import cli
def write(*args, **options):
    print("saving", flush=True)
    time.sleep(600)
saver.write_pieces = write
sys.exit(cli.main(sys.argv[1:]))
"""
    options = [*OPTIONS, "--run-dir", str(folder), "--eval-problems", "2"]
    process = subprocess.Popen([sys.executable, "-c", stuck, *options], stdout=subprocess.PIPE, text=True)
    wait_until((folder / "metrics.jsonl").exists, process)
    process.send_signal(signal.SIGTERM)
    assert "saving" in process.stdout.readline()
    for _ in range(3):  # as a supervisor that grows impatient
        time.sleep(SAME_S / 2)
        process.send_signal(signal.SIGTERM)
    time.sleep(1.0)
    assert process.poll() is None, "it waits for the save"
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == -signal.SIGINT and time.monotonic() - began < 60, "it does not wait for the save"
    process.stdout.close()
    fault("SIGTERM again and again, then SIGINT", "5", "the first asks, Ctrl-C ends it at once")
