"""CPU threads of a process: how many there are, and how they wait for one another. Nothing else decides that.

torch cuts an operator on a CPU into parts, one a thread, and each thread waits for the slowest. OpenMP's threads wait
in a spin. Where another process has one of the cores, the thread that should work has none while the others spin on
theirs, and an operator of microseconds takes as long as the scheduler lets them. So waiting is passive, and small work,
for which a second thread gains little or nothing, has one thread.
"""

import os
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Literal

from siri.errors import InputError

if TYPE_CHECKING:
    import torch

    from siri.runtime.ranks import Ranks

SMALL = 4_000_000
"""Parameters up to which a model on a CPU has one thread."""
MOST = 1024
"""Most threads that may be asked for; OpenMP ends the process when it cannot start as many."""


def wait_passively(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP's threads sleep while they wait, unless the user has said how they are to wait.

    libgomp (in torch's builds for Linux) and LLVM's libomp read this once, when torch is imported: call it before.
    """
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def helper_environment() -> dict[str, str]:
    """The environment of a process beside others, such as a grader: one thread unless OMP_NUM_THREADS is set."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    wait_passively(environment)
    return environment


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_threads(
    setting: int | Literal["auto"],
    *,
    parameters: int,
    device: str,
    environment: Mapping[str, str] = os.environ,
) -> int:
    """CPU threads of a process whose model of `parameters` is on a device of type `device`.

    A number is taken as it is. auto is OMP_NUM_THREADS where it is set (as torchrun does, to 1, for more than one
    process); else 1 where little is computed on the CPU, on a GPU or with at most SMALL parameters; else the cores,
    shared among the ranks on this machine. InputError where OMP_NUM_THREADS is no number of threads.
    """
    if setting != "auto":
        return setting
    if said := environment.get("OMP_NUM_THREADS"):
        first = said.split(",")[0].strip()  # the others are for nested regions, of which there are none
        if not (first.isascii() and first.isdecimal() and 1 <= int(first) <= MOST):
            raise InputError(f"OMP_NUM_THREADS is {said!r}; set it to a number from 1 to {MOST}, or unset it")
        return int(first)
    if device != "cpu" or parameters <= SMALL:
        return 1
    return max(1, cores() // int(environment.get("LOCAL_WORLD_SIZE", "1")))


def use_threads(
    setting: int | Literal["auto"], model: "torch.nn.Module", device: "torch.device", ranks: "Ranks | None" = None
) -> int:
    """Compute with the threads that `choose_threads` gives for a model, on all ranks with as many as the rank with the
    fewest (a collective), so that machines of different size do not matter; how many that is."""
    import torch

    parameters = sum(parameter.numel() for parameter in model.parameters())
    threads = choose_threads(setting, parameters=parameters, device=device.type)
    if ranks is not None:
        threads = min(ranks.gather(threads))
    torch.set_num_threads(threads)
    return threads
