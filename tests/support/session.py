"""What is made once for a whole session of pytest, whose tests may run in several processes."""

import fcntl
import os
import pickle
from collections.abc import Callable
from typing import TypeVar

import pytest

Value = TypeVar("Value")


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[], Value]) -> Value:
    """What `make` returns. Of the processes of a session the first to ask makes it; the others wait, and read what it
    left in the session's temporary folder."""
    base = factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    kept = folder / f"{name}.pickle"
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if not kept.exists():
            part = kept.with_suffix(".part")
            part.write_bytes(pickle.dumps(make()))
            part.rename(kept)
    return pickle.loads(kept.read_bytes())
