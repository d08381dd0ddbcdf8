"""Hostile answers: no hang, no crash of the trainer, and nothing outside the grader's process is touched."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from siri.rewards import answers, math_reward
from siri.rewards.pool import RewardPool
from siri.rewards.worker import MAX_ERROR_CHARS
from tests.support.mutants import BOMBS, GOOD, attacks, mutants

pytestmark = pytest.mark.torture
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def children(pid: int) -> list[int]:
    return [int(p) for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()]


@on_linux
def test_mutated_answers(tmp_path, monkeypatch, torture, long, fault):
    """20,000 in the long form: every one gets its reward or its zero within the time-out, and leaves no trace."""
    count, seed = long(600, 20_000), 7 if torture else time.time_ns() % 10**6
    monkeypatch.chdir(tmp_path)
    canary = tmp_path / "canary"
    pairs = list(mutants(seed, count, str(canary), bombs=0.002 if torture else 0.003))
    timeout_s, workers = 2.0, 2
    began = time.monotonic()
    with RewardPool("math", workers=workers, timeout_s=timeout_s) as pool:
        assert all(worker.sandbox[-1] == "audit" for worker in pool._pool)
        rewards, timeouts, errors = [], 0, 0
        for start in range(0, count, 500):
            batch = pool.score(*map(list, zip(*pairs[start : start + 500], strict=True)))
            rewards += batch.rewards
            timeouts += batch.timeouts
            errors += batch.errors
            assert len(batch.first_error) <= MAX_ERROR_CHARS
            assert not any(children(worker.process.pid) for worker in pool._pool), f"seed {seed}: a process was started"
        good = [f"</think>\\boxed{{{answer}}}" for answer in ("5", "1/2", "x<3")]
        assert pool.score(good, ["5", "\\frac12", "x < 3"]).rewards == [1.0, 1.0, 1.0], "it still grades"
        # a mutant that is still right comes by chance: none in some seeds, now that less is paid
        assert len(rewards) == count and set(rewards) <= {0.0, 1.0} and sum(rewards) < count / 2, f"seed {seed}"
    assert list(tmp_path.iterdir()) == [], f"seed {seed}: a file was made"
    assert time.monotonic() - began < 300 + (timeouts + errors) * (timeout_s + 8) / workers + count * 0.05
    fault("mutated answers", f"{count:,} (seed {seed})", f"all graded; {timeouts} timed out, {errors} errors, no trace")


def test_the_attacks_are_real(tmp_path):
    """A control: sympy's own parser runs several of them, so that the tests here can fail."""
    canary = tmp_path / "canary"
    code = "import sys, json; from sympy import sympify\ntry: sympify(json.loads(sys.argv[1]))\nexcept Exception: pass"
    ran = 0
    for attack in attacks(str(canary))[:3]:
        subprocess.run([sys.executable, "-c", code, json.dumps(attack)], check=True, timeout=600)
        ran += canary.exists()
        canary.unlink(missing_ok=True)
    assert ran >= 2


def test_no_answer_reaches_an_evaluating_parser(tmp_path, monkeypatch):
    """Not even a number does, and not only under the sandbox: `math_reward` is also called outside the pool."""
    canary = tmp_path / "canary"
    parser = importlib.import_module("sympy.parsing.sympy_parser")
    assert math_reward("</think>\\boxed{\\int_0^1 x dx}", "\\frac{1}{2}") == 1.0  # imports all that it needs
    seen = []
    monkeypatch.setattr(parser, "eval_expr", lambda code, *_: seen.append(code))
    hostile = attacks(str(canary))
    for answer in [*GOOD, *hostile]:
        math_reward(f"</think>\\boxed{{{answer}}}", "x + 5")
        math_reward("</think>\\boxed{x + 5}", answer)
    assert seen == [] and not canary.exists()
    assert answers.same_answer("2.50 x", "x \\cdot 2.5") and not answers.same_answer("2.50 x", "2.51 x")
    monkeypatch.undo()
    assert str(parser.parse_expr("2*3 + x")) == "x + 6", "sympy is left as it was"


