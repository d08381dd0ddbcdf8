"""Processes that have no imports to wait for: forked off one that holds torch, transformers and siri.

`Popen` and `run` are subprocess's. A command `[sys.executable, "-m", module, ...]` becomes a fork, in which the module
is run as `python -m` runs it, up to the interpreter's own end; torchrun's ranks are forks, too. The imports are most
of what a short run costs. Whatever else is asked for (other flags of Python, another environment than this process
had) is a process of the usual kind, and so is everything with --torture and beside a real vLLM.

A fork is a child of the process that asked for it. The nursery lets go of it by a second fork, and a child subreaper is
who then becomes its parent (man 2 prctl): it can be waited for, and /proc shows whose it is.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import inspect
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 15, 36
NURSERY = "siri-nursery"
"""Name of the process in /proc/PID/comm, by which it is told from what a run has started."""
LATE = {"COLUMNS", "MASTER_ADDR", "MASTER_PORT", "PYTEST_CURRENT_TEST", "PYTHONPATH", "RANK", "WORLD_SIZE"}
LATE |= {"TORCHINDUCTOR_CACHE_DIR", "TORCH_NCCL_ASYNC_ERROR_HANDLING"}
LATE_PREFIXES = ("GROUP_", "LOCAL_", "ROLE_", "TORCHELASTIC_")
"""Variables that are read when a run begins, and not when a module is imported; what PYTHONPATH adds is put in front of
where further modules are looked for."""
TORCHRUN = "torch.distributed.run"
IMPORTS = ["pyarrow.parquet", "pandas", "rich.live", "rich.progress", "torch._dynamo", TORCHRUN, "tyro"]
IMPORTS += [f"transformers.models.{name}" for name in ("auto.modeling_auto", "auto.tokenization_auto")]
IMPORTS += ["transformers.models.qwen2.modeling_qwen2", "siri.commands.train", "siri.report.view", "siri.train.loop"]
"""What a run imports. pandas: pyarrow looks for it."""
SIGNALS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
"""Those that are sent to runs, with what Python does on them."""
forked = False
"""Whether this process came from a nursery."""
cold = sys.platform != "linux"
"""Whether all processes are of the usual kind."""
MOST = 2
"""So many nurseries are kept: of a process, and of a test that changes the environment for a while."""
_nurseries: "list[Nursery]" = []
"""Each for its environment; the last is the one last used."""
_asking = threading.Lock()


class Nursery:
    """The process that forks, at the other end of `channel`."""

    def __init__(self, channel: socket.socket, process: subprocess.Popen | None, environment: Mapping[str, str]):
        self.channel, self.process, self.environment = channel, process, early(environment)

    @classmethod
    def start(cls, environment: Mapping[str, str]) -> "Nursery":
        mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other, open(os.devnull, "r+b") as nothing:
            command = [sys.executable, "-m", "tests.support.warm", str(other.fileno())]
            streams = {"stdin": nothing, "stdout": nothing, "stderr": subprocess.PIPE, "cwd": ROOT}
            process = subprocess.Popen(command, env=environment, pass_fds=[other.fileno()], **streams)
        if mine.recv(16) != b"ready":
            raise RuntimeError(f"the nursery has ended:\n{process.stderr.read().decode()}")
        return cls(mine, process, environment)

    @property
    def lives(self) -> bool:
        return self.process is None or self.process.poll() is None

    def fork(self, job: dict[str, Any], streams: list[int]) -> int:
        """A child of this process that does `job`; its pid."""
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            socket.send_fds(self.channel, [json.dumps(job).encode("utf-8", "surrogateescape")], streams)
            pid = int(self.channel.recv(16) or b"0")
            if not pid or self.channel.recv(16) != b"ready":
                raise RuntimeError("the nursery has ended")
        finally:
            prctl(PR_SET_CHILD_SUBREAPER, 0)
        return pid


def prctl(option: int, value: int | bytes) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def early(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that imports may have read."""
    return {k: v for k, v in environment.items() if k not in LATE and not k.startswith(LATE_PREFIXES)}


class Popen(subprocess.Popen):
    """subprocess.Popen, by a fork where that does."""

    def _execute_child(self, *arguments: Any) -> None:
        usual = super()._execute_child
        given = inspect.signature(usual).bind(*arguments).arguments
        environment = os.environ if given["env"] is None else given["env"]
        job = as_job([os.fsdecode(word) for word in given["args"]]) if isinstance(given["args"], list | tuple) else None
        plain = not any(given[name] for name in ("shell", "preexec_fn", "pass_fds", "executable"))
        nursery = hired(environment) if job and plain else None
        if nursery is None:
            usual(*arguments)
            return
        ends = {0: "p2cread", 1: "c2pwrite", 2: "errwrite"}
        streams = [given[name] if given[name] != -1 else fd for fd, name in ends.items()]
        job |= {"env": dict(environment), "cwd": os.path.abspath(given["cwd"] or ".")}
        job["session"] = bool(given["start_new_session"])
        job["ignored"] = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_IGN]
        with _asking:
            self.pid = nursery.fork(job, streams)
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(given[name] for name in pipes))


