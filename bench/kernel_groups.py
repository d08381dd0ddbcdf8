"""Which peers share a process, what each needs to be there, and who is too large for a device's memory."""

from __future__ import annotations

import importlib.util
import re

from kernel_problems import Problem

GROUPS: tuple[tuple[str, ...], ...] = (
    ("eager", "torch.compile", "trl-full", "verl-torch-512", "torch-chunked", "torch.compile-chunked"),
    ("trl-chunked",),
    ("liger-cute", "liger-flsce-torch"),
    ("quack",),
    ("verl-triton",),
    ("cce", "cce-exact"),
    ("liger-native",),
    ("liger-ce-sm90",),
    ("liger-flce", "liger"),
    ("liger-grpo", "liger-grpo-logits"),
    ("liger-cutile",),
    ("trl", "trl-logp-only", "fla-grpo-logits"),
)
"""Each in a process of its own: an illegal access of a kernel destroys the CUDA context of everybody in it"""
NEEDS = {"cce": "cut_cross_entropy", "quack": "quack", "fla": "fla", "trl": "trl", "liger": "liger_kernel"}
"""First word of a peer -> the package it comes from"""
MORE_NEEDS = {"liger-native": "liger_cute_kernels", "liger-cutile": "cuda.tile", "liger-cute": "cutlass"}
MORE_NEEDS |= {"liger-ce-sm90": "cutlass"}
BYTES_PER_LOGIT = {"eager": 15, "trl-full": 15, "torch.compile": 8}
"""Device memory of who holds all logits: in bf16, in fp32 their log-softmax, and beside it two copies more for the
entropy, or in the backward their gradients; compiled, the bf16 logits, their gradient and fp32 copies that do not
fuse"""


def missing(name: str) -> str | None:
    """The package that a peer would need and that is not here."""
    for package in (NEEDS.get(re.split("[-.]", name)[0]), MORE_NEEDS.get(name)):
        if package and not there(package):
            return package
    return None


def there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # of a part of a package that is not there itself
        return False


def too_large(name: str, p: Problem, room: int) -> str | None:
    """In one line why `name` cannot hold this problem's logits in `room` bytes; nobody has to run out of memory."""
    need = BYTES_PER_LOGIT.get(name, 0) * p.hidden.shape[0] * p.weight.shape[0]
    if need <= room:
        return None
    shape = f"{p.hidden.shape[0]} x {p.weight.shape[0]}"
    return f"holds {shape} logits, about {need / 1e9:.0f} GB, and may take {room / 1e9:.0f}"
