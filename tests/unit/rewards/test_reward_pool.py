"""The pool of grading processes: what misbehaves costs one zero, and nothing outlives the pool."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import siri.rewards.pool
from siri.errors import InputError
from siri.rewards import math_reward
from siri.rewards.pool import RewardPool

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "still not"
        time.sleep(0.02)


def test_pool_scores_like_the_function_whatever_the_number_of_workers():
    golds = ["5", "\\frac12", "1,2", "x^2-1", "\\text{May}"] * 8
    answers = ["5", "0.5", "2,1", "(x-1)(x+1)", "June"] * 7 + ["6"] * 5
    responses = [f"<think>hm</think>\\boxed{{{answer}}}" for answer in answers]
    expected = [math_reward(response, gold) for response, gold in zip(responses, golds, strict=True)]
    assert 0 < sum(expected) < len(expected)
    for workers in (1, 3):
        with RewardPool("math", workers=workers) as pool:
            for _ in range(2):
                batch = pool.score(responses, golds)
                assert (batch.rewards, batch.timeouts, batch.errors) == (expected, 0, 0)
            assert pool.score([], []).rewards == []
    with RewardPool("math", workers=1, think=False) as pool:
        assert pool.score(["\\boxed{5}"], ["5"]).rewards == [1.0]


@pytest.mark.quiet
def test_warm_pool_is_fast():
    """256 answers take less time than the start of the workers, which import math-verify: nothing starts anew."""
    began = time.perf_counter()
    with RewardPool("math", workers=2) as pool:
        opened = time.perf_counter()
        golds = [str(n) for n in range(256)]
        batch = pool.score([f"</think>\\boxed{{{gold}}}" for gold in golds], golds)
        graded = time.perf_counter()
        assert graded - opened < (opened - began) / 2, (opened - began, graded - opened)
        assert batch.rewards == [1.0] * 256


def test_exact_starts_no_process(monkeypatch):
    monkeypatch.setattr(siri.rewards.pool.subprocess, "Popen", None)
    with RewardPool("exact", workers=4) as pool:
        assert pool.score(["</think>b", "b"], ["b", "b"]).rewards == [1.0, 0.0]


@pytest.mark.parametrize("workers", [1, 3])
def test_misbehaving_rewards_cost_one_zero_each(my_reward, workers, capfd):
    bad = ["hang", "exit", "raise", "hang with the lock", "segfault", "sys.exit", "nan", "none"]
    responses = [text for name in bad for text in ("1", name, "four")]
    expected = [value for _ in bad for value in (0.1, 0.0, 0.4)]
    with RewardPool(my_reward, workers=workers, timeout_s=2.0) as pool:
        batch = pool.score(responses, [""] * len(responses))
        assert batch.rewards == expected
        assert (batch.timeouts, batch.errors) == (2, 6)
        again = pool.score(["four", "slow"], ["", ""])
        assert (again.rewards, again.timeouts, again.errors, again.first_error) == ([0.4, 0.4], 0, 0, "")
    assert capfd.readouterr().out == ""  # what a reward prints goes to stderr


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ("raise", "ZeroDivisionError: by design"),
        ("exit", "the reward's process died (exit status 3)"),
        ("segfault", f"the reward's process died (exit status {-signal.SIGSEGV})"),
        ("nan", "the reward returned nan"),
        ("sys.exit", "SystemExit: no more"),
    ],
)
def test_the_first_error_is_told(my_reward, response, message):
    with RewardPool(my_reward, workers=1) as pool:
        assert pool.score(["ok", response, "none"], ["", "", ""]).first_error == message


def test_hostile_math_costs_one_zero():
    with RewardPool("math", workers=1, timeout_s=2.0) as pool:
        answers = ["5", "9^{9^{9^{9}}}", "5", "1000000000!", "5"]
        batch = pool.score([f"</think>\\boxed{{{answer}}}" for answer in answers], ["5"] * 5)
        assert batch.rewards == [1.0, 0.0, 1.0, 0.0, 1.0]
        assert (batch.timeouts, batch.errors, batch.undecided) == (0, 0, 1), "a power of powers is not even computed"


@on_linux
def test_math_workers_cannot_take_all_memory():
    with RewardPool("math", workers=1) as pool:
        limits = Path(f"/proc/{pool._pool[0].process.pid}/limits").read_text()
    [line] = [line for line in limits.splitlines() if line.startswith("Max address space")]
    assert int(line.split()[3]) <= siri.rewards.pool.MATH_MEMORY_BYTES


@on_linux
def test_a_function_of_the_users_has_the_memory_that_it_is_given(my_reward):
    with RewardPool(my_reward, workers=1, memory_bytes=2**32) as pool:
        graded = pool.score(["fill the memory", "12345"], ["", ""])
    assert graded.rewards == [0.0, 0.5] and graded.errors == 1 and "MemoryError" in pool.first_error


@on_linux
def test_no_process_outlives_the_pool(my_reward, tmp_path):
    with RewardPool(my_reward, workers=2, timeout_s=2.0) as pool:
        first = [worker.process.pid for worker in pool._pool]
        assert pool.score(["hang in a program", "1"], [str(tmp_path / "pid"), ""]).timeouts == 1
        started_by_reward = int((tmp_path / "pid").read_text())
        pids = {*first, *(worker.process.pid for worker in pool._pool)}
        assert len(pids) == 4  # one was replaced, twice
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]  # neither running nor zombies
    wait_until(lambda: not is_running(started_by_reward), 60)
    with pytest.raises(RuntimeError, match="not open"):
        pool.score(["1"], [""])


@on_linux
@pytest.mark.parametrize("response", ["1", "hang", "hang with the lock"])
def test_no_process_outlives_a_killed_run(my_reward, response):
    code = f"""
        from siri.rewards.pool import RewardPool
        with RewardPool({my_reward!r}, workers=2, timeout_s=1.0) as pool:
            pool.score(["1"], [""])
            print(*(worker.process.pid for worker in pool._pool), flush=True)
            while True:
                pool.score([{response!r}], [""])
    """
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    pids = [int(pid) for pid in run.stdout.readline().split()]
    time.sleep(0.3)
    run.kill()
    run.wait()
    run.stdout.close()
    assert len(pids) == 2
    wait_until(lambda: not any(map(is_running, pids)), 60)  # they end after their time-out and ORPHAN_GRACE_S


@on_linux
def test_signals_to_the_whole_group_leave_workers_working(my_reward):
    with RewardPool(my_reward, workers=1) as pool:
        pid = pool._pool[0].process.pid
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
        assert pool.score(["slow"], [""]).rewards == [0.4]
        assert pool._pool[0].process.pid == pid


def test_what_takes_too_long_is_tried_once_more(tmp_path, monkeypatch):
    """A busy machine is no reason to call a right answer wrong."""
    (tmp_path / "halting.py").write_text(
        "import os, time\n"
        "def grade(response, answer):\n"
        "    if response == 'always' or (response == 'once' and not os.path.exists('tried')):\n"
        "        open('tried', 'a').close()\n"
        "        time.sleep(100)\n"
        "    return 1.0\n"
    )
    monkeypatch.chdir(tmp_path)
    with RewardPool("halting:grade", workers=2, timeout_s=1.0) as pool:
        batch = pool.score(["once", "a", "b"], [""] * 3)
        assert (batch.rewards, batch.timeouts, batch.timed_out) == ([1.0] * 3, 0, set())
        batch = pool.score(["a", "always", "b"], [""] * 3)
        assert (batch.rewards, batch.timeouts, batch.timed_out) == ([1.0, 0.0, 1.0], 1, {1})


def test_an_interrupted_batch_does_not_leak_into_the_next(my_reward, monkeypatch):
    with RewardPool(my_reward, workers=2) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(pool, "_step", lambda batch: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                pool.score(["slow"], [""])
        assert pool.score(["1"], [""]).rewards == [0.1]


def test_a_main_module_without_guard_is_not_run_again(my_reward):
    Path("my_main.py").write_text(
        "from siri.rewards.pool import RewardPool\n"
        "print('started')\n"
        f"with RewardPool({my_reward!r}, workers=2) as pool:\n"
        "    print(pool.score(['1', '22'], ['', '']).rewards)\n"
    )
    for command in (["-m", "my_main"], ["my_main.py"]):
        run = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=600)
        assert run.stdout.split("\n") == ["started", "[0.1, 0.2]", ""], run.stderr


def test_pool_rejects_bad_settings():
    with pytest.raises(InputError, match="reward workers 0"):
        RewardPool("math", workers=0)
    with pytest.raises(InputError, match="reward timeout 0"):
        RewardPool("math", workers=1, timeout_s=0)
    with RewardPool("exact", workers=1) as pool, pytest.raises(ValueError):
        pool.score(["1"], [])


# --- rewards for length
