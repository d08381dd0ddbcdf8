"""What a rank holds of each tensor, as torch's distributed checkpoint (DCP) wants to know it.

DCP writes safetensors with one file a rank and reads them back under any other sharding. Its storage for safetensors
takes tensors only, and its own copies of DTensors stay on their device; a `Piece` is therefore plain: the local part,
where it starts, and the size of the whole. The methods with underscores are DCP's protocol (`_Checkpointable`), and
the planners look a piece's tensor up.
"""

import json
import math
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from siri.errors import InputError, first_line
from siri.model.adapters import trained_parameters
from siri.model.fsdp import is_sharded
from siri.model.offload import MOMENTS, HostAdamW
from siri.model.policy import Policy
from siri.model.weight_files import places

SHARD_FILE = "shard-{:05d}-model-00001-of-00001.safetensors"
"""A rank's file, as DCP names it."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A rank's part of a tensor; the whole of it where nothing is sharded."""

    local: torch.Tensor
    whole: torch.Size
    """Size of the whole."""
    offsets: torch.Size

    def size(self) -> torch.Size:
        return self.whole

    def __create_chunk_list__(self) -> list[Any]:
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

        return [ChunkStorageMetadata(self.offsets, self.local.size())] if self._holds_something else []

    def __create_write_items__(self, name: str, _: Any) -> list[Any]:
        from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
        from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

        properties = TensorProperties.create_from_tensor(self.local)
        return [
            WriteItem(
                index=MetadataIndex(name, self.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.whole),
            )
            for chunk in self.__create_chunk_list__()
        ]

    @property
    def _holds_something(self) -> bool:
        return self.local.numel() > 0


def piece_of(tensor: torch.Tensor, like: torch.Tensor | None = None) -> Piece:
    """The piece that this rank holds of a tensor, sharded (DTensor) or not. `like` is sharded as the tensor would be,
    where the tensor is a rank's local part by itself."""
    whole = tensor if like is None or is_sharded(tensor) else like
    local = tensor.detach()
    if not is_sharded(whole):
        return Piece(local, local.size(), torch.Size([0] * local.ndim))
    (chunk,) = whole.__create_chunk_list__()
    return Piece(local.to_local() if is_sharded(local) else local, whole.size(), torch.Size(chunk.offsets))


def weights_of(policy: Policy) -> dict[str, Piece]:
    """What is trained, by its names in files: the model's parameters, tied ones once, or an adapter."""
    return {name: piece_of(parameter) for name, parameter in trained_parameters(policy.model)}


