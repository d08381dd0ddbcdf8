"""Responses that servers write while the trainer trains: a thread of each rank, which keeps the servers busy.

The response of the earliest step goes first, and among those of a step the one that is expected to be the longest. Any
of them may be broken off, and goes on from the tokens that it has: at a sync, by a server that is lost, for one that is
too slow. A token counts from the moment at which its server is seen to hold, still, the weights that it was given:
until then it may have been restarted with others.
"""

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from time import perf_counter
from typing import Any, TypeVar

from siri.errors import InputError
from siri.rollout.balance import Balance
from siri.rollout.dispatch import TRIES, UNCHECKED, BadAnswer, Crew, ServerLost
from siri.rollout.draft import Draft
from siri.runtime.background import Background

T = TypeVar("T")
Beginnings = dict[Draft, tuple[int, int]]
"""Of responses the number of their request, and the tokens that were there."""

CONFIRM_S = 2.0
"""How often a server that samples is asked for the version of its weights."""
SETTLE_S = 10.0
"""What runs on a server that was paused ends at once; what has not ended by then is on one that was not."""
UNHEARD_S = 0.5
"""A request without a token by then came to a server that was paused already, where it would wait for the weights."""


class Flight(Crew):
    """The responses in flight of a rank. It is held until `release` names the weights that the servers have."""

    def __init__(
        self, engine: Any, temperature: float, stop_ids: tuple[int, ...], places: Callable[[int, int], int]
    ) -> None:
        """engine: a `siri.rollout.fleet.ServedEngine`. Its servers are looked at here as by another rank. places: how
        many responses at once, for the longest prompt and cap."""
        super().__init__(engine, None, temperature)
        self.stop_ids, self.places = stop_ids, places
        self.servers = [replace(server) for server in engine.servers]
        self.limit = 1
        """Most responses at once, over all servers."""
        self.held = True
        self.version = 0
        """After how many steps the weights of the servers were made,"""
        self.name: str | None = None
        """and what they are called there."""
        self.done: Callable[[Draft], None] = lambda draft: None
        """Told, in the thread, of each response that is done."""
        self.retries: Counter[str] = Counter()
        self.work: dict[Any, dict[Draft, None]] = {server: {} for server in self.servers}
        """By server the responses that it writes, or has written and that are not confirmed."""
        self._order: dict[Draft, tuple[float, ...]] = {}
        self._waiting: list[tuple[tuple[float, ...], int, Draft]] = []
        self._listed: set[Draft] = set()
        self._failures: Counter[Draft] = Counter()
        self._progress: dict[Draft, int] = {}
        self._moved: dict[Draft, Any] = {}
        """Responses of a slow server that wait for another."""
        self._confirming: dict[asyncio.Task, Any] = {}
        self._asked: dict[Any, float] = {}
        self._balance = Balance()
        self._since = perf_counter()
        self._busy_s = self._room_s = 0.0
        self._changed = asyncio.Event()
        self._closing = False
        self._count = 0
        self._background = Background(self._fly, "flight")

    # --- for the trainer's thread ---

    def add(self, drafts: Sequence[Draft], order: Sequence[tuple[float, ...]]) -> None:
        """Have these responses written, in this order among all that wait."""
        if not drafts:
            return
        longest = max(len(draft.prompt_ids) for draft in drafts), max(draft.max_tokens for draft in drafts)
        limit = self.places(*longest)

        def put() -> None:
            self.limit = limit
            for draft, key in zip(drafts, order, strict=True):
                self._order[draft] = key
                self._list(draft)

        self._call(put)

    def hold(self) -> None:
        """Ask servers for nothing more, until `release`."""

        def stop() -> None:
            self.held = True
            for task in self.keepers:
                task.cancel()
            self.keepers.clear()
            for server in self.servers:
                if server.fault == UNCHECKED:
                    server.fault = ""

        self._call(stop)

    def settle(self) -> None:
        """Wait until nothing runs on the servers, which were paused, and until all that they gave is confirmed or taken
        back."""
        self._background.ask(self._settled())

    def release(self, version: int) -> None:
        """Go on with the weights that the engine has just proved, made after `version` steps."""

        def go() -> None:
            self.held, self.version, self.name = False, version, self.engine.version
            self.admit(self.servers)

        self._call(go)

    def look(self, function: Callable[[], T]) -> T:
        """What the function makes of drafts while nobody writes to them."""
        if self._background.alive:
            with suppress(InputError, RuntimeError):  # it has just ended
                return self._call(function)
        self._background.join()
        return function()

    def check(self) -> None:
        """InputError where there will be no more responses."""
        self._background.check()

    def figures(self) -> dict[str, float]:
        """Of the time since the last call: the share of the places on servers that stood empty, servers in use, and
        what had to be done again."""

        def take() -> dict[str, float]:
            busy, room = self._busy_s, self._room_s
            self._busy_s = self._room_s = 0.0
            again, self.retries = self.retries.total(), Counter()
            share = {"rollout_idle_time_share": 1 - busy / room} if room else {}
            told = {"rollout_servers_used": self._used(), "rollout_retries": again, "rollout_in_flight": self.limit}
            return told | share

        return self.look(take)

    def close(self) -> None:
        """Leave the servers alone."""

        def end() -> None:
            self._closing = True

        with suppress(InputError, RuntimeError):
            self._call(end)
        self._background.join()

    def _call(self, function: Callable[[], T]) -> T:
        """Run a function in the thread of the flight."""

        async def inside() -> T:
            self._account()
            value = function()
            self._changed.set()
            return value

        return self._background.ask(inside())

    # --- in its own thread ---

    async def _fly(self) -> None:
        async with self.engine.connected() as self.session:
            try:
                while not self._closing:
                    self._start()
                    self._changed.clear()
                    waker = asyncio.create_task(self._changed.wait())
                    waited = {waker, *self.running, *self.keepers, *self._confirming}
                    ended, _ = await asyncio.wait(waited, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
                    waker.cancel()
                    self._account()
                    for task in ended & self.running.keys():
                        self._finish(task)
                    for task in ended & self._confirming.keys():
                        self._confirmed(task)
                    if not self.held:
                        self.turn(ended & self.keepers.keys(), self.servers)
                        self._confirm(every=CONFIRM_S)
                        self._share_out()
            finally:
                for task in self._confirming:
                    task.cancel()
                await self.leave()

    def _account(self) -> None:
        """Count the time since the last call."""
        now = perf_counter()
        spent, self._since = now - self._since, now
        if self._order or not self.engine.answers:  # with nothing to write, servers are idle, but for evaluations
            self._busy_s += len(self.running) * spent
            self._room_s += self._share() * self._used() * spent
        for _, server in self.running.values():
            self._balance.busy_s[server] += spent

    def _used(self) -> int:
        """Servers that are not lost."""
        return sum(server.fault in ("", UNCHECKED) for server in self.servers)

    def _share(self) -> int:
        """Most responses at once on a server."""
        return -(-self.limit // len(self.servers))

    def _list(self, draft: Draft) -> None:
        """Have it written on, once it is its turn."""
        if draft not in self._listed:
            self._listed.add(draft)
            self._count += 1
            heapq.heappush(self._waiting, (self._order[draft], self._count, draft))

    def _start(self) -> None:
        while self._waiting and not self.held:
            draft = self._waiting[0][2]
            server = self.free(self._share(), avoid=self._moved.get(draft))
            if server is None:
                return
            heapq.heappop(self._waiting)
            self._moved.pop(draft, None)
            self._listed.discard(draft)
            job = draft.job(self.stop_ids)
            draft.begin(self.version)
            self.work[server][draft] = None
            self.running[asyncio.create_task(self._sample(draft, job, server))] = (draft, server)

    async def _sample(self, draft: Draft, job: Any, server: Any) -> str:
        if self._failures[draft]:
            await asyncio.sleep(0.1 * 2 ** self._failures[draft])

        def extend(tokens: list[int], logp: list[float]) -> None:
            draft.extend(tokens, logp)
            self._balance.tokens[server] += len(tokens)

        return await self.engine.stream(self.session, server, job, self.temperature, extend)

    def _finish(self, task: asyncio.Task) -> None:
        """A request has ended, or was broken off."""
        draft, server = self.running.pop(task)
        try:
            reason = task.result()
        except asyncio.CancelledError:  # its server was lost, or is slow
            self._take_back(draft, server)
        except BadAnswer as error:
            self._again(draft, server, f"{server.url}: {error}")
        except ServerLost as error:
            self.lose(server, str(error))
            self._take_back(draft, server)
        else:
            if server.fault:  # lost by another request of the same moment: nobody will confirm this one
                self._take_back(draft, server)
            elif reason != "abort":
                draft.end(truncated=reason == "length")
                draft.check(self.stop_ids)
            elif self.held:
                self._go_on(draft)
            else:
                self._again(draft, server, f"{server.url}: somebody else has paused it")

    def _again(self, draft: Draft, server: Any, reason: str) -> None:
        """What a server got wrong is asked for again, up to TRIES times without a new token."""
        self.retries[reason] += 1
        if draft.confirmed > self._progress.get(draft, -1):
            self._failures[draft] = 0
        self._progress[draft] = draft.confirmed
        self._failures[draft] += 1
        if self._failures[draft] >= TRIES:
            raise InputError(f"a rollout failed {TRIES} times, the last time with: {reason}")
        self._take_back(draft, server)

    def _take_back(self, draft: Draft, server: Any) -> None:
        """What a server has written of it and what is not confirmed goes; the rest goes on."""
        if self.work[server].pop(draft, 0) is None:
            draft.cut()
            self._go_on(draft)

    def _go_on(self, draft: Draft) -> None:
        """After a request that broke off."""
        draft.close(self.stop_ids)
        if draft.done:
            self._complete(draft)
        elif not draft.ended:
            self._list(draft)

    def _complete(self, draft: Draft) -> None:
        del self._order[draft]
        self._failures.pop(draft, None)
        self._progress.pop(draft, None)
        self._moved.pop(draft, None)
        self.done(draft)

    def lose(self, server: Any, reason: str) -> None:
        if server.fault:
            return
        super().lose(server, reason)
        for task in [task for task, asked in self._confirming.items() if asked is server]:
            task.cancel()
        self.retries[f"{server.url}: {reason}"] += 1
        running = {draft for draft, _ in self.running.values()}
        for draft in [draft for draft in self.work[server] if draft not in running]:
            self._take_back(draft, server)

    def _keep(self, server: Any, work: Any) -> None:
        if self.held:  # the sync looks for it
            work.close()
        else:
            super()._keep(server, work)

    # --- what counts ---

    def _confirm(self, *, every: float = 0.0) -> None:
        """Ask the servers that have written something for the version of their weights, those of which all is written
        at once."""
        now = perf_counter()
        running = {draft for draft, _ in self.running.values()}
        asked = set(self._confirming.values())
        for server, drafts in self.work.items():
            ended = any(draft not in running for draft in drafts)
            due = now - self._asked.get(server, -every) >= (every / 10 if ended else every)
            if drafts and due and not server.fault and server not in asked:
                self._asked[server] = now
                known = {draft: (draft.requests, len(draft.tokens)) for draft in drafts}
                self._confirming[asyncio.create_task(self._holds(server, known))] = server

    async def _holds(self, server: Any, known: Beginnings) -> Beginnings:
        # another rank may have given a restarted one the weights meanwhile
        process = await self.engine.process(self.session, server)
        held = await self.engine.held(self.session, server)
        if held != self.name or process != server.process:
            raise ServerLost(f"restarted in the middle of a rollout, it holds the weights {held}")
        return known

    def _confirmed(self, task: asyncio.Task) -> None:
        server = self._confirming.pop(task)
        try:
            known = task.result()
        except (ServerLost, BadAnswer) as error:
            self.lose(server, str(error))
            return
        except asyncio.CancelledError:
            return
        running = {draft for draft, _ in self.running.values()}
        for draft, (requests, tokens) in known.items():
            if draft not in self.work[server] or draft.requests != requests:
                continue  # taken back meanwhile, and perhaps begun again
            draft.confirm(tokens)
            if draft in running or draft.confirmed < len(draft.tokens):
                continue
            del self.work[server][draft]
            if draft.done:
                self._complete(draft)

    async def _settled(self) -> None:
        began, patience = perf_counter(), min(SETTLE_S, self.engine.options.timeout_s)
        broken: set[asyncio.Task] = set()
        while self.running:
            waited = perf_counter() - began
            unheard = waited > UNHEARD_S
            for task, (draft, _) in self.running.items():
                if task not in broken and (waited > patience or (unheard and len(draft.tokens) == draft.asked)):
                    task.cancel()
                    broken.add(task)
            self._changed.set()
            await asyncio.sleep(0.005)
        while self._confirming:  # those that were asked before the last token
            await asyncio.sleep(0.005)
        while any(drafts and not server.fault for server, drafts in self.work.items()):
            self._confirm()
            self._changed.set()
            await asyncio.sleep(0.005)
        for server, drafts in self.work.items():  # of a server that was lost
            for draft in list(drafts):
                self._take_back(draft, server)

    def _share_out(self) -> None:
        """Hand responses of a server that is much slower than another on to that, where nothing else waits for it. Not
        those whose last token is there: what is not confirmed of them yet would be sampled again."""
        advice = self._balance.compare(self.running, list(self.keepers.values()), self._share())
        if self._waiting or advice is None:
            return
        servers, most, reason = advice
        theirs = [
            (self._order[draft], task)
            for task, (draft, server) in self.running.items()
            if server in servers and not draft.whole(self.stop_ids)
        ]
        for _, task in sorted(theirs, key=lambda item: item[0])[:most]:
            draft, server = self.running[task]
            self.retries[f"{server.url}: {reason}"] += 1
            self._moved[draft] = server
            task.cancel()
