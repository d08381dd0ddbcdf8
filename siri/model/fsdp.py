"""The model sharded over ranks with FSDP2, and its tensors in one piece."""

import types
from typing import TYPE_CHECKING, Any, TypeGuard

import torch

from siri.model.split_head import cut_head
from siri.runtime.ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def shard(model: Any, ranks: Ranks, *, compute_dtype: torch.dtype, vocab_parallel: bool = False) -> None:
    """Shard a transformers model over the ranks in place: each decoder layer by itself, the rest in the root.

    Master weights and the reduction of gradients stay fp32; layers are gathered and computed in `compute_dtype`, in
    which frozen weights are kept, too. With
    vocab_parallel an untied head is not gathered (see `siri.model.split_head`). Afterwards
    `model.run_inside(function, *args)` calls function(model, *args) with the root's parameters gathered.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    # inputs are left as they are: casting would round advantages and log-probs
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for parameter in model.parameters():
        if not parameter.requires_grad:  # nothing is added up in them
            parameter.data = parameter.data.to(compute_dtype)
    for layer in model.model.layers:
        fully_shard(layer, mesh=ranks.mesh, mp_policy=policy)
    ignored = None
    if vocab_parallel:
        ignored = cut_head(model, ranks)
    fully_shard(model, mesh=ranks.mesh, mp_policy=policy, ignored_params=ignored)
    model.run_inside = types.MethodType(lambda self, function, *args: function(self, *args), model)
    register_fsdp_forward_method(model, "run_inside")


def is_sharded(tensor: torch.Tensor) -> TypeGuard["DTensor"]:
    """Whether the tensor is spread over ranks."""
    return hasattr(tensor, "to_local")


def full(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor in one piece, on every rank (a collective); any other tensor as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def fill(target: torch.Tensor, source: torch.Tensor | None) -> None:
    """Copy `source` into `target`. A sharded target (a collective) takes rank 0's source; other ranks may give None."""
    if not is_sharded(target):
        assert source is not None  # it may be lacking where there are other ranks only
        target.copy_(source)
        return
    from torch.distributed.tensor import distribute_tensor

    # where there is nothing to send, room to receive is made on the device, not on the host to be copied there
    room = {"dtype": target.dtype, "device": target.device}
    whole = torch.empty(target.shape, **room) if source is None else source.to(target.device, target.dtype)
    target.copy_(distribute_tensor(whole, target.device_mesh, target.placements))