def moments_of(policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, Piece]:
    """AdamW's state as NAME.exp_avg, NAME.exp_avg_sq and NAME.step, for the parameters that have one."""
    return {
        f"{name}.{key}": piece_of(value, parameter if key in MOMENTS else None)
        for name, parameter in trained_parameters(policy.model)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def make_moments(policy: Policy, optimizer: torch.optim.Optimizer, known: set[str]) -> None:
    """Room for the state of the parameters of which `known` holds some, to be read into."""
    for name, parameter in trained_parameters(policy.model):
        if f"{name}.step" not in known:
            optimizer.state.pop(parameter, None)
            continue
        if isinstance(optimizer, HostAdamW):
            local = parameter.to_local() if is_sharded(parameter) else parameter
            moments = {key: torch.zeros_like(local, device="cpu") for key in MOMENTS}
        else:
            moments = {key: torch.zeros_like(parameter) for key in MOMENTS}
        optimizer.state[parameter] = {"step": torch.tensor(0.0), **moments}


def write_pieces(folder: Path, pieces: dict[str, Piece], *, group: Any, alone: bool) -> None:
    """Every rank of the process group writes what it holds to a safetensors file in `folder`."""
    from torch.distributed import checkpoint as dcp

    if not pieces:
        return
    _hush()
    writer = _writer(folder)
    dcp.save(pieces, storage_writer=writer, planner=_planner(saving=True), process_group=group, no_dist=alone)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as one safetensors file. OSError where it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    except SafetensorError as error:
        raise _os_error(error) from None


def _os_error(error: Exception) -> Exception:
    """The system's error that safetensors' is about, a full disk, say; the error itself where there is none."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else error


def _writer(folder: Path) -> Any:
    """DCP's writer of safetensors, but for how a rank's file is written. DCP's own makes one string of bytes of it and
    holds Python's lock meanwhile, seconds for every GiB, so that a save in the background stops the step."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file
    from torch.distributed import checkpoint as dcp
    from torch.futures import Future

    class Writer(dcp.HuggingFaceStorageWriter):
        def write_data(self, plan: Any, planner: Any) -> Any:
            tensors = {item.index.fqn: planner.resolve_data(item).contiguous() for item in plan.items}
            offsets = {item.index.fqn: {"saved_offsets": item.tensor_data.chunk.offsets} for item in plan.items}
            if tensors:
                about = {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0", "format": "pt"}
                try:
                    save_file(tensors, folder / SHARD_FILE.format(plan.storage_data["shard_index"]), metadata=about)
                except SafetensorError as error:
                    raise _os_error(error) from None
            done: Any = Future()
            done.set_result([])  # what a file of its own per rank needs no index of
            return done

    return Writer(str(folder), save_distributed=True)


def read_pieces(folder: Path, pieces: dict[str, Piece]) -> None:
    """Fill the pieces from the files in `folder`, whoever wrote them. Each rank reads for itself what it holds."""
    from torch.distributed import checkpoint as dcp

    if not pieces:
        return
    _hush()
    try:
        reader = dcp.HuggingFaceStorageReader(str(folder))
        dcp.load(pieces, storage_reader=reader, planner=_planner(saving=False), no_dist=True)
    except (Exception, dcp.CheckpointException) as error:  # what is in the files may be anything
        failures = getattr(error, "failures", None)  # DCP's own is no Exception, and holds those of its parts
        cause = next(iter(failures.values()))[0] if failures else error
        raise InputError(f"{folder}: its tensors cannot be read into this model ({first_line(cause)})") from None


def read_whole(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors in `folder`, each in one piece, on the CPU."""
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    if not folder.is_dir():
        return {}
    room = sum(path.stat().st_size for path in folder.iterdir())
    try:
        known = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        held = {name: entry for name, entry in known.items() if isinstance(entry, TensorStorageMetadata)}
        if sum(math.prod(entry.size) * entry.properties.dtype.itemsize for entry in held.values()) > room:
            raise ValueError("it says that its tensors are larger than its files")
        tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in held.items()}
    except Exception as error:
        raise InputError(f"{folder}: holds no tensors that can be read ({first_line(error)})") from None
    read_pieces(folder, {name: piece_of(tensor) for name, tensor in tensors.items()})
    return tensors


def names_in(folder: Path) -> set[str]:
    """Names of the tensors in `folder`."""
    return set(places(folder.glob("*.safetensors")))


def _planner(*, saving: bool) -> Any:
    from torch.distributed import checkpoint as dcp

    # as DCP's own, but for pieces: its set-up looks for tensors to flatten and to copy
    class SavePlanner(dcp.DefaultSavePlanner):
        def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
            self.state_dict, self.is_coordinator = state_dict, is_coordinator

        def lookup_object(self, index: Any) -> torch.Tensor:
            return self.state_dict[index.fqn].local

    class LoadPlanner(dcp.DefaultLoadPlanner):
        def set_up_planner(self, state_dict: Any, metadata: Any = None, is_coordinator: bool = False) -> None:
            self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

        def lookup_tensor(self, index: Any) -> torch.Tensor:
            return self.state_dict[index.fqn].local

    if saving:
        return SavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    return LoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)


def _hush() -> None:
    # DCP says so on every call of a process by itself, which is what we ask for
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
