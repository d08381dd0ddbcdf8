"""What a grader can no longer do: each layer of its cell alone, and all of them, as root and as another user."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from siri.rewards import sandbox, system_calls
from siri.rewards.pool import RewardPool
from siri.rewards.worker import COMMAND

pytestmark = [pytest.mark.torture, pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")]
on_x86_64 = pytest.mark.skipif(not system_calls.supported(), reason="the list is that of x86-64")

NOBODY = 65534
FILES, PYTHON = {"landlock", "seccomp", "audit"}, {"audit"}
PROBES = {
    "writes a file": ("os.write(os.open('made', os.O_CREAT | os.O_WRONLY), b'x')", FILES | {"limits"}),
    "opens to write": ("open('there', 'a')", FILES),
    "empties a file": ("os.truncate('there', 0)", {"seccomp", "audit"}),
    "removes a file": ("os.remove('there')", FILES),
    "renames a file": ("os.rename('there', 'made')", FILES),
    "makes a folder": ("os.mkdir('made')", FILES),
    "changes rights": ("os.chmod('there', 0o777)", {"seccomp", "audit"}),
    "reads another's file": ("open('there').read()", {"landlock"}),
    "reads the system's files": ("open('/etc/passwd').read()", {"landlock"}),
    "lists another's folder": ("os.listdir('.')", {"landlock"}),
    "opens many files": ("[open('there') for _ in range(100)]", {"landlock", "limits"}),
    "starts a program": ("subprocess.run(['true'], check=True)", FILES | {"limits"}),
    "starts a shell": ("1 / (os.system('true') == 0)", FILES | {"limits"}),
    "forks": ("os.fork() or os._exit(0)", {"seccomp", "audit", "limits"}),
    "starts a thread": ("threading.Thread(target=int).start()", {"seccomp", "limits"}),
    "signals its parent": ("os.kill(os.getppid(), 0)", {"seccomp", "audit"}),
    "queues a signal": ("1 / (libc.syscall(129, os.getpid(), 0, bytes(128)) == 0)", {"seccomp"}),
    "makes shared memory": ("os.memfd_create('made')", {"seccomp"}),
    "lifts its limits": ("resource.setrlimit(resource.RLIMIT_NOFILE, (99, 99))", {"seccomp", "limits"}),
    "opens a socket": ("socket.socket()", {"seccomp", "audit"}),
    "loads a library": ("ctypes.CDLL('libc.so.6')", PYTHON),
    "evaluates text": ("eval('1 + 1')", PYTHON),
    "compiles text": ("compile('1 + 1', 'x', 'exec')", PYTHON),
    "executes text": ("exec('x = 1')", PYTHON),
    "parses as sympy": ("sympy.sympify('1 + x')", PYTHON),
    "takes memory": ("bytearray(3 << 30)", {"memory"}),
    "computes for long": ("burn(1.5)", {"limits"}),
}
"""What is tried in a process of its own, and the layers each of which stops it."""

TRIAL = """
import ctypes, json, os, resource, signal, socket, subprocess, sys, threading, time
import sympy
from siri.rewards import sandbox, system_calls

libc = ctypes.CDLL(None)

def burn(seconds):
    while time.process_time() < seconds:
        pass

def close(layer):
    return {
        "none": lambda: True,
        "memory": lambda: sandbox.limit_memory(2 << 30),
        "limits": lambda: sandbox._limit_all(1),
        "landlock": sandbox._restrict_files,
        "seccomp": system_calls.install,
        "audit": lambda: sys.addaudithook(sandbox._refuse) is None,
        "all": lambda: sandbox.limit_memory(2 << 30) and sandbox.shut_in(1),
    }[layer]()

def tried(place, probe, layer, user):
    child = os.fork()
    if child:
        return child
    os.chdir(place)
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    if not close(layer):
        os._exit(9)
    try:
        eval(probe) if layer not in ("audit", "all") else probe()
    except (OSError, MemoryError, ZeroDivisionError, RuntimeError, ValueError, subprocess.CalledProcessError):
        os._exit(7)
    os._exit(0)
"""


def outcomes(tmp_path: Path, layer: str, user: int) -> dict[str, int]:
    """Probe -> exit code of its process: 0 done, 7 refused, 9 no such layer here, negative ended by that signal."""
    tmp_path.chmod(0o755)
    places = {}
    for name in PROBES:
        places[name] = tmp_path / name
        places[name].mkdir()
        (places[name] / "there").write_text("text")
        for path in (places[name], places[name] / "there"):
            if os.geteuid() == 0:
                os.chown(path, user, user)
    calls = ", ".join(f"{name!r}: lambda: {probe}" for name, (probe, _) in PROBES.items())
    code = f"""{TRIAL}
