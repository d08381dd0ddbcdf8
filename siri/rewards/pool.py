"""Rewards in killable worker processes: a response that hangs or crashes its grader costs one zero, not the run.

The workers of the built-in math reward, which read what a model wrote, are shut in as well (see `sandbox`): no
network, no programs, no writing, no evaluation of text. A function of the user's is the user's: it keeps its freedom,
and is only killed when it takes too long (or too much memory, if a limit is given).

Threads cannot be killed and signals reach only the main thread, so every worker is a fresh interpreter that takes one
(response, answer) at a time over a socket. It is a plain subprocess rather than multiprocessing, whose spawn runs the
caller's main module again.
"""

import contextlib
import faulthandler
import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Protocol

from siri.errors import InputError
from siri.rewards import BUILT_IN, Reward, exact_reward, resolve_reward, sandbox
from siri.rewards.answers import doubts
from siri.runtime.threads import helper_environment
from siri.text import printable

# A worker imports math-verify, or whatever the user's module does; on a busy machine that may take a while.
START_TIMEOUT_S = 120.0
# Past its deadline the pool kills a worker. A worker whose pool is gone ends itself, this much later.
ORPHAN_GRACE_S = 3.0
# sympy evaluates powers: \boxed{9^{9^{9^9}}} would take the machine's memory long before its time is up.
MATH_MEMORY_BYTES = 2 << 30
# A worker says little; whatever is longer is not from our code.
MAX_MESSAGE_BYTES = 1 << 16
MAX_ERROR_CHARS = 500
# Workers that die one after the other before they are ready, as on a machine without memory, end the run.
MAX_FAILED_STARTS = 5

_WORKER = (
    "import json, sys; path, *arguments = json.loads(sys.argv[1]); sys.path[:] = path; "
    "from siri.rewards.pool import worker_main; worker_main(*arguments)"
)


@dataclass(slots=True)
class RewardBatch:
    """Rewards of one batch, in the order of its responses, and how many of its zeros are not the model's fault."""

    rewards: list[float]
    timeouts: int = 0
    errors: int = 0
    """Rewards that raised, returned something that is not a finite number, or took their process down."""
    first_error: str = ""
    """The first such failure, for the log."""
    undecided: int = 0
    """Answers too large or too close to the gold answer to be told from it within bounds."""

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
    deadline: float
    ready: bool = False
    item: int | None = None
    """The index that it works on."""
    sandbox: list[str] = field(default_factory=list)
    """What holds it in: "memory", "seccomp", "audit"."""

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # with whatever the reward has started
        self.connection.close()
        self.process.wait()


