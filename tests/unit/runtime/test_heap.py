"""Freed memory that is kept comes back without a page fault."""

import subprocess
import sys

import pytest

from siri.runtime.heap import KEPT, MAPPED

FAULTS = """
import resource, torch
from siri.runtime.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(5_000_000)  # 20 MB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
first = faults()
kept = keep_freed_memory()
faults()
print(kept, first, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_a_block_that_was_freed_is_not_cleared_again():
    environment = {"PATH": "", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, env=environment)
    kept, before, after = done.stdout.split()
    assert kept == "True"
    assert int(before) > 100 and int(after) < int(before) / 10, (before, after)  # pages may be of 4 KiB or of 2 MiB
    assert MAPPED < KEPT


def test_other_libraries_are_left_as_they_are(monkeypatch):
    from siri.runtime import heap

    monkeypatch.setattr(sys, "platform", "darwin")
    assert heap.keep_freed_memory() is False