probes = {{{calls}}}
texts = { ({name: probe for name, (probe, _) in PROBES.items()})!r}
places = { ({name: str(place) for name, place in places.items()})!r}
layer, user = {layer!r}, {user if os.geteuid() == 0 else 0}
tries = probes if layer in ("audit", "all") else texts
running = {{name: tried(places[name], probe, layer, user) for name, probe in tries.items()}}
print(json.dumps({{name: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for name, pid in running.items()}}))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("layer", ["none", "memory", "limits", "landlock", "seccomp", "audit"])
def test_each_layer_alone_stops_what_it_is_for(tmp_path, layer, fault):
    """Without any, every probe works: the control. Limits are those of a user who is not root."""
    came = outcomes(tmp_path, layer, NOBODY if layer == "limits" else 0)
    if set(came.values()) == {9}:
        pytest.skip(f"no {layer} on this platform")
    stopped = {name for name, code in came.items() if code}
    wanted = {name for name, (_, layers) in PROBES.items() if layer in layers}
    assert wanted <= stopped, wanted - stopped
    if layer == "none":
        assert not stopped
    if layer == "seccomp":
        refused = {"writes a file", "opens to write"}
        assert {came[name] for name in wanted - refused} == {-signal.SIGSYS} and {came[name] for name in refused} == {7}
    if layer != "none":
        fault(f"grader misbehaves ({layer} alone)", f"{len(wanted)} kinds", "all stopped")


@pytest.mark.parametrize("user", [0, NOBODY], ids=["as it is", "not root"])
def test_nothing_goes_through_all_layers(tmp_path, user, fault):
    if user and os.geteuid() != 0:
        pytest.skip("only root can become another user; the other case is this one")
    came = outcomes(tmp_path, "all", user)
    assert [name for name, code in came.items() if not code] == []
    assert 9 not in came.values()
    for name in PROBES:
        assert os.listdir(tmp_path / name) == ["there"] and (tmp_path / name / "there").read_text() == "text", name
    fault("grader misbehaves (all layers)", f"{len(came)} kinds", "all stopped, no trace")


def test_a_grader_started_by_root_is_somebody_else_without_powers():
    with RewardPool("math", workers=2) as pool:
        assert pool.layers[-1] == "audit" and pool.cell().startswith("graders: shut in by memory, limits")
        status = [Path(f"/proc/{worker.process.pid}/status").read_text() for worker in pool._pool]
        good = pool.score(["</think>\\boxed{\\int_0^1 x dx}"] * 2, ["1/2"] * 2)
        assert good.rewards == [1.0, 1.0]
        missing = [layer for layer in sandbox.LAYERS if layer not in pool.layers]
        assert all(layer in pool.cell() for layer in sandbox.LAYERS) and ("not here" in pool.cell()) == bool(missing)
    users = [re.search(r"^Uid:\s+(.*)$", text, re.MULTILINE)[1].split() for text in status]
    powers = [int(re.search(r"^CapEff:\s+(\w+)$", text, re.MULTILINE)[1], 16) for text in status]
    if os.geteuid():
        assert powers == [0, 0]
        return
    assert "user" in pool.layers or missing  # said, where it does not hold
    if "user" not in missing:
        assert len({user for ids in users for user in ids}) == 2, "each has one of its own, in all four places"
        assert all(bits & ~(1 << 2) == 0 for bits in powers), "at most reading what Landlock leaves"


ALL_CALLS = """
import ctypes, json, os, resource, signal
from siri.rewards import system_calls

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
libc = ctypes.CDLL(None)
nothing = [ctypes.c_long(-1)] * 6
ended, running = [], {}

def wait_for_all():
    for number, child in running.items():
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSYS:
            ended.append(number)
    running.clear()

for number in NUMBERS:
    running[number] = os.fork()
    if not running[number]:
        signal.alarm(100)
        system_calls.install() or os._exit(9)
        libc.syscall(ctypes.c_long(number), *nothing)
        os._exit(0)
    if len(running) == 64:
        wait_for_all()
wait_for_all()
print(json.dumps(ended))
"""


@on_x86_64
def test_every_system_call_of_the_kernel_is_on_the_list_or_ends_the_process(fault):
    """All numbers of the table, more than it has, and the x32 twins of some."""
    numbers = [*range(500), *range(0x40000000, 0x40000000 + 500, 100)]
    code = ALL_CALLS.replace("NUMBERS", repr(numbers))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    through = set(numbers) - set(json.loads(run.stdout))
    listed = {number for group in system_calls.ALLOWED.values() for number in group.values()}
    # with flags of all ones: open and openat are refused and not ended
    refused = {system_calls.NARROWED["open"], system_calls.NARROWED["openat"]}
    # the kernel lets these two, uretprobe and uprobe, past every filter; they do nothing outside of its own probes
    assert through - {335, 336} == listed | refused
    fault("grader makes a system call", f"{len(numbers)} numbers", f"{len(numbers) - len(through)} end it")


