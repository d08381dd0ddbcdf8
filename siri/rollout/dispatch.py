"""Jobs over servers that may be lost: each job is done once, by a server that holds the current weights throughout."""

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

from siri.errors import InputError
from siri.rollout import Completion, Progress
from siri.rollout.vllm import Job, Ran

TRIES = 4
"""A response that fails so often is an error."""


class ServerLost(Exception):
    """The server does not answer, or no longer with the weights it was given."""


class BadAnswer(Exception):
    """The server answered with what is no response; trying again is safe."""


class Dispatch:
    """One batch of jobs. `engine` is a `siri.rollout.fleet.ServedEngine`, `session` its HTTP session."""

    def __init__(
        self,
        engine: Any,
        session: Any,
        jobs: Sequence[Job],
        temperature: float,
        limit: int,
        progress: Progress | None = None,
    ) -> None:
        self.engine, self.session, self.jobs, self.temperature = engine, session, jobs, temperature
        self.limit, self.progress = limit, progress
        self.queue = deque(range(len(jobs)))
        self.done: dict[int, tuple[Completion, Any]] = {}
        """Job -> its response and the server that gave it."""
        self.running: dict[asyncio.Task, tuple[int, Any]] = {}
        self.keepers: dict[asyncio.Task, Any] = {}
        """For each server a task that ends when its state changes: a watch ends in ServerLost, a revival in success."""
        self.failures: Counter[int] = Counter()
        self.busy_s = 0.0

    async def run(self, servers: Sequence[Any]) -> Ran:
        """All responses, in the order of the jobs. InputError once no server is left for the time-out, or a response
        failed too often."""
        began = last = self.alive_at = perf_counter()
        try:
            for server in servers:
                self._keep(server, self._admit(server))
            while len(self.done) < len(self.jobs) or not await self._confirmed():
                self._start(servers)
                waited = {*self.running, *self.keepers}
                ended, _ = await asyncio.wait(waited, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
                now = perf_counter()
                self.busy_s, last = self.busy_s + len(self.running) * (now - last), now
                for task in ended & self.running.keys():
                    self._finish(task)
                for task in ended & self.keepers.keys():
                    self._turn(task)
                if any(not server.fault for server in servers):
                    self.alive_at = now
                elif now - self.alive_at > self.engine.options.timeout_s:
                    faults = "; ".join(f"{server.url}: {server.fault}" for server in servers)
                    raise InputError(f"no rollout server is left ({faults}); start them again and use --resume")
        finally:
            for task in (*self.running, *self.keepers):
                task.cancel()
            await asyncio.gather(*self.running, *self.keepers, return_exceptions=True)
        return Ran([self.done[index][0] for index in range(len(self.jobs))], self.busy_s, perf_counter() - began)

    def _start(self, servers: Sequence[Any]) -> None:
        """Give waiting jobs, in order, to the servers with the fewest; none gets more than its share of the limit."""
        share = -(-self.limit // len(servers))
        while self.queue:
            load = Counter(server for _, server in self.running.values())
            free = [server for server in self.keepers.values() if not server.fault and load[server] < share]
            if not free:
                return
            server = min(free, key=lambda candidate: load[candidate])
            index = self.queue.popleft()
            task = asyncio.create_task(self._sample(index, server))
            self.running[task] = (index, server)

    async def _sample(self, index: int, server: Any) -> Completion:
        if self.failures[index]:
            await asyncio.sleep(0.1 * 2 ** self.failures[index])
        return await self.engine.sample(self.session, server, self.jobs[index], self.temperature)

    def _finish(self, task: asyncio.Task) -> None:
        index, server = self.running.pop(task)
        try:
            self.done[index] = (task.result(), server)
        except asyncio.CancelledError:  # its server was lost
            self._again(index, server.fault)
        except BadAnswer as error:
            self._again(index, f"{server.url}: {error}")
        except ServerLost as error:
            self._again(index, f"{server.url}: {error}")
            self._lose(server, str(error))
        else:
            if self.progress:
                self.progress(1)

    def _again(self, index: int, reason: str) -> None:
        self.failures[index] += 1
        self.engine.retries[reason] += 1
        if self.failures[index] >= TRIES:
            raise InputError(f"a rollout failed {TRIES} times, the last time with: {reason}")
        self.queue.appendleft(index)

    def _lose(self, server: Any, reason: str) -> None:
        """Take a server's jobs from it, and wait for it to come back."""
        if server.fault:
            return
        self.engine.lose(server, reason)
        for task, (_, owner) in self.running.items():
            if owner is server:
                task.cancel()
        for task in [task for task, owner in self.keepers.items() if owner is server]:
            task.cancel()
            del self.keepers[task]
        self._keep(server, self.engine.revive(self.session, server))

    def _keep(self, server: Any, work: Any) -> None:
        self.keepers[asyncio.create_task(work)] = server

    def _turn(self, task: asyncio.Task) -> None:
        """A server was lost, or is back."""
        server = self.keepers.pop(task, None)
        if server is None or task.cancelled():
            return
        try:
            task.result()
        except (ServerLost, BadAnswer) as error:
            self._lose(server, str(error))
        else:
            server.fault = ""
            self._keep(server, self._watch(server))

    async def _admit(self, server: Any) -> None:
        """Before the first job: the server has to hold the weights of the last sync."""
        if server.fault:
            return await self.engine.revive(self.session, server)
        server.fault = "not checked yet"
        try:
            await self.engine.admit(self.session, server)
        except (ServerLost, BadAnswer):
            server.fault = ""  # so that it is lost properly
            raise

    async def _watch(self, server: Any) -> None:
        """Ends in ServerLost when the server has jobs and samples nothing for the time-out."""
        timeout = self.engine.options.timeout_s
        pause = min(5.0, timeout / 4)
        made, since = None, perf_counter()
        while True:
            await asyncio.sleep(pause)
            with suppress(TimeoutError):
                now_made = await self.engine.tokens_made(self.session, server, pause)
                if now_made != made:
                    made, since = now_made, perf_counter()
            if not any(owner is server for _, owner in self.running.values()):
                since = perf_counter()
            elif perf_counter() - since > timeout:
                raise ServerLost(f"no new token for {timeout:g} s")

    async def _confirmed(self) -> bool:
        """Whether the servers that answered still hold the weights with which they began. One that was restarted
        unnoticed sampled from other weights: what it gave is thrown away and done again."""
        for server in {server for _, server in self.done.values()}:
            try:
                held = await self.engine.held(self.session, server)
            except (ServerLost, BadAnswer) as error:
                held, reason = None, str(error)
            else:
                reason = f"restarted in the middle of a rollout, it holds the weights {held}"
            if held != self.engine.version:
                redo = [index for index, (_, giver) in self.done.items() if giver is server]
                for index in redo:
                    del self.done[index]
                    self._again(index, f"{server.url}: {reason}")
                self._lose(server, reason)
        return len(self.done) == len(self.jobs)