class RewardPool:
    """Scores batches with the reward called `reward` (see `resolve_reward`) in `workers` processes, each of which gets
    at most `memory_bytes` of address space (0 = 2 GiB for math, no limit for others; where the platform can limit it).

    An item that takes longer than `timeout_s` seconds is killed with its worker, scores 0 and is counted; so is one
    whose worker dies and one that raises. Rewards do not depend on the number of workers. "exact" is computed in this
    process. A context manager: entering waits until the workers have imported the reward, and raises InputError if
    they cannot; leaving ends them.
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
        self._opened = False  # the reward has been imported once, so that a later failure is the machine's
        self._failed_starts = 0
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

    def score(self, responses: Sequence[str], answers: Sequence[str]) -> RewardBatch:
        """The rewards of `responses`, each against the gold answer in the same place of `answers`."""
        pairs = list(zip(responses, answers, strict=True))
        if self.reward == "exact":
            return self._score_here(partial(exact_reward, think=self.think), pairs)
        if not self._pool:
            raise RuntimeError("the reward pool is not open: use it in a with statement")
        batch = RewardBatch([0.0] * len(pairs))
        waiting = deque(range(len(pairs)))
        try:
            while waiting or any(worker.item is not None for worker in self._pool):
                for worker in self._pool:
                    if waiting and worker.ready and worker.item is None:
                        worker.item = waiting.popleft()
                        worker.deadline = time.monotonic() + self.timeout_s
                        # A worker that has died meanwhile is noticed, and replaced, where its answer is awaited.
                        with contextlib.suppress(OSError):
                            worker.connection.send_bytes(json.dumps(pairs[worker.item]).encode())
                self._step(batch)
        except BaseException:
            for worker in [worker for worker in self._pool if worker.item is not None]:
                self._replace(worker)  # or its late answer would be taken for one of the next batch
            raise
        self.first_error = self.first_error or batch.first_error
        return batch

    def _score_here(self, reward: Reward, pairs: list[tuple[str, str]]) -> RewardBatch:
        batch = RewardBatch([])
        for response, answer in pairs:
            message = _call(reward, response, answer)
            batch.rewards.append(message.get("reward", 0.0))
            if message["error"]:
                batch.count_error(message["error"])
        return batch

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        # A worker that stops in the middle of a message must not stop us: the kernel gives up in our stead.
        patience = struct.pack("ll", int(self.timeout_s) + 1, 0)
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, option, patience)
        arguments = (list(map(str, sys.path)), theirs.fileno(), self.reward, self.think, self.timeout_s)
        arguments = (*arguments, self.memory_bytes)
        process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, json.dumps(arguments)],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=2,  # what a reward prints is no part of the program's output
            env=helper_environment(),
            start_new_session=True,
        )
        theirs.close()  # or we would never see the end of the worker's connection
        return _Worker(process, Connection(ours.detach()), time.monotonic() + START_TIMEOUT_S)

    def _start_again(self, worker: _Worker, reason: str) -> None:
        self._failed_starts += 1
        if not self._opened or self._failed_starts >= MAX_FAILED_STARTS:
            raise InputError(f"reward {self.reward!r}: {reason}")
        self._replace(worker)

    def _replace(self, worker: _Worker) -> None:
        worker.kill()
        self._pool[self._pool.index(worker)] = self._start()

    def _step(self, batch: RewardBatch) -> None:
        """Waits for the next thing to happen to the workers that are starting or busy, and deals with it."""
        active = [worker for worker in self._pool if not worker.ready or worker.item is not None]
        patience = min(worker.deadline for worker in active) - time.monotonic()
        heard = wait([worker.connection for worker in active], max(0.0, patience))
        now = time.monotonic()
        for worker in active:
            if worker.connection in heard:
                message = _receive(worker.connection)
                if message is None:
                    self._lost(worker, batch)
                else:
                    self._take(worker, message, batch)
            elif now >= worker.deadline:
                if not worker.ready:
                    self._start_again(worker, f"not imported within {START_TIMEOUT_S:.0f} seconds")
                else:
                    self._replace(worker)
                    batch.timeouts += 1

    def _take(self, worker: _Worker, message: dict, batch: RewardBatch) -> None:
        if not worker.ready:
            if message["error"]:
                raise InputError(message["error"])
            worker.ready, worker.sandbox = True, message.get("sandbox", [])
            self._failed_starts = 0
            return
        if worker.item is None:
            return  # it speaks without being asked
        if message["error"]:
            batch.count_error(message["error"])
        else:
            batch.rewards[worker.item] = message["reward"]
            batch.undecided += bool(message.get("undecided"))
        worker.item = None

    def _lost(self, worker: _Worker, batch: RewardBatch) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(1.0)  # its own status, where it has one, says more than that of our kill
        status = worker.process.returncode
        if not worker.ready:
            self._start_again(worker, f"its worker died while importing it (exit status {status})")
            return
        self._replace(worker)
        batch.count_error(f"the reward's process died (exit status {status})")


def _receive(connection: Connection) -> dict | None:
    """The worker's next message; None where there is none: its end, or something that our code did not write."""
    try:
        message = json.loads(connection.recv_bytes(MAX_MESSAGE_BYTES))
        if isinstance(message["error"], str) and math.isfinite(float(message.get("reward", 0))):
            return message
    except (EOFError, OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        pass
    return None


def worker_main(descriptor: int, name: str, think: bool, timeout_s: float, memory_bytes: int) -> None:
    """One worker: imports the reward and says so, then answers requests until its connection closes."""
    # A supervisor's signal to every process is the trainer's to handle, which may still want this step's rewards before
    # it saves. Not SIG_IGN: that would be inherited by programs which a reward starts.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    connection = Connection(descriptor)
    with contextlib.suppress(ConnectionError, EOFError), open(os.devnull, "w") as nowhere:
        try:
            reward = resolve_reward(name, think=think)
        except InputError as error:
            connection.send_bytes(json.dumps({"error": str(error)}).encode())
            return
        layers = ["memory"] if memory_bytes and sandbox.limit_memory(memory_bytes) else []
        if name == "math":
            # imports mpmath and math-verify and builds its grammar, so that the first answer is as fast as others
            for warm, gold in (
                ("\\sqrt{2+\\sqrt{3}}", "\\frac{\\sqrt{6}+\\sqrt{2}}{2}"),
                ("\\int_0^1 x dx", "\\frac{1}{2}"),
            ):
                BUILT_IN["math"](f"\\boxed{{{warm}}}", gold, think=False)
            layers += sandbox.shut_in()
        connection.send_bytes(json.dumps({"error": "", "sandbox": layers}).encode())
        while True:
            response, answer = json.loads(connection.recv_bytes())
            # This timer needs no interpreter lock: it ends a worker whose pool is gone, whatever that is stuck in.
            faulthandler.dump_traceback_later(timeout_s + ORPHAN_GRACE_S, exit=True, file=nowhere)
            message = _call(reward, response, answer)
            faulthandler.cancel_dump_traceback_later()
            connection.send_bytes(json.dumps(message).encode())


def _call(reward: Reward, response: str, answer: str) -> dict:
    doubted = doubts.count
    try:
        value = float(reward(response, answer))
    except (Exception, SystemExit) as error:  # a user's function may raise anything
        text = f"{type(error).__name__}: {_text(error)}"[:MAX_ERROR_CHARS]
        return {"error": text.encode(errors="replace").decode()}
    if not math.isfinite(value):
        return {"error": f"the reward returned {value}"}
    return {"error": "", "reward": value, "undecided": doubts.count > doubted and value == 0}


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as another:  # an exception that cannot say what it is
        return f"({type(another).__name__})"
