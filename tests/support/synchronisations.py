"""What would make the host wait for a GPU, seen without one."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

SYNCHRONISE = ("_local_scalar_dense", "nonzero", "masked_select", "equal.default", "unique", "is_nonzero")


class Synchronisations(TorchDispatchMode):
    """Lists in `operators` those, run within it, that would make a GPU's host wait."""

    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        by_mask = "aten.index" in name and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool
            for a in args
            if isinstance(a, list | tuple)
            for i in a
        )
        if by_mask or any(part in name for part in SYNCHRONISE):
            self.operators.append(name)
        return function(*args, **(kwargs or {}))
