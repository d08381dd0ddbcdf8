"""Freed memory that is kept comes back without a page fault, and modules are no garbage."""

import gc
import subprocess
import sys

import pytest

from siri.runtime.heap import KEPT, MAPPED, lasting

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


COMMAND = """
import gc
from siri.cli import COMMANDS

runs = []
gc.callbacks.append(lambda phase, _: runs.append(phase))
before = gc.get_freeze_count()
COMMANDS["compare"].load()
frozen = gc.get_freeze_count()
print(len(runs), frozen - before, gc.isenabled())
COMMANDS["compare"].load()
print(gc.get_freeze_count() - frozen)
"""


def test_a_commands_modules_are_not_looked_through_for_garbage():
    done = subprocess.run([sys.executable, "-c", COMMAND], capture_output=True, text=True, check=True)
    (collections, frozen, on), (again,) = (line.split() for line in done.stdout.splitlines())
    assert collections == "0" and int(frozen) > 1000 and on == "True"
    assert again == "0", "what is alive later may be garbage"


def test_a_collector_that_is_off_stays_off():
    gc.disable()
    try:
        with lasting():
            pass
        assert not gc.isenabled()
    finally:
        gc.unfreeze()
        gc.enable()
