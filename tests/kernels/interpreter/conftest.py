"""These tests run the Triton kernels themselves on CPU tensors.

The interpreter is chosen when Triton is imported, so they need a process of their own: `test_interpreter.py`
starts it with TRITON_INTERPRET=1, and a plain collection leaves them out.
"""

import inspect
import os
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from triton.language.core import is_builtin
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@cache
def builtins_of(package: Any) -> list[str]:
    return [name for name, member in inspect.getmembers(package) if is_builtin(member)]


def patch_builtins(package: Any, *scope: Any) -> None:
    """What the interpreter does at each call of a function, without the search for the names."""
    for name in builtins_of(package):
        member = getattr(package, name)
        if is_builtin(member):  # and not replaced by a function that has called this one
            interpreter._patch_attr(package, name, member, *scope)


if list(inspect.signature(interpreter._patch_builtin).parameters) == ["pkg", "builder", "scope"]:
    interpreter._patch_builtin = patch_builtins


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that nobody has written to is NaN, so that a kernel which leaves some of it out cannot pass by chance."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def exact_dot(builder, a, b, d, input_precision, max_num_imprecise_acc):
    """Products of bf16 and their sums in fp64, where they are exact, or nearly, in any order."""
    products = a.data.astype(np.float64) @ b.data.astype(np.float64)
    return TensorHandle((d.data + products).astype(np.float32), d.dtype.scalar)


@pytest.fixture
def rows_alike(monkeypatch):
    """A row's products do not depend on its place in a tile, as on a tensor core: numpy's BLAS has other code for the
    last rows of a block, which on some processors adds up in another order."""
    monkeypatch.setattr(InterpreterBuilder, "create_dot", exact_dot)
