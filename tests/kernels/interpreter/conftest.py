"""These tests run the Triton kernels themselves on CPU tensors.

The interpreter is chosen when Triton is imported, so they need a process of their own: `test_interpreter.py`
starts it with TRITON_INTERPRET=1, and a plain collection leaves them out.
"""

import os

import pytest
import torch

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that nobody has written to is NaN, so that a kernel which leaves some of it out cannot pass by chance."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)
