"""Saving while training goes on: the step waits for a copy to host memory, a thread does the rest."""

import contextlib
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist

from siri.errors import InputError, first_line
from siri.model.policy import Policy
from siri.runtime.ranks import ALONE, PATIENCE, Arrays, Ranks
from siri.store import checkpoint, files
from siri.store.checkpoint import OPTIMIZER, PENDING, STATE, WEIGHTS
from siri.store.shards import SHARD_FILE, Piece, moments_of, weights_of, write_arrays, write_pieces

MAX_FAILURES = 3
"""So many saves that fail one after the other end the run."""


class Saver:
    """Writes the checkpoints of a run, one at a time, in the background. Every rank has one and makes the same calls.

    The files get their place by one rename when all of them are on the disk, so a save that fails, or is killed,
    leaves the older checkpoints as they were. What fails is told by `failure`, for the next step to report. Ranks that
    bring a process group (some of torchrun's) have no collectives of theirs while a save is under way.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        keep_every: int = 0,
        ranks: Ranks = ALONE,
        record: Path | None = None,
        beside: Mapping[str, bytes] = MappingProxyType({}),
    ):
        """record: a file that says after how many steps the newest save was made. beside: further files of each
        checkpoint, by their names."""
        self.beside = beside
        self.folder, self.keep, self.keep_every, self.ranks, self.record = folder, keep, keep_every, ranks, record
        self.failures = 0
        """How many saves in a row have failed."""
        self._thread: threading.Thread | None = None
        self._error = self._warning = ""
        self._buffers: dict[str, torch.Tensor] = {}
        self._about: dict[str, bytes] = {}
        self._group = self._connect()
        self._broken = False
        """Whether a collective of this rank's thread has failed."""

    def save(
        self,
        done: int,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        *,
        name: str | None = None,
        pending: Arrays | None = None,
    ) -> Path:
        """Start to write `step_NNNNNN` after `done` steps, and a link `name` to it; waits for the save before, and for
        the copy. `state` is JSON data of the caller's. pending: rollouts that are sampled ahead, on rank 0."""
        self._join()
        if any(self.ranks.gather(self._broken)):  # a connection that has failed once is of no more use
            self._group, self._broken = self._connect(), False
        weights = self._copied(WEIGHTS, weights_of(policy))
        moments = self._copied(OPTIMIZER, moments_of(policy, optimizer))
        if policy.device.type == "cuda":
            torch.cuda.synchronize(policy.device)
        final = self.folder / f"step_{done:06d}"
        if self.ranks.main and not self._about:
            self._about = {
                **checkpoint.about_model(policy),
                **self.beside,
            }  # here: a tokenizer does not like two threads at once
        about = {**self._about, STATE: json.dumps({"steps_done": done, "name": name, **state}, indent=1).encode()}
        self._error = "it was cut short"
        arguments = (final, weights, moments, about, name, pending)
        # no daemon: the interpreter waits for it however it ends. A thread that the end catches in the middle of a
        # collective aborts the process; a second signal ends it without the interpreter's doing
        self._thread = threading.Thread(target=self._work, args=arguments, name="saver")
        self._thread.start()
        return final

    def outcome(self) -> str:
        """Wait for the save that is under way; why it failed, on every rank, or ""."""
        self._join()
        return self.ranks.broadcast(self._error)

    def wait(self) -> None:
        """Wait for the save that is under way; InputError, on every rank, if it fails."""
        if message := self.outcome():
            raise InputError(f"{self.folder}: the last checkpoint could not be saved ({message}); {self._way_out()}")

    def forget(self) -> None:
        """Hand the memory of the copies back."""
        self._join()
        self._buffers = {}

    def failure(self) -> tuple[str, int]:
        """Why the last save failed, told once, and how many have failed in a row; "" and 0 while one is under way. The
        ranks may differ for a moment in what is under way: rank 0 counts."""
        if self._thread is not None and self._thread.is_alive():
            return "", 0
        message, self._error = self._error, ""
        return message, self.failures if message else 0

    def also(self, done: int, name: str) -> None:
        """Give the checkpoint after `done` steps, which is there or under way, a further name. A failure is told by
        `warning`."""
        message = self.outcome()
        if not message and self.ranks.main:
            try:
                checkpoint.give_name(self.folder / f"step_{done:06d}", name)
            except OSError as error:
                message = _cause(error)
        if message:
            self.warn(f"no checkpoint is called {name}: {message}")

    def warning(self) -> str:
        """What went wrong beside a save that was made, told once."""
        message, self._warning = self._warning, ""
        return message

    def warn(self, message: str) -> None:
        """Add a line to what `warning` will tell."""
        self._warning = f"{self._warning}; {message}" if self._warning else message

    def give_up(self, message: str) -> None:
        """The end of a run that cannot save."""
        raise InputError(f"{self.folder}: {MAX_FAILURES} saves in a row failed ({message}); {self._way_out()}")

    def _way_out(self) -> str:
        try:
            saved = checkpoint.checkpoints(self.folder)
            newest = f"{saved[-1].name} is there" if saved else "none is there"
        except InputError:
            newest = "whether one is there cannot be seen"
        return f"{newest}; make room or make the folder writable, then --resume"

    def _connect(self) -> Any:
        """The process group of the threads: the main thread's collectives go on meanwhile, so they need one of their
        own. Every rank calls it."""
        if self.ranks.size == 1:
            return None
        return self.ranks.group or dist.new_group(backend="gloo", timeout=PATIENCE)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _copied(self, kind: str, pieces: dict[str, Piece]) -> dict[str, Piece]:
        copies = {}
        for name, piece in pieces.items():
            key = f"{kind}/{name}"
            buffer = self._buffers.get(key)
            if buffer is None or buffer.shape != piece.local.shape:
                pinned = piece.local.device.type == "cuda"
                buffer = torch.empty(piece.local.shape, dtype=piece.local.dtype, pin_memory=pinned)
                self._buffers[key] = buffer
            copies[name] = Piece(buffer.copy_(piece.local, non_blocking=True), piece.whole, piece.offsets)
        return copies

    def _work(
        self,
        final: Path,
        weights: dict[str, Piece],
        moments: dict[str, Piece],
        about: dict[str, bytes],
        name: str | None,
        pending: Arrays | None,
    ) -> None:
        """The thread. Every stage ends with all ranks knowing whether all came through it, so that none is left waiting
        in a collective for one that failed."""
        part = final.parent / f".{final.name}.part"
        listing: dict[str, Any] = {}

        def prepare() -> None:
            if self.ranks.main:
                checkpoint.remove(part)
                files.make_folder(part)
                for path, data in about.items():
                    files.make_folder((part / path).parent)
                    files.append(part / path, data, fsync=False)
                if pending is not None:
                    write_arrays(part / PENDING, pending)

        def write() -> None:
            for kind, pieces in ((WEIGHTS, weights), (OPTIMIZER, moments)):
                write_pieces(part / kind, pieces, group=self._group, alone=self.ranks.size == 1)

        def describe() -> dict[str, Any]:
            shard_name = SHARD_FILE.format(self.ranks.rank + 1)
            mine = [
                path
                for path in checkpoint.files_in(part)
                if ("/" not in path and self.ranks.main) or shard_name in path
            ]
            return {path: checkpoint.describe(part, path) for path in mine}

        def publish() -> None:
            if self.ranks.main:
                checkpoint.finish(part, final, listing, name)
                self._tidy(final)

        error = ""
        try:
            for stage in (prepare, write, describe, publish):
                outcomes, error = self._stage(stage)
                if error:
                    break
                for entries in outcomes:
                    listing |= entries or {}
        except BaseException as fault:  # of a collective: a rank is gone, or too late for this one
            error, self._broken = _cause(fault), True
        self.failures = self.failures + 1 if error else 0
        self._error = error
        if error and self.ranks.main:
            with contextlib.suppress(OSError):
                checkpoint.remove(part)

    def _tidy(self, final: Path) -> None:
        """What follows a save. Its failure does not undo the save."""

        def note() -> None:
            if self.record is not None:
                files.write_atomic(self.record, json.dumps({"step": checkpoint.steps_done(final)}).encode())

        def clear() -> None:
            checkpoint.prune(final.parent, self.keep, self.keep_every)

        record = self.record.name if self.record else ""
        for act, what in (
            (note, f"{record} could not be written"),
            (clear, "older checkpoints could not be cleared away"),
        ):
            try:
                act()
            except (OSError, InputError) as error:
                self.warn(f"{what} ({_cause(error)})")

    def _stage(self, stage: Callable[[], Any]) -> tuple[list[Any], str]:
        value, error = None, ""
        try:
            value = stage()
        except BaseException as fault:  # whatever it is, the other ranks must hear of it
            error = _cause(fault)
        if self.ranks.size == 1:
            return [value], error
        outcomes: list[Any] = [None] * self.ranks.size
        dist.all_gather_object(outcomes, (value, error), group=self._group)
        return [value for value, _ in outcomes], next((error for _, error in outcomes if error), "")


def _cause(fault: BaseException) -> str:
    """What DCP's exception is about: it holds those of all ranks."""
    failures = getattr(fault, "failures", None)
    if failures:
        fault = next(iter(failures.values()))[0]
    return getattr(fault, "strerror", None) or first_line(fault)
