"""Ranks: one process for each device, started by torchrun."""

import atexit
import gc
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist

from siri.errors import InputError

T = TypeVar("T")
Arrays = dict[str, np.ndarray]
PATIENCE = timedelta(hours=2)
"""Longest wait of a rank for another, which may be sampling long responses or downloading the model; torch's 10 minutes
for NCCL would end such runs. A rank that dies is noticed by its closed connections, and torchrun ends the others."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; the default is a process on its own."""

    rank: int = 0
    size: int = 1
    mesh: Any = None
    """Device mesh over which the model is sharded; None for a lone process on a CPU."""
    group: Any = None
    """Process group of these ranks; None = all of torchrun's."""

    @property
    def sharded(self) -> bool:
        """Whether the model is sharded with FSDP2: always on GPUs, so that one GPU and many take the same path."""
        return self.mesh is not None

    @property
    def main(self) -> bool:
        """The rank that plans, logs and writes."""
        return self.rank == 0

    @property
    def seed_path(self) -> tuple[int, ...]:
        """What makes a rank's random numbers its own; rank 0 draws what a process on its own would."""
        return (self.rank,) if self.rank else ()

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's value in order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def broadcast_arrays(self, arrays: Arrays | None) -> Arrays:
        """Rank 0's arrays, on every rank; the others may give None. Bits, dtypes and shapes stay as they are."""
        held = cast(Arrays, arrays)  # None on other ranks than 0 only, where it is not looked at
        if self.size == 1:
            return held
        data = to_bytes(held) if self.main else None
        size = torch.tensor([0 if data is None else len(data)], device=self._device)
        dist.broadcast(size, group=self.group, group_src=0)
        data = torch.empty(int(size), dtype=torch.uint8, device=self._device) if data is None else data.to(self._device)
        dist.broadcast(data, group=self.group, group_src=0)
        return held if self.main else from_bytes(data)

    def gather_arrays(self, arrays: Arrays) -> list[Arrays]:
        """Every rank's arrays in order, on every rank; they may differ in length. Nothing is pickled."""
        if self.size == 1:
            return [arrays]
        data = to_bytes(arrays).to(self._device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=self._device) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(data)], device=self._device), group=self.group)
        sizes = torch.cat(sizes).tolist()
        padded = data.new_zeros(max(sizes))
        padded[: len(data)] = data
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self.group)
        return [from_bytes(part[:size]) for part, size in zip(parts, sizes, strict=True)]

    @property
    def _device(self) -> torch.device:
        """Where its process group sends from."""
        if self.mesh is None or self.mesh.device_type == "cpu":
            return torch.device("cpu")
        return torch.device(self.mesh.device_type, torch.cuda.current_device())

    def on_main(self, function: Callable[[], T]) -> T:
        """What the function returns on rank 0, on every rank; its InputError is everybody's."""
        outcome: tuple[Any, InputError | None] = (None, None)
        if self.main:
            try:
                outcome = (function(), None)
            except InputError as error:
                outcome = (None, error)
        value, error = self.broadcast(outcome)
        if error is not None:
            error.everybody = True
            raise error
        return cast(T, value)

    def together(self, function: Callable[[], T]) -> T:
        """What the function returns on this rank; the first InputError of any is everybody's, but for one that leaves
        a collective behind, after which there can be no other."""
        outcome, error = None, None
        try:
            outcome = function()
        except InputError as fault:
            if fault.stuck:
                raise
            error = fault
        error = next((fault for fault in self.gather(error) if fault is not None), None)
        if error is not None:
            error.everybody = True
            raise error
        return cast(T, outcome)

    def arrive(self) -> Callable[[], bool]:
        """This rank is there. Returns what says whether all are by now, for who has to hear of other things meanwhile,
        as nobody does in a collective. RuntimeError where a rank was lost."""
        if self.size == 1:
            return lambda: True
        work = cast(Any, dist.all_reduce(torch.zeros(1, device=self._device), group=self.group, async_op=True))

        def all_there() -> bool:
            if there := work.is_completed():
                work.wait()
            return there

        return all_there

    def tell(self, word: str) -> None:
        """Leave a word for the other ranks, who look for it when they like: no collective."""
        if self.size > 1:
            with suppress(RuntimeError):  # rank 0, which keeps the words, is gone; torchrun ends this rank as well
                _store().set(f"siri/{word}", "told")

    def told(self, word: str) -> bool:
        """Whether any rank has left the word, or whoever keeps the words is gone, who takes all ranks along."""
        try:
            return self.size > 1 and _store().check([f"siri/{word}"])
        except RuntimeError:
            return True

    def share(self, count: int) -> slice:
        """This rank's part of `count` things: consecutive, the parts differing by one at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)


ALONE = Ranks()


def _store() -> Any:
    """The store at which the ranks have met."""
    return dist.distributed_c10d._get_default_store()


def to_bytes(arrays: Arrays) -> torch.Tensor:
    buffer = io.BytesIO()
    # its type would have it that a name might be allow_pickle
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)


def from_bytes(data: torch.Tensor) -> Arrays:
    with np.load(io.BytesIO(data.cpu().numpy().tobytes()), allow_pickle=False) as held:
        return dict(held)


def join_ranks(device: torch.device, *, across_nodes: bool = False) -> tuple[Ranks, torch.device]:
    """Join the other processes that torchrun started (nccl on GPUs, gloo on CPUs); returns this rank and its device.

    On several nodes the model is sharded inside each and replicated across them (HSDP), or sharded over all ranks if
    `across_nodes`. Without torchrun's variables it is one process; on a GPU that is a mesh of one. Raises InputError
    when there are more ranks than GPUs on a machine, or when some of the variables are missing.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 and "RANK" not in os.environ:
        if device.type != "cuda":
            return ALONE, device
        _join("nccl", store=dist.HashStore(), rank=0, world_size=1, timeout=PATIENCE)
        return Ranks(mesh=dist.init_device_mesh("cuda", (1,), mesh_dim_names=("shard",))), device
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise InputError(f"WORLD_SIZE is {size}, but {missing[0]} is not set; start with torchrun, or unset WORLD_SIZE")
    local, here = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cuda":
        if here > torch.cuda.device_count():
            raise InputError(
                f"{here} processes on this machine, but {torch.cuda.device_count()} GPUs; lower --nproc-per-node"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    _join("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    nodes = size // here
    if nodes == 1 or across_nodes:
        mesh = dist.init_device_mesh(device.type, (size,), mesh_dim_names=("shard",))
    else:
        mesh = _mesh_of_nodes(device.type, nodes, here)
    return Ranks(dist.get_rank(), size, mesh), device


def _mesh_of_nodes(kind: str, nodes: int, here: int) -> Any:
    """The mesh (replicate, shard) over the nodes and the ranks of each. Its groups are as patient as that of all ranks,
    of which torch would pass nothing on: 10 minutes for NCCL, 30 for gloo."""
    from torch.distributed.device_mesh import DeviceMesh

    order = np.arange(nodes * here).reshape(nodes, here)
    groups: list[Any] = [
        dist.new_subgroups_by_enumeration(members.tolist(), timeout=PATIENCE)[0] for members in (order.T, order)
    ]
    return DeviceMesh.from_group(groups, kind, torch.from_numpy(order), mesh_dim_names=("replicate", "shard"))


def recorded(function: Callable[[], T]) -> T:
    """function(); under torchrun, what it raises is in the summary that torchrun prints when a rank has failed, with
    its traceback. InputError is not: its one line says all."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return function()
    from torch.distributed.elastic.multiprocessing.errors import record

    def outcome() -> tuple[Any, InputError | None]:
        try:
            return function(), None
        except InputError as error:
            return None, error

    value, error = cast("tuple[T, InputError | None]", record(outcome)())
    if error is not None:
        raise error
    return value


def _join(backend: str, **options: Any) -> None:
    if dist.is_initialized():
        return
    atexit.unregister(_leave_at_exit)
    atexit.register(_leave_at_exit)  # first: also if the others never come
    dist.init_process_group(backend, **options)


def leave_ranks() -> None:
    """Close the connections that `join_ranks` opened, if there are any, and end the threads that served them. For a
    rank that has come through its last collective, as the others have; whoever leaves in another way (an error, bad
    input, Ctrl-C) gives up the connections when the interpreter ends."""
    if dist.is_initialized():
        dist.destroy_process_group()
        _end_threads()


def _leave_at_exit() -> None:
    """Every way out of the interpreter comes by here, while it still runs."""
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):  # the frames of an error hold groups
        sys.__dict__.pop(name, None)
    if dist.is_initialized():
        # not destroyed: that may wait for ranks that do not come any more
        dist.distributed_c10d._abort_process_group()
    _end_threads()


def _end_threads() -> None:
    """Wait for the threads of closed process groups.

    gloo's threads end in the destructor of their group, so when the last reference to it goes. They must not outlive
    the interpreter: one that lets go of the tensors of a collective needs the interpreter's lock, and a thread that
    asks for it after the end is unwound out of a C++ destructor, which aborts the process ("terminate called without an
    active exception"). What DTensor caches holds meshes, and meshes hold groups.
    """
    from torch.distributed.device_mesh import DeviceMesh

    for mesh in [thing for thing in gc.get_objects() if type(thing) is DeviceMesh]:
        getattr(mesh, "_pg_registry", {}).clear()
    gc.collect()
