"""Ranks as threads of one process of which one runs at a time: who goes on at each step is drawn from a seed, waiting
costs no time, and a collective in which a rank is missing fails when its patience, of the simulated clock, is over."""

import random
import threading
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from siri.store import lock, saver
from siri.store.shards import SHARD_FILE

REAL_S = 60.0
"""Nothing takes so long on the wall."""
_here = threading.local()


class Ended(BaseException):
    """The schedule is over: a thread that hangs for ever leaves."""


class Threads:
    """What runs, one at a time."""

    def __init__(self, seed: int) -> None:
        self.draw, self.now = random.Random(seed), 0.0
        self.all: list[SimulatedThread] = []
        self.back = threading.Semaphore(0)
        self.over = False

    def thread(self, target: Callable[..., Any], args: tuple = (), name: str = "") -> "SimulatedThread":
        """As threading.Thread makes it."""
        return SimulatedThread(self, target, args, name)

    def step(self) -> None:
        """Let somebody else go on, perhaps."""
        if getattr(_here, "thread", None) is not None:
            _here.thread.park(lambda: True, None)

    def wait(self, ready: Callable[[], bool], deadline: float | None = None) -> bool:
        """Wait until `ready`, or until the clock has reached `deadline`; whether it is ready."""
        _here.thread.park(ready, deadline)
        return ready()

    def sleep(self, seconds: float) -> None:
        self.wait(lambda: False, self.now + seconds)

    def run(self) -> None:
        """Until all threads are done, or none of them can go on any more."""
        while waiting := [thread for thread in self.all if thread.started and not thread.done]:
            can = [thread for thread in waiting if thread.can_go()]
            if not can:
                deadlines = [thread.deadline for thread in waiting if thread.deadline is not None]
                if not deadlines:
                    break
                self.now = max(self.now, min(deadlines))
                continue
            self.draw.choice(can).go()
        self.over = True
        for thread in self.all:
            if thread.started and not thread.done:
                thread.go()

    @property
    def stuck(self) -> list[str]:
        """Names of the threads that were left waiting."""
        return [thread.name for thread in self.all if thread.left_waiting]


class SimulatedThread:
    def __init__(self, threads: Threads, target: Callable[..., Any], args: tuple, name: str) -> None:
        self.threads, self.target, self.args, self.name = threads, target, args, name
        self.turn = threading.Semaphore(0)
        self.ready: Callable[[], bool] = lambda: True
        self.deadline: float | None = None
        self.started = self.done = self.left_waiting = False
        self.fault: BaseException | None = None
        self.real = threading.Thread(target=self._work, daemon=True)
        threads.all.append(self)

    def start(self) -> None:
        self.started = True
        self.real.start()
        self.threads.step()

    def join(self) -> None:
        self.threads.wait(lambda: self.done)

    def is_alive(self) -> bool:
        return self.started and not self.done

    def can_go(self) -> bool:
        return self.ready() or (self.deadline is not None and self.deadline <= self.threads.now)

    def go(self) -> None:
        """Let it run to its next step."""
        self.turn.release()
        assert self.threads.back.acquire(timeout=REAL_S), f"{self.name} runs and runs"

    def park(self, ready: Callable[[], bool], deadline: float | None) -> None:
        self.ready, self.deadline = ready, deadline
        self.threads.back.release()
        assert self.turn.acquire(timeout=REAL_S)
        if self.threads.over:
            self.left_waiting = True
            raise Ended

    def _work(self) -> None:
        _here.thread = self
        assert self.turn.acquire(timeout=REAL_S)
        try:
            self.target(*self.args)
        except Ended:
            pass
        except BaseException as error:
            self.fault = error
        self.done = True
        self.threads.back.release()


class Group:
    """A process group: each rank's n-th collective meets the n-th of the others."""

    def __init__(self, threads: Threads, size: int, patience_s: float) -> None:
        self.threads, self.size, self.patience_s = threads, size, patience_s
        self.given: dict[int, dict[int, Any]] = {}
        self.counts = [0] * size
        self.broken = False

    def gather(self, rank: int, value: Any) -> list[Any]:
        number = self.counts[rank]
        self.counts[rank] += 1
        given = self.given.setdefault(number, {})
        given[rank] = value
        whole = self.threads.wait(lambda: len(given) == self.size or self.broken, self.threads.now + self.patience_s)
        if len(given) < self.size:
            self.broken = True
            raise RuntimeError("connection closed by peer" if whole else "timed out waiting for another rank")
        return [given[other] for other in range(self.size)]


class World:
    """The ranks of a run: torch.distributed as the saver uses it, and `siri.runtime.ranks.Ranks`."""

    def __init__(self, threads: Threads, size: int, patience_s: float) -> None:
        self.threads, self.size = threads, size
        self.main = Group(threads, size, patience_s)
        self.groups: dict[int, Group] = {}
        self.made = [0] * size

    def new_group(self, *, backend: str, timeout: Any) -> Group:
        rank = _here.thread.rank
        number = self.made[rank]
        self.made[rank] += 1
        group = self.groups.setdefault(number, Group(self.threads, self.size, timeout.total_seconds()))
        group.gather(rank, None)
        return group

    def all_gather_object(self, outcomes: list[Any], value: Any, *, group: Group) -> None:
        outcomes[:] = group.gather(_here.thread.rank, value)

    def start(self, rank: int, work: Callable[[Any], Any]) -> SimulatedThread:
        """A thread that is the rank, with its ranks as argument."""
        ranks = SimpleNamespace(rank=rank, size=self.size, main=rank == 0, group=None)
        ranks.gather = lambda value: self.main.gather(rank, value)
        ranks.broadcast = lambda value: self.main.gather(rank, value)[0]
        thread = self.threads.thread(work, (ranks,), f"rank {rank}")
        thread.rank = rank
        thread.start()
        return thread


@contextmanager
def simulated(threads: Threads, world: World, write: Callable[[int, Any, Any], None]) -> Any:
    """Inside, savers and locks use these threads, this clock and this world; `write(rank, folder, pieces)` writes a
    rank's file."""

    def thread(**options: Any) -> SimulatedThread:
        made = threads.thread(**options)
        made.rank = _here.thread.rank
        made.name = f"{options['name']} {made.rank}"
        return made

    def write_pieces(folder: Any, pieces: Any, *, group: Group, alone: bool) -> None:
        rank = _here.thread.rank
        write(rank, folder / SHARD_FILE.format(rank + 1), pieces)
        if not alone:  # as DCP plans and ends
            world.all_gather_object([], None, group=group)

    clock = SimpleNamespace(monotonic=lambda: threads.now, sleep=threads.sleep)
    with ExitStack() as stack:
        stack.enter_context(patch.object(saver, "threading", SimpleNamespace(Thread=thread)))
        stack.enter_context(patch.object(saver, "dist", world))
        stack.enter_context(patch.object(saver, "write_pieces", write_pieces))
        stack.enter_context(patch.object(lock, "time", clock))
        yield
