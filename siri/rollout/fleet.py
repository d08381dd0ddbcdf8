"""The served mode: rollouts from `vllm serve` processes that may be lost, one after the other or all at once.

A server is used only while it holds the weights of the last sync. One that is lost is waited for while others take over
its responses; once it is back it is checked like a new one and given the weights again. Each response belongs to a job
that is done once: what a lost server may have sampled is thrown away and sampled again with the same seed.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch

from siri.errors import InputError
from siri.model.policy import Policy
from siri.rollout import Completion, Done, Progress
from siri.rollout.answers import read_held
from siri.rollout.checksums import differing
from siri.rollout.dispatch import BadAnswer, Dispatch, ServerLost
from siri.rollout.flight import Flight
from siri.rollout.nccl import NcclTransfer
from siri.rollout.served import LAUNCH, Server, ServerApi
from siri.rollout.transfer import FileTransfer
from siri.rollout.vllm import Job, Ran, VllmOptions, check_version, installed
from siri.runtime.ranks import ALONE, Ranks

log = logging.getLogger("siri.rollout")


class ServedEngine(ServerApi):
    """A backend of `siri.rollout.vllm.VllmRollout`: servers that all ranks share."""

    def __init__(self, options: VllmOptions, policy: Policy, *, ranks: Ranks = ALONE) -> None:
        """Check every server; InputError for one that is not there, serves another model, or would bias log-probs."""
        super().__init__(options, policy, ranks)
        self.servers = [Server(url) for url in options.servers]
        self.version: str | None = None
        self.retries: Counter[str] = Counter()
        self.answers = False
        """Whether `ask` is under way."""

        async def check_all(session: Any) -> list[Any]:
            checks = (self.check(session, server) for server in self.servers)
            return await asyncio.gather(*checks, return_exceptions=True)

        for server, fault in zip(self.servers, self.do(check_all), strict=True):
            if isinstance(fault, (ServerLost, BadAnswer)):
                raise InputError(f"rollout server {server.url}: {fault}; start it with {LAUNCH}")
            if fault is not None:
                raise fault
        if len(dtypes := {server.dtype for server in self.servers}) > 1:
            raise InputError(f"the rollout servers compute in different types ({', '.join(sorted(dtypes))}); use one")
        self.dtype = getattr(torch, dtypes.pop())
        self.cache_tokens = sum(server.cache_tokens for server in self.servers) // ranks.size
        self.most = max(1, sum(server.most for server in self.servers) // ranks.size)
        ready = policy.device.type == "cuda" and all(server.weight_transfer == "nccl" for server in self.servers)
        if options.sync == "nccl" and not ready:
            raise InputError(
                "rollout_sync is nccl, which needs a trainer on GPUs and servers started with "
                """--weight-transfer-config '{"backend": "nccl"}'; use --rollout-sync files"""
            )
        if options.sync == "nccl":
            check_version(installed())  # of the sending side
        use = options.sync == "nccl" or (options.sync == "auto" and ready and installed() is not None)
        self.nccl = NcclTransfer(self, policy) if use else None
        if self.nccl is None and options.sync_dir is None:
            raise InputError("the servers take weights from files; name a folder they see with --rollout-sync-dir")
        self.files = FileTransfer(options.sync_dir) if options.sync_dir else None
        how = "NCCL" if self.nccl else f"files in {options.sync_dir}, which the servers have to see"
        self.notes = [f"rollout: {len(self.servers)} vLLM servers; weights travel over {how}"]

    # --- sampling ---

    def ask(
        self,
        jobs: Sequence[Job],
        *,
        temperature: float,
        limit: int,
        progress: Progress | None = None,
        check: Callable[[], None] = lambda: None,
        done: Done | None = None,
    ) -> Ran:
        """Answer the jobs, in their order as far as servers are free, at most `limit` at once."""
        self.retries.clear()

        async def work(session: Any) -> Ran:
            options = {"progress": progress, "check": check, "told": done}
            return await Dispatch(self, session, jobs, temperature, limit, **options).run(self.servers)

        self.answers = True
        try:
            return self.do(work)
        finally:
            self.answers = False

    def probe(self, jobs: Sequence[Job], temperature: float) -> list[tuple[str, list[Completion]]]:
        """Answers of each server for a fingerprint; rank 0 asks for all ranks."""
        if not self.ranks.main:
            return []
        asked = [server for server in self.servers if not server.fault]

        async def work(session: Any) -> list[Ran]:
            dispatches = [Dispatch(self, session, jobs, temperature, len(jobs)) for _ in asked]
            return await asyncio.gather(
                *(dispatch.run([server]) for dispatch, server in zip(dispatches, asked, strict=True))
            )

        return [(f"server {server.url}", ran.completions) for server, ran in zip(asked, self.do(work), strict=True)]

    # --- weights ---

    def offer(self, weights: Iterator[tuple[str, torch.Tensor]], version: str) -> None:
        """Write the files from which servers take the weights, while they still sample."""
        if self.nccl:
            return
        if self.ranks.main:
            self._folder.write(weights, version)
        else:
            self._folder.expect(weights, version)  # rank 0 needs this rank's shards

    def load(self, weights: Iterator[tuple[str, torch.Tensor]], version: str) -> None:
        """Give every server that answers the weights; one that is lost on the way is left out until it is back."""
        self.version = version
        if self.nccl is None:
            self._folder.turn()
        if self.ranks.main:
            self.do(self._find)
        if self.nccl:
            self.nccl.send(weights, version)
        elif self.ranks.main:
            self.do(lambda session: self._give(session))
        if self.ranks.main and all(server.fault for server in self.servers):
            raise InputError(f"weight {version} reached no rollout server: {self._faults()}")

    def fly(self, temperature: float, stop_ids: tuple[int, ...], places: Callable[[int, int], int]) -> Flight:
        """Responses of this rank that are sampled while the trainer trains. places: how many at once, for the longest
        prompt and cap."""
        return Flight(self, temperature, stop_ids, places)

    def pause(self) -> None:
        """End what runs on the servers, for all ranks; one that does not answer is lost."""
        self._each(self.pause_server)

    def resume(self) -> None:
        """Let the servers that were paused go on."""
        self._each(self.resume_server)

    def _each(self, act: Callable[[Any, Server], Any]) -> None:
        async def at(session: Any, server: Server) -> None:
            try:
                await act(session, server)
            except (ServerLost, BadAnswer) as error:
                self.lose(server, f"weight sync interrupted: {error}")

        async def work(session: Any) -> list[Any]:
            used = [server for server in self.servers if not server.fault]
            return await asyncio.gather(*(at(session, server) for server in used), return_exceptions=True)

        if self.ranks.main:
            for fault in filter(None, self.do(work)):
                raise fault

    @property
    def _folder(self) -> FileTransfer:
        assert self.files is not None  # as wherever NCCL does not carry the weights
        return self.files

    async def _find(self, session: Any) -> None:
        """Look for the servers that were lost before."""
        for server in [server for server in self.servers if server.fault]:
            with suppress(ServerLost, BadAnswer):
                await self.check(session, server)
                server.fault = ""

    async def _give(self, session: Any) -> None:
        async def to(server: Server) -> None:
            for last in (False, True):
                try:
                    return await self.take_files(session, server)
                except (ServerLost, BadAnswer) as error:
                    if last:
                        self.lose(server, f"weight sync interrupted: {error}")

        await asyncio.gather(*(to(server) for server in self.servers if not server.fault))

    async def take_files(self, session: Any, server: Server) -> None:
        """Have one server load the files of the last sync, and compare checksums."""
        held = read_held(
            await self.rpc(session, server, "siri_load", str(self._folder.folder), timeout=self.options.sync_timeout_s)
        )
        for there in held:
            if there.get("unseen"):
                raise InputError(
                    f"rollout server {server.url} does not see {self._folder.folder}; name a folder that trainer and "
                    "servers see with --rollout-sync-dir"
                )
            if there["damaged"]:
                raise InputError(
                    f"weight {self.version}: tensor {there['damaged'][0]} reached {server.url} damaged; see "
                    f"{self._folder.folder}"
                )
        await self.settle(session, server, held, self._folder.sums)

    async def settle(self, session: Any, server: Server, held: list[Any], sent: dict[str, list[int]]) -> None:
        """Compare what the server holds with what was sent, clear its prefix cache, and only then name the weights:
        a server that is lost on the way is given all of it again before it samples."""
        if names := differing(sent, held):
            raise InputError(f"weight {self.version}: {server.url} does not hold what was sent: {', '.join(names[:3])}")
        await self.clear_cache(session, server)
        await self.rpc(session, server, "siri_mark", self.version or "", timeout=self.options.sync_timeout_s)

    # --- servers ---

    def lose(self, server: Server, reason: str) -> None:
        """Stop using a server."""
        server.fault = reason
        if self.nccl:
            self.nccl.forget()
        log.warning("rollout server %s lost: %s", server.url, reason)

    def _faults(self) -> str:
        return "; ".join(f"{server.url}: {server.fault}" for server in self.servers if server.fault)

    async def admit(self, session: Any, server: Server) -> None:
        """Make sure that a server holds the weights of the last sync; if it does not, give it the files again."""
        server.process = await self.process(session, server)  # first: if it is another one by now, that is noticed
        held = await self.held(session, server)
        if held == self.version:
            return
        if self.nccl:
            raise ServerLost(f"it holds the weights {held} and not {self.version}; it has to wait for the next sync")
        await self.take_files(session, server)

    async def revive(self, session: Any, server: Server) -> None:
        """Wait for a lost server, check it as if it were new, and give it the weights."""
        pause = 0.2
        while True:
            await asyncio.sleep(pause)
            try:
                await self.check(session, server)
                return await self.admit(session, server)
            except (ServerLost, BadAnswer) as error:
                server.fault = str(error)
                pause = min(2 * pause, 5.0)

    def sleep(self) -> None:
        """Nothing: servers have GPUs of their own."""

    def wake(self) -> None:
        """Nothing."""

    def metrics(self) -> dict[str, float]:
        """Servers in use, and what had to be done again in the last rollout."""
        used = sum(not server.fault for server in self.servers)
        return {"rollout_servers_used": used, "rollout_retries": self.retries.total()}

    def close(self) -> None:
        """Remove the files of the last sync; the servers stay."""
        if self.files and self.ranks.main:
            self.files.close()