def test_bombs_and_giants_cost_one_zero_each(fault):
    """Time, memory, depth and size: the trainer gets on, and the next answer is graded."""
    giants = ["9" * 10**7, "{" * 10**7, "\\frac{1}{" * 10**6, "\\boxed{" * 10**6 + "6"]
    hostile = [*BOMBS, *giants]
    responses = [text for bad in hostile for text in (f"</think>\\boxed{{{bad}}}", "</think>\\boxed{5}")]
    began = time.monotonic()
    with RewardPool("math", workers=2, timeout_s=1.0) as pool:
        batch = pool.score(responses, ["5"] * len(responses))
    assert batch.rewards == [0.0, 1.0] * len(hostile)
    assert time.monotonic() - began < 600
    fault("10 MB answers, powers of powers, deep nesting", f"{len(hostile)}", f"0 each; {batch.timeouts} timed out")


NASTY = """
import os, signal, sys, time

def nasty(response, answer):
    fd = int(sys.argv[1].split("],")[1].split(",")[0])
    match response:
        case "bomb":
            return len([bytearray(1 << 24) for _ in range(1 << 12)])
        case "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "garbage":
            os.write(fd, b"\\x00\\x00\\x00\\x05hello")
        case "half a message":
            os.write(fd, b"\\x00\\x00\\x00\\x50{")
            time.sleep(1000)
        case "endless message":
            os.write(fd, b"\\x7f\\xff\\xff\\xff" + b"x" * 1000)
            time.sleep(1000)
        case "not ours":
            os.write(fd, b'\\x00\\x00\\x00\\x10{"error": 3.14}\\n')
        case "nan":
            os.write(fd, b'\\x00\\x00\\x00\\x1a{"error": "", "reward":NaN}')
        case "shout":
            raise ValueError("\\ud800 [red] " * 10**6)
        case "mute":
            class Mute(Exception):
                def __str__(self):
                    raise RuntimeError
            raise Mute
        case "deep":
            import json
            return json.loads("[" * 10**6)
        case "closes":
            os.close(fd)
            time.sleep(1000)
    return len(response) / 10
"""


@on_linux
@pytest.mark.parametrize(
    "bad",
    [
        *("bomb", "stopped", "garbage", "half a message", "endless message", "not ours", "nan", "shout", "mute"),
        *("deep", "closes"),
    ],
)
def test_a_reward_that_goes_wrong_in_its_own_way(tmp_path, monkeypatch, bad, fault):
    Path(tmp_path / "nasty_rewards.py").write_text(NASTY)
    monkeypatch.chdir(tmp_path)
    with RewardPool("nasty_rewards:nasty", workers=1, timeout_s=1.0, memory_bytes=1 << 30) as pool:
        assert pool._pool[0].sandbox == ["memory"], "the user's own function keeps its freedom otherwise"
        batch = pool.score(["1", bad, "x" * 3_000_000, "22"], [""] * 4)
        assert batch.rewards == [0.1, 0.0, 300_000.0, 0.2]
        assert (batch.timeouts, batch.errors) in ((1, 0), (0, 1)) and len(batch.first_error) <= MAX_ERROR_CHARS
        print(batch.first_error.encode())
    fault(
        f"reward worker: {bad}", "1", f"0 for that answer ({'timed out' if batch.timeouts else 'error'}), run goes on"
    )


def test_a_worker_that_stops_reading(my_reward):
    """A message that does not fit into the socket must not hold the trainer."""
    with RewardPool(my_reward, workers=1, timeout_s=1.0) as pool:
        os.kill(pool._pool[0].process.pid, 19)
        began = time.monotonic()
        batch = pool.score(["y" * 30_000_000, "22"], ["", ""])
        # graded by the worker in its place, unless 30 MB take that too long as well
        assert batch.rewards[1] == 0.2
        assert (batch.rewards[0], batch.timeouts + batch.errors) in ((3_000_000.0, 0), (0.0, 1))
        assert time.monotonic() - began < 300, "a send that waits for the reader would never end"


def test_workers_that_cannot_start_again_end_the_run_with_one_line(my_reward):
    from siri.errors import InputError

    with RewardPool(my_reward, workers=1, timeout_s=1.0) as pool:
        Path("my_reward_module.py").write_text("import os\nos._exit(7)\n")
        with pytest.raises(InputError, match=r"its worker died while importing it \(exit status 7\)"):
            pool.score(["exit", "1"], ["", ""])


def test_exact_survives_a_hostile_gold_answer():
    with RewardPool("exact", workers=1) as pool:
        batch = pool.score(["</think>b"] * 2, ["b", '["b", ' + "[" * 10**6])
        assert batch.rewards == [1.0, 0.0] and batch.errors == 1