@on_x86_64
def test_the_numbers_are_those_of_the_names():
    headers = [path for path in Path("/usr/include").glob("**/asm/unistd_64.h") if path.is_file()]
    if not headers:
        pytest.skip("the kernel's headers are not installed")
    known = dict(re.findall(r"#define __NR_(\w+) (\d+)", headers[0].read_text()))
    for name, number in {
        **dict(e for g in system_calls.ALLOWED.values() for e in g.items()),
        **system_calls.NARROWED,
    }.items():
        assert known.get(name, str(number)) == str(number), name


NARROW = {
    "open to read": ("libc.open(b'/dev/null', os.O_RDONLY) >= 0", 0),
    "is it a terminal": ("libc.ioctl(0, 0x5401, bytes(64)) in (0, -1)", 0),
    "type on a terminal": ("libc.ioctl(0, 0x5412, b'x')", -signal.SIGSYS),
    "flags of a file": ("libc.fcntl(0, 3) >= 0", 0),
    "signals from a file": ("libc.fcntl(0, 8, os.getpid())", -signal.SIGSYS),
    "read a limit": ("libc.prlimit(0, 7, None, bytes(16)) == 0", 0),
    "set a limit": ("libc.prlimit(0, 7, bytes(16), None)", -signal.SIGSYS),
    "read another's limit": ("libc.prlimit(1, 7, None, bytes(16))", -signal.SIGSYS),
    "open to write": ("libc.open(b'/dev/null', os.O_WRONLY) == -1 and ctypes.get_errno() == errno.EACCES", 0),
    "a timer": ("libc.setitimer(0, bytes(32), None) == 0", 0),
}


@on_x86_64
@pytest.mark.parametrize("name", NARROW)
def test_calls_that_do_several_things_do_only_what_is_meant(name):
    expression, code = NARROW[name]
    text = (
        "import ctypes, errno, os, sys\nfrom siri.rewards import system_calls\n"
        "libc = ctypes.CDLL(None, use_errno=True)\nassert system_calls.install()\n"
        f"os._exit(0 if {expression} else 7)"
    )
    assert subprocess.run([sys.executable, "-c", text], timeout=600).returncode == code
    assert errno.EACCES == 13  # what the filter returns


def test_a_grader_cannot_forge_a_line(tmp_path, monkeypatch, capfd):
    """What it prints is marked, and holds no control characters; without an end it is cut."""
    (tmp_path / "loud.py").write_text(
        "import os, sys\n"
        "def grade(response, answer):\n"
        "    print('siri: done\\x1b[2J', file=sys.stderr, flush=True)\n"
        "    os.write(1, b'x' * 100_000 + b'\\n')\n"
        "    print('\\n'.join(map(str, range(3000))))\n"
        "    return 1\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("siri.rewards.pool._Output.left", 500)
    with RewardPool("loud:grade", workers=1) as pool:
        assert pool.score([""] * 3, [""] * 3).rewards == [1.0] * 3
    printed = capfd.readouterr()
    lines = printed.err.splitlines()
    assert printed.out == "" and lines[0] == "grader: siri: done\\x1b[2J"
    assert all(line.startswith("grader: ") and len(line) < 600 for line in lines)
    assert len(lines) == 501 and lines[-1] == "grader: what follows is not shown (500 lines were)"


def test_a_grader_that_has_computed_for_long_is_replaced(monkeypatch):
    """Before the kernel's limit ends it in the middle of an answer."""
    short = "import siri.rewards.worker as worker; worker.CPU_SECONDS = 1; worker.ORPHAN_GRACE_S = 0; "
    last = "from siri.rewards.worker import"
    monkeypatch.setattr("siri.rewards.pool.COMMAND", COMMAND.replace(last, short + last))
    with RewardPool("math", workers=1, timeout_s=1.0) as pool:  # replaced after two seconds
        pids = set()
        for number in range(3000):
            pids.add(pool._pool[0].process.pid)
            if len(pids) == 2:
                break
            batch = pool.score([f"</think>\\boxed{{\\int_0^1 {number}x dx}}"], [f"\\frac{{{number}}}{{2}}"])
            assert (batch.rewards, batch.errors, batch.timeouts) == ([1.0], 0, 0)
    assert len(pids) == 2
