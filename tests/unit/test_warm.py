"""Forks in the place of fresh processes (tests/support/warm.py) are what those are, to all who look."""

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import warm
from tests.support.processes import family

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")

ABOUT = """
import json, os, signal, sys, threading
print(json.dumps({
    "argv": sys.argv[1:], "name": __name__, "file": os.path.basename(__file__), "parent": os.getppid(),
    "cwd": os.getcwd(), "place": sys.path[0], "session": os.getsid(0) == os.getpid(),
    "variable": os.environ.get("RANK"), "main": sys.modules["__main__"].__dict__ is globals(),
    "threads": threading.active_count(),
    "signals": [signal.getsignal(n) is h for n, h in ((2, signal.default_int_handler), (15, signal.SIG_DFL))],
    "comm": open("/proc/self/comm").read().strip(), "fds": sorted(map(int, os.listdir("/proc/self/fd")))[:-1],
    "read": sys.stdin.read(), "torch": "torch" in sys.modules, "unbuffered": sys.stdout.write_through,
    "streams": [(s.seekable(), s.encoding, s.errors, s.line_buffering) for s in (sys.stdin, sys.stdout, sys.stderr)],
}))
print("said", file=sys.stderr)
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "about.py").write_text(ABOUT)
    (tmp_path / "fails.py").write_text("raise ValueError('this')")
    (tmp_path / "leaves.py").write_text("import atexit, sys\natexit.register(print, 'last')\nsys.exit(75)")
    (tmp_path / "sleeps.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(600)")
    return tmp_path


def python(*words: str) -> list[str]:
    return [sys.executable, *words]


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN], ids=["heeds", "ignores"])
def test_a_fork_is_like_a_fresh_process(place, monkeypatch, request, handler):
    """Of a process that heeds SIGINT, and of one that ignores it, as those in the background of a shell do."""
    request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, handler)))
    both = []
    for cold in (False, True):
        monkeypatch.setattr(warm, "cold", cold)
        how = {"cwd": place, "env": {**os.environ, "OMP_NUM_THREADS": "1", "RANK": "3"}, "start_new_session": True}
        done = warm.run(
            [*python("-u", "-m", "about", "a", "é"), b"\xff"], input="in", capture_output=True, text=True, **how
        )
        assert done.returncode == 0 and done.stderr == "said\n", done.stderr
        both.append(json.loads(done.stdout))
    forked, fresh = both
    assert forked.pop("torch") and not fresh.pop("torch")
    assert forked == fresh
    assert fresh["parent"] == os.getpid() and fresh["session"] and fresh["variable"] == "3"
    assert fresh["signals"] == [handler != signal.SIG_IGN, True]


def test_how_it_ends_is_seen(place):
    done = warm.run(python("-m", "leaves"), cwd=place, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (75, "last\n")
    done = warm.run(python("-m", "fails"), cwd=place, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.endswith("ValueError: this\n")
    for number in (signal.SIGTERM, signal.SIGKILL):
        with warm.Popen(python("-m", "sleeps"), cwd=place, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "up\n" and process.poll() is None
            process.send_signal(number)
            assert process.wait(60) == -number


def test_other_commands_and_environments_are_no_forks(place):
    usual = {"capture_output": True, "text": True, "cwd": place, "stdin": subprocess.DEVNULL}
    for command, more in [
        (python("-W", "ignore", "-m", "about"), {}),
        (python("about.py"), {}),
        (python("-m", "about"), {"env": {**os.environ, "OMP_NUM_THREADS": "2"}}),
        (python("-m", "about"), {"env": {**os.environ, "TRITON_INTERPRET": "1"}}),
    ]:
        done = warm.run(command, **usual, **more)
        assert not json.loads(done.stdout)["torch"], command
    done = warm.run(python("-m", "about"), **usual)
    assert json.loads(done.stdout)["torch"]


def test_a_changed_environment_has_a_nursery_of_its_own(place, monkeypatch):
    usual = {"capture_output": True, "text": True, "cwd": place, "stdin": subprocess.DEVNULL}
    monkeypatch.chdir(place)  # where there is no package of tests
    warm.run(python("-m", "about"), **usual)
    before = list(warm._nurseries)
    for value in ("a", "b"):
        monkeypatch.setenv("READ_BY_AN_IMPORT", value)
        assert json.loads(warm.run(python("-m", "about"), **usual).stdout)["torch"]
        assert warm._nurseries[-1] not in before and len(warm._nurseries) <= warm.MOST
    monkeypatch.delenv("READ_BY_AN_IMPORT")
    assert json.loads(warm.run(python("-m", "about"), **usual).stdout)["torch"]
    assert all(nursery.lives for nursery in warm._nurseries)


def test_ranks_of_torchrun_are_forks_and_children_of_it(place):
    (place / "rank.py").write_text(ABOUT.replace("print(json", "open(os.environ['RANK'] + '.json', 'w').write(json"))
    command = python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rank")
    with warm.Popen(command, cwd=place, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        names = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in family(process.pid)]
        assert warm.NURSERY not in names
        said = process.communicate(timeout=120)[1]
        assert said.count("said\n") == 2 and "RuntimeWarning" not in said
        assert process.returncode == 0
    ranks = [json.loads((place / f"{rank}.json").read_text()) for rank in range(2)]
    assert [(rank["torch"], rank["parent"], rank["session"]) for rank in ranks] == [(True, process.pid, True)] * 2
