"""Before the first step and after the last: the memory that is planned, and what is said at the end."""

import os
import time
from collections.abc import Callable
from contextlib import suppress

import torch

from siri.config import Config
from siri.model.liger import NOTHING, Applied
from siri.model.policy import Policy
from siri.packing.step_plan import StepPlan
from siri.planning.memory_plan import MemoryPlan, memory_plan, update_peak
from siri.rollout.engines import engine_for
from siri.runtime.ranks import Ranks
from siri.store import checkpoint
from siri.store.run_folder import RunFolder
from siri.train.learner import Learner
from siri.train.setup import machine_of
from siri.train.view import View


def plan_memory(config: Config, policy: Policy, ranks: Ranks, *, quiet: bool, liger: Applied = NOTHING) -> MemoryPlan:
    """What a run will need of the memory of these GPUs, printed."""
    from siri.planning.tables import print_plan

    machine = machine_of(ranks, policy.device)
    options = {"rollout": engine_for(config, policy.device), "liger": liger.sparing}
    plan = memory_plan(policy.model.config, config, machine, **options)
    if not quiet:
        print_plan(plan)
    return plan


def compile_kernels(learner: Learner, note: Callable[[str], None]) -> None:
    """On a GPU: have the head's kernels compiled and tried before the first step, and tell of it before and after, so
    that nobody takes the silence of a compiler for a hang."""
    device = learner.policy.device
    if device.type != "cuda":
        return
    note(f"compiling kernels for {torch.cuda.get_device_name(device)}; Triton keeps them for the next run")
    began = time.perf_counter()
    head = learner.try_head()
    seconds = time.perf_counter() - began
    note(f"the head's kernels ({head}) are there after {seconds:.0f} s; the first step compiles those of the loss")


def memory_figures(
    device: torch.device, policy: Policy, memory: MemoryPlan | None, plan: StepPlan, rank: int
) -> dict[str, int]:
    """For the row of a step: bytes of the GPU that are taken, by whomever, and those that were predicted of the update
    of this plan on a rank; nothing on a CPU."""
    figures = {}
    if device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device)
        figures["gpu_memory"] = whole - free
    if memory:
        peak = update_peak(policy.model.config, memory, plan.largest(rank), several=plan.several)
        figures["memory_predicted"] = peak
    return figures


def idle_gpus(device: torch.device) -> str:
    """A line where this machine shows more GPUs than processes were started on it; "" elsewhere."""
    if device.type != "cuda":
        return ""
    visible, processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if visible <= processes:
        return ""
    return (
        f"warning: {visible} GPUs are visible here and {processes} of them work{'s' * (processes == 1)}; to use all: "
        f"torchrun --nproc-per-node {visible} --no-python siri train ..., or CUDA_VISIBLE_DEVICES to keep them out"
    )


def show_finished(folder: RunFolder, ranks: Ranks, view: View, *, quiet: bool) -> None:
    """The closing table of a run that was finished before, and its report, if a kill came before that."""
    if not ranks.main:
        return
    if not (folder.path / "report.html").exists():
        with suppress(OSError):
            view.write_report(folder.path)
    if not quiet:
        view.print_closing(folder.path)


def blown_up(folder: RunFolder, step: int) -> str:
    """What to do about weights that sample nothing but NaN."""
    names = ", ".join(path.name for path in checkpoint.checkpoints(folder.checkpoints)) or "there is none"
    return (
        f"step {step}: the model's probabilities are not finite, the weights have blown up; lower --lr or --grad-clip "
        f"and start again, or delete the checkpoints after the last good one ({names}) and --resume with --rewind"
    )
