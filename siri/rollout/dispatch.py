"""Jobs over servers that may be lost: each job is done once, by a server that holds the current weights throughout."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

from siri.errors import InputError
from siri.rollout import Completion, Done, Progress
from siri.rollout.vllm import Job, Ran

TRIES = 4
"""A response that fails so often is an error."""
UNCHECKED = "not checked yet"
"""The fault of a server that nothing has gone wrong with."""


class ServerLost(Exception):
    """The server does not answer, or no longer with the weights it was given."""


class BadAnswer(Exception):
    """The server answered with what is no response; trying again is safe."""


class Crew:
    """Servers with work on them, each watched: who is lost is waited for, and given the weights again. `engine` is a
    `siri.rollout.fleet.ServedEngine`, `session` its HTTP session."""

    def __init__(self, engine: Any, session: Any, temperature: float) -> None:
        self.engine, self.session, self.temperature = engine, session, temperature
        self.running: dict[asyncio.Task, tuple[Any, Any]] = {}
        """For each request in flight what it is for, and its server."""
        self.keepers: dict[asyncio.Task, Any] = {}
        """For each server a task that ends when its state changes: a watch ends in ServerLost, a revival in success."""
        self.alive_at = perf_counter()
        """When a server was last there."""

    def admit(self, servers: Sequence[Any]) -> None:
        """Begin to use the servers, each once it holds the weights of the last sync."""
        self.alive_at = perf_counter()
        for server in servers:
            self._keep(server, self._admit(server, server.fault))
            server.fault = server.fault or UNCHECKED  # now: the task begins after the first jobs

    def free(self, share: int, *, avoid: Any = None) -> Any:
        """The server with the fewest requests, if it has less than `share`; None without one. avoid: a server that is
        taken only where there is no other."""
        load = Counter(server for _, server in self.running.values())
        free = [server for server in self.keepers.values() if not server.fault and load[server] < share]
        return min(free, key=lambda server: (server is avoid, load[server]), default=None)

    def turn(self, ended: Iterable[asyncio.Task], servers: Sequence[Any]) -> None:
        """Heed what became of servers. InputError once none is left for the time-out."""
        for task in ended:
            self._turn(task)
        now = perf_counter()
        if any(not server.fault for server in servers):
            self.alive_at = now
        elif now - self.alive_at > self.engine.options.timeout_s:
            faults = "; ".join(f"{server.url}: {server.fault}" for server in servers)
            raise InputError(f"no rollout server is left ({faults}); start them again and use --resume")

    async def leave(self) -> None:
        """End all requests and watches."""
        for task in (*self.running, *self.keepers):
            task.cancel()
        await asyncio.gather(*self.running, *self.keepers, return_exceptions=True)

    def lose(self, server: Any, reason: str) -> None:
        """Take a server's work from it, and wait for it to come back."""
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
            self.lose(server, str(error))
        else:
            server.fault = ""
            self._keep(server, self._watch(server))

    async def _admit(self, server: Any, fault: str) -> None:
        """Before the first job: the server has to hold the weights of the last sync. fault: why it was not used."""
        if fault:
            return await self.engine.revive(self.session, server)
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


class Dispatch(Crew):
    """One batch of jobs."""

    def __init__(
        self,
        engine: Any,
        session: Any,
        jobs: Sequence[Job],
        temperature: float,
        limit: int,
        progress: Progress | None = None,
        check: Callable[[], None] = lambda: None,
        told: Done | None = None,
    ) -> None:
        """check: called a few times a second; what it raises ends the batch. told: of each response, by the place of
        its job."""
        super().__init__(engine, session, temperature)
        self.check, self.jobs, self.limit, self.progress = check, jobs, limit, progress
        self.told = told
        self.queue = deque(range(len(jobs)))
        self.done: dict[int, tuple[Completion, Any, Any]] = {}
        """Job -> its response, the server that gave it, and the process that the server was then."""
        self.counted: set[int] = set()
        """The jobs of which `progress` was told: one that is done again is told once."""
        self.failures: Counter[int] = Counter()
        self.busy_s = 0.0

    async def run(self, servers: Sequence[Any]) -> Ran:
        """All responses, in the order of the jobs. InputError once no server is left for the time-out, or a response
        failed too often."""
        began = last = perf_counter()
        try:
            self.admit(servers)
            while len(self.done) < len(self.jobs) or not await self._confirmed():
                self.check()
                self._start(servers)
                waited = {*self.running, *self.keepers}
                ended, _ = await asyncio.wait(waited, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
                now = perf_counter()
                self.busy_s, last = self.busy_s + len(self.running) * (now - last), now
                for task in ended & self.running.keys():
                    self._finish(task)
                self.turn(ended & self.keepers.keys(), servers)
        finally:
            await self.leave()
        return Ran([self.done[index][0] for index in range(len(self.jobs))], self.busy_s, perf_counter() - began)

    def _start(self, servers: Sequence[Any]) -> None:
        """Give waiting jobs, in order, to the servers with the fewest; none gets more than its share of the limit."""
        share = -(-self.limit // len(servers))
        while self.queue:
            server = self.free(share)
            if server is None:
                return
            index = self.queue.popleft()
            task = asyncio.create_task(self._sample(index, server))
            self.running[task] = (index, server)

    async def _sample(self, index: int, server: Any) -> tuple[Completion, Any, Any]:
        if self.failures[index]:
            await asyncio.sleep(0.1 * 2 ** self.failures[index])
        process = server.process
        completion = await self.engine.sample(self.session, server, self.jobs[index], self.temperature)
        return completion, server, process

    def _finish(self, task: asyncio.Task) -> None:
        index, server = self.running.pop(task)
        try:
            self.done[index] = task.result()
        except asyncio.CancelledError:  # its server was lost
            self._again(index, server.fault)
        except BadAnswer as error:
            self._again(index, f"{server.url}: {error}")
        except ServerLost as error:
            self._again(index, f"{server.url}: {error}")
            self.lose(server, str(error))
        else:
            if self.progress and index not in self.counted:
                self.progress(1)
            self.counted.add(index)
            if self.told:
                self.told(index, self.done[index][0])

    def _again(self, index: int, reason: str) -> None:
        self.failures[index] += 1
        self.engine.retries[reason] += 1
        if self.failures[index] >= TRIES:
            raise InputError(f"a rollout failed {TRIES} times, the last time with: {reason}")
        self.queue.appendleft(index)

    async def _confirmed(self) -> bool:
        """Whether the servers that answered still are the processes, with the weights, with which they began. One that
        was restarted sampled from other weights until somebody, who may be another rank, gave it these: what it gave
        before is thrown away and done again."""
        for server in {server for _, server, _ in self.done.values()}:
            process, reason = None, ""
            try:
                process = await self.engine.process(self.session, server)
                held = await self.engine.held(self.session, server)
            except (ServerLost, BadAnswer) as error:
                held, reason = None, str(error)
            else:
                reason = f"restarted in the middle of a rollout, it holds the weights {held}"
            good = process if held == self.engine.version else None
            for index in [index for index, (_, *giver) in self.done.items() if giver[0] is server and giver[1] != good]:
                del self.done[index]
                self._again(index, f"{server.url}: {reason}")
            if good is None:
                self.lose(server, reason)
            else:
                server.process = good
        return len(self.done) == len(self.jobs)
