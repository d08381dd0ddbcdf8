"""Rewards in killable worker processes: a response that hangs or crashes its grader costs one zero, not the run.

The workers of the built-in math reward, which read what a model wrote, are shut in as well (see `sandbox`): no
network, no programs, no writing, no evaluation of text. A function of the user's is the user's: it keeps its freedom,
and is only killed when it takes too long (or too much memory, if a limit is given).

Threads cannot be killed and signals reach only the main thread, so every worker is a fresh interpreter that takes one
(response, answer) at a time over a socket. It is a plain subprocess rather than multiprocessing, whose spawn runs the
caller's main module again.
"""

import contextlib
import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol, cast

import siri
from siri.data.columns import Gold, Wanted
from siri.errors import InputError
from siri.rewards import BUILT_IN, Reward, exact_reward, sandbox
from siri.rewards.worker import COMMAND, MAX_MESSAGE_BYTES, call, read_message
from siri.runtime.threads import helper_environment
from siri.text import printable

# A worker imports math-verify, or whatever the user's module does; on a busy machine that may take a while.
START_TIMEOUT_S = 120.0
# sympy evaluates powers: \boxed{9^{9^{9^9}}} would take the machine's memory long before its time is up.
MATH_MEMORY_BYTES = 2 << 30
# Workers that die one after the other before they are ready, as on a machine without memory, end the run.
MAX_FAILED_STARTS = 5

