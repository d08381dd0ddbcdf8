"""Before the first step and after the last: the memory that is planned, and what is said at the end."""

from contextlib import suppress

import torch

from siri.config import Config
from siri.model.policy import Policy
from siri.planning.memory_plan import Machine, MemoryPlan, memory_plan
from siri.rollout.engines import engine_for
from siri.runtime.ranks import Ranks
from siri.store import checkpoint
from siri.store.run_folder import RunFolder
from siri.train.view import View


def plan_memory(config: Config, policy: Policy, ranks: Ranks, *, quiet: bool) -> MemoryPlan:
    """What a run will need of the memory of these GPUs, printed."""
    from siri.planning.tables import print_plan

    gpu = torch.cuda.get_device_properties(policy.device)
    here = ranks.mesh.shape[-1]
    machine = Machine(ranks.size, gpu.total_memory, here, multiprocessors=gpu.multi_processor_count)
    plan = memory_plan(policy.model.config, config, machine, rollout=engine_for(config, policy.device))
    if not quiet:
        print_plan(plan)
    return plan


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