def run(*arguments: Any, **options: Any) -> subprocess.CompletedProcess:
    """subprocess.run with a `Popen` of ours."""
    with _patched(subprocess):
        return subprocess.run(*arguments, **options)


@contextlib.contextmanager
def _patched(module: Any) -> Iterator[None]:
    usual, module.Popen = module.Popen, Popen
    try:
        yield
    finally:
        module.Popen = usual


def as_job(words: list[str]) -> dict[str, Any] | None:
    """What `python [-u] -m module argument...` asks for; None for anything else."""
    unbuffered = words[1:2] == ["-u"]
    rest = words[2 if unbuffered else 1 :]
    if words[0] != sys.executable or rest[:1] != ["-m"] or len(rest) < 2:
        return None
    return {"module": rest[1], "arguments": rest[2:], "unbuffered": unbuffered}


def hired(environment: Mapping[str, str]) -> Nursery | None:
    """The nursery whose imports have read this environment; None if there is none, and it is not this process's."""
    if cold:
        return None
    with _asking:
        wanted = early(environment)
        here = {**os.environ, "OMP_NUM_THREADS": "1"}
        nursery = next((each for each in _nurseries if each.lives and each.environment == wanted), None)
        if nursery is None and (forked or wanted != early(here)):
            return None
        _nurseries[:] = [each for each in _nurseries if each.lives and each is not nursery]
        for oldest in _nurseries[: 1 - MOST]:
            oldest.channel.close()  # nobody asks it any more
            oldest.process.wait()
            _nurseries.remove(oldest)
        nursery = nursery or Nursery.start(here)
        _nurseries.append(nursery)
        return nursery


def serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork whenever `channel` asks, until nobody does: None. In a fork its job."""
    prctl(PR_SET_NAME, NURSERY.encode())
    for number in SIGNALS:  # which are meant for a run in the same process group
        signal.signal(number, signal.SIG_IGN)
    while True:
        message, streams, *_ = socket.recv_fds(channel, 1 << 20, 3)
        if not message:
            return None
        between = os.fork()
        if not between:
            parent = os.getpid()
            if pid := os.fork():
                channel.send(str(pid).encode())
                os._exit(0)
            channel.close()
            while os.getppid() == parent:
                time.sleep(1e-4)
            job = json.loads(message.decode("utf-8", "surrogateescape"))
            # what a process that starts makes of those that its parent ignores, and of the others
            for number, usual in SIGNALS.items():
                signal.signal(number, signal.SIG_IGN if number in job["ignored"] else usual)
            settle(job, streams)
            return job
        os.waitpid(between, 0)
        for stream in streams:
            os.close(stream)
        channel.send(b"ready")


def settle(job: dict[str, Any], streams: list[int]) -> None:
    """Make this fork what a fresh process is."""
    prctl(PR_SET_NAME, b"python")
    if job["session"]:
        os.setsid()
    for fd, stream in enumerate(streams):
        os.dup2(stream, fd)
        os.close(stream)
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    added = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place and place not in known]
    sys.path[:1] = [job["cwd"], *added]
    reopen("stdin", 0, "r")
    reopen("stdout", 1, "w", write_through=job["unbuffered"])
    reopen("stderr", 2, "w", write_through=job["unbuffered"], line_buffering=not job["unbuffered"])


def reopen(name: str, fd: int, mode: str, **how: bool) -> None:
    """A stream of `sys` anew: the one of the nursery takes its file for what it was."""
    before = getattr(sys, name)
    stream = open(fd, mode, encoding=before.encoding, errors=before.errors, closefd=False)  # noqa: SIM115 it stays
    stream.reconfigure(**how)
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


def work(job: dict[str, Any]) -> None:
    """Run the module as `python -m` does."""
    sys.argv = ["-m", *job["arguments"]]
    if job["module"] == TORCHRUN:
        del sys.modules[TORCHRUN]  # runpy warns of a module that is there already
    runpy.run_module(job["module"], run_name="__main__", alter_sys=True)


def ranks_are_forks() -> dict[str, Any] | None:
    """For torchrun, in a process that has no threads yet: what it starts comes from a nursery of its own. In a fork of
    that its job."""
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not os.fork():
        mine.close()
        job = serve(other)
        if job is None:
            os._exit(0)
        return job
    other.close()
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    subprocess_handler.Popen = Popen
    _nurseries.append(Nursery(mine, None, {**os.environ, "OMP_NUM_THREADS": "1"}))
    return None


if __name__ == "__main__":
    for imported in IMPORTS:
        importlib.import_module(imported)
    gc.collect()
    gc.freeze()
    # libraries look at the end whether their objects are gone, and what is frozen stays
    atexit.register(gc.unfreeze)
    with socket.socket(fileno=int(sys.argv[1])) as asking:
        asking.send(b"ready")
        work_to_do = serve(asking)
    forked = True
    if work_to_do and work_to_do["module"] == TORCHRUN:
        work_to_do = ranks_are_forks() or work_to_do
    if work_to_do:
        work(work_to_do)