# An answer whose grading takes too long is tried once more: the machine may have been busy.
TRIES = 2
# What workers print is shown up to here: a reward may print a line for every answer of a run.
MAX_LINES = 500
MAX_LINE_CHARS = 500
KEPT_VARIABLES = ("LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "OMP_NUM_THREADS")
KEPT_VARIABLES += ("OMP_WAIT_POLICY", "TZ")
"""All that a grader of the built-in reward sees of the environment, in which there may be passwords."""


@dataclass(slots=True)
class RewardBatch:
    """Rewards of one batch, in the order of its responses, and how many of its zeros are not the model's fault."""

    rewards: list[float]
    timeouts: int = 0
    """Answers whose grading took too long, twice."""
    errors: int = 0
    """Rewards that raised, returned something that is not a finite number, or took their process down."""
    first_error: str = ""
    """The first such failure, for the log."""
    undecided: int = 0
    """Answers too large or too close to the gold answer to be told from it within bounds."""
    timed_out: set[int] = field(default_factory=set)
    """Which ones timed out, by their place in the batch."""

    def count_error(self, message: str) -> None:
        self.errors += 1
        self.first_error = self.first_error or printable(message)


class Grader(Protocol):
    """What scores responses: a `RewardPool`, to a trainer."""

    def score(self, responses: Sequence[str], answers: Sequence[str]) -> RewardBatch:
        """The rewards of `responses`, each against the gold answer in the same place of `answers`."""
        ...


@dataclass(eq=False, slots=True)
class _Worker:
    process: subprocess.Popen
    connection: Connection
    output: "_Output"
    deadline: float
    ready: bool = False
    item: int | None = None
    """The index that it works on."""
    sandbox: list[str] = field(default_factory=list)
    """What holds it in: "memory", and layers of `siri.rewards.sandbox`."""

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # with whatever the reward has started
        self.connection.close()
        self.process.wait()
        self.output.close()


class _Output:
    """What a worker prints, line by line on our standard error, marked as its own and without control characters."""

    left = MAX_LINES
    """Lines that are still shown, of all workers."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self.descriptor, self._begun, self._ended = descriptor, b"", False

    def open(self) -> list[int]:
        """What is to be waited for: nothing once its end was seen, which is ready for ever."""
        return [] if self._ended else [self.descriptor]

    def show(self) -> bool:
        """Show what is there; False once there will be no more, or nothing for now."""
        try:
            text = os.read(self.descriptor, 1 << 16)
        except (BlockingIOError, InterruptedError):
            return False
        self._ended = not text
        *lines, self._begun = (self._begun + text).split(b"\n")
        if len(self._begun) > MAX_LINE_CHARS or not text:
            lines, self._begun = [*lines, self._begun], b""
        for line in filter(None, lines):
            self._line(line)
        return bool(text)

    def _line(self, line: bytes) -> None:
        if _Output.left:
            _Output.left -= 1
            shown = printable(line[:MAX_LINE_CHARS].decode(errors="backslashreplace"))
            print(f"grader: {shown}", file=sys.stderr, flush=True)
            if not _Output.left:
                print(f"grader: what follows is not shown ({MAX_LINES} lines were)", file=sys.stderr, flush=True)

    def close(self) -> None:
        while self.show():
            pass
        os.close(self.descriptor)


class RewardPool:
    """Scores batches with the reward called `reward` (see `resolve_reward`) in `workers` processes, each of which gets
    at most `memory_bytes` of address space (0 = 2 GiB for math, no limit for others; where the platform can limit it).

    An item that takes longer than `timeout_s` seconds is killed with its worker and tried once more, at the end; when
    it takes too long again it scores 0 and is counted. So, at once, is one whose worker dies and one that raises.
    Rewards do not depend on the number of workers. "exact" is computed in this process. A context manager: entering
    waits until the workers have imported the reward, and raises InputError if they cannot; leaving ends them.
    """

    def __init__(
        self, reward: str, *, workers: int, timeout_s: float = 10.0, think: bool = True, memory_bytes: int = 0
    ):
        if workers < 1:
            raise InputError(f"reward workers {workers}: at least one is needed")
        if not 0 < timeout_s < math.inf:
            raise InputError(f"reward timeout {timeout_s}: must be a positive number of seconds")
        self.reward, self.workers, self.timeout_s, self.think = reward, workers, timeout_s, think
        self.memory_bytes = memory_bytes or (MATH_MEMORY_BYTES if reward == "math" else 0)
        self.first_error = ""
        """What the first answer that could not be graded ran into, for the user."""
        self.columns = Wanted()
        """What the reward asks for of the data, once the workers are there."""
        self._opened = False  # the reward has been imported once, so that a later failure is the machine's
        self._failed_starts = 0
        self._one_batch = threading.Lock()
        """An evaluation may grade while responses that are sampled ahead are graded as they end."""
        self._pool: list[_Worker] = []

    def __enter__(self) -> "RewardPool":
        if self.reward == "exact":
            return self
        try:
            for _ in range(self.workers):
                self._pool.append(self._start())
            while not all(worker.ready for worker in self._pool):
                self._step(RewardBatch([]))
            self._opened = True
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def try_gold(self, answers: Sequence[str]) -> None:
        """Refuse, by InputError, a reward that fails on each of a few gold answers: it would call every response of a
        run wrong."""
        gold = answers[:4]
        graded = self.score([f"</think> \\boxed{{{answer}}}" for answer in gold], gold)
        if graded.errors == len(gold):
            raise InputError(f"reward {self.reward} fails on every answer; the first time with: {self.first_error}")

    def close(self) -> None:
        """Ends the workers and leaves no process behind. Idle ones may finish what they registered for their exit."""
        pool, self._pool = self._pool, []
        idle = [worker for worker in pool if worker.ready and worker.item is None]
        for worker in idle:
            worker.connection.close()
        patience = time.monotonic() + 2.0
        for worker in idle:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, patience - time.monotonic()))
        for worker in pool:
            if worker.process.returncode is None:
                worker.kill()
            else:
                worker.output.close()

    @property
    def layers(self) -> list[str]:
        """What holds every worker in that runs now."""
        return [layer for layer in ("memory", *sandbox.LAYERS) if all(layer in worker.sandbox for worker in self._pool)]

    def cell(self) -> str:
        """A line on what holds the graders in, and what does not; empty where there are none."""
        if self.reward == "exact":
            return ""
        if self.reward != "math":
            return f"graders: {self.reward} is code of yours and runs with your rights"
        missing = [layer for layer in sandbox.LAYERS if layer not in self.layers]
        without = f"; not here: {', '.join(missing)} (docs/reliability.md)" if missing else ""
        return f"graders: shut in by {', '.join(self.layers)}{without}"

    def score(self, responses: Sequence[str], answers: Sequence[str]) -> RewardBatch:
        """The rewards of `responses`, each against the gold answer in the same place of `answers`.
        Threads take turns."""
        with self._one_batch:
            return self._score(responses, answers)

    def _score(self, responses: Sequence[str], answers: Sequence[str]) -> RewardBatch:
        pairs = list(zip(responses, answers, strict=True))
        if self.reward == "exact":
            return self._score_here(partial(exact_reward, think=self.think), pairs)
        if not self._pool:
            raise RuntimeError("the reward pool is not open: use it in a with statement")
        batch = RewardBatch([0.0] * len(pairs))
        waiting, tries = deque(range(len(pairs))), Counter[int]()
        try:
            while waiting or any(worker.item is not None for worker in self._pool):
                for worker in self._pool:
                    if waiting and worker.ready and worker.item is None:
                        worker.item = waiting.popleft()
                        worker.deadline = time.monotonic() + self.timeout_s
                        # A worker that has died meanwhile is noticed, and replaced, where its answer is awaited.
                        with contextlib.suppress(OSError):
                            worker.connection.send_bytes(json.dumps(_item(*pairs[worker.item])).encode())
                for late in self._step(batch):
                    tries[late] += 1
                    if tries[late] < TRIES:
                        waiting.append(late)
                    else:
                        batch.timeouts += 1
                        batch.timed_out.add(late)
        except BaseException:
            for worker in [worker for worker in self._pool if worker.item is not None]:
                self._replace(worker)  # or its late answer would be taken for one of the next batch
            raise
        self.first_error = self.first_error or batch.first_error
        return batch

    def _score_here(self, reward: Reward, pairs: list[tuple[str, str]]) -> RewardBatch:
        batch = RewardBatch([])
        for response, answer in pairs:
            message = call(reward, response, answer)
            batch.rewards.append(message.get("reward", 0.0))
            if message["error"]:
                batch.count_error(message["error"])
        return batch

    def _start(self) -> _Worker:
        parent_socket, worker_socket = socket.socketpair()
        # A worker that stops in the middle of a message must not stop us: the kernel gives up in our stead.
        patience = struct.pack("ll", int(self.timeout_s) + 1, 0)
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            parent_socket.setsockopt(socket.SOL_SOCKET, option, patience)
        arguments = (_paths(), worker_socket.fileno(), self.reward, self.think, self.timeout_s, self.memory_bytes)
        environment = helper_environment()
        if self.reward == "math":
            environment = {name: environment[name] for name in KEPT_VARIABLES if name in environment}
        # -c would put the current folder first on the path, before this package can take it off; -I, where nothing of
        # the user's is meant to run, leaves PYTHONPATH and the like out as well
        isolation = "-I" if self.reward == "math" else "-P"
        output, pipe = os.pipe()
        process = subprocess.Popen(
            [sys.executable, isolation, "-c", COMMAND, json.dumps(arguments)],
            pass_fds=(worker_socket.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=pipe,  # what a reward prints is no part of the program's output
            stderr=pipe,
            env=environment,
            start_new_session=True,
        )
        os.close(pipe)
        worker_socket.close()  # or we would never see the end of the worker's connection
        deadline = time.monotonic() + START_TIMEOUT_S
        return _Worker(process, Connection(parent_socket.detach()), _Output(output), deadline)

    def _start_again(self, worker: _Worker, reason: str) -> None:
        self._failed_starts += 1
        if not self._opened or self._failed_starts >= MAX_FAILED_STARTS:
            raise InputError(f"reward {self.reward!r}: {reason}")
        self._replace(worker)

    def _replace(self, worker: _Worker) -> None:
        worker.kill()
        self._pool[self._pool.index(worker)] = self._start()

    def _step(self, batch: RewardBatch) -> list[int]:
        """Waits for the next thing to happen to the workers that are starting or busy, and deals with it; returns what
        took too long."""
        active = [worker for worker in self._pool if not worker.ready or worker.item is not None]
        patience = min(worker.deadline for worker in active) - time.monotonic()
        sources: list[Connection | int] = [worker.connection for worker in active]
        sources += [descriptor for worker in active for descriptor in worker.output.open()]
        heard = wait(sources, max(0.0, patience))
        now, late = time.monotonic(), []
        for worker in active:
            if worker.output.descriptor in heard:
                worker.output.show()
            if worker.connection in heard:
                message = _receive(worker.connection, first=not worker.ready)
                if message is None:
                    self._lost(worker, batch)
                else:
                    self._take(worker, message, batch)
            elif now >= worker.deadline:
                if not worker.ready:
                    self._start_again(worker, f"not imported within {START_TIMEOUT_S:.0f} seconds")
                else:
                    late.append(cast("int", worker.item))
                    self._replace(worker)
        return late

    def _take(self, worker: _Worker, message: dict, batch: RewardBatch) -> None:
        if not worker.ready:
            if message["error"]:
                raise InputError(message["error"])
            worker.ready, worker.sandbox = True, message["layers"]
            self.columns = Wanted(*map(tuple, message["columns"]))
            self._failed_starts = 0
            return
        if worker.item is None:
            return  # it speaks without being asked
        if message["error"]:
            batch.count_error(message["error"])
        else:
            batch.rewards[worker.item] = message["reward"]
            batch.undecided += message["undecided"]
        worker.item = None
        if message["retire"]:
            self._replace(worker)

    def _lost(self, worker: _Worker, batch: RewardBatch) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(1.0)  # its own status, where it has one, says more than that of our kill
        status = worker.process.returncode
        if not worker.ready:
            self._start_again(worker, f"its worker died while importing it (exit status {status})")
            return
        self._replace(worker)
        batch.count_error(f"the reward's process died (exit status {status})")


def wanted_columns(reward: str) -> Wanted:
    """The columns of the data that a reward asks for, by the names of its parameters; a process looks at it."""
    if reward in BUILT_IN:
        return Wanted()
    with RewardPool(reward, workers=1) as pool:
        return pool.columns


def _item(response: str, answer: str) -> list[Any]:
    return [response, answer, answer.columns if isinstance(answer, Gold) else {}]


def _receive(connection: Connection, *, first: bool) -> dict[str, Any] | None:
    """The worker's next message; None where there is none: its end, or something that our code did not write."""
    try:
        return read_message(connection.recv_bytes(MAX_MESSAGE_BYTES), first=first)
    except (EOFError, OSError):
        return None


def _paths() -> list[str]:
    """This process's `sys.path` for a worker, which must not take a module from the current folder for one of Python's
    or of a library: that folder is left out, and the one that holds this package comes last."""
    here, home = os.getcwd(), str(Path(siri.__file__).resolve().parents[1])
    paths = [path if path.startswith("__editable__") else os.path.abspath(path) for path in map(str, sys.path)]
    return [*(path for path in paths if os.path.realpath(path) not in (os.path.realpath(here), home)), home]
