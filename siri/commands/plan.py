"""`siri plan RECIPE`: GPU memory and GPU-hours that a run needs."""

from dataclasses import dataclass

from siri.config.recipe import RecipeOptions
from siri.config.settings import setting
from siri.planning.formulas import RESERVE
from siri.planning.hours import Rates, run_hours
from siri.planning.memory_plan import Machine, load_model_config, memory_plan
from siri.planning.tables import find_gpu, print_hours, print_plan
from siri.text import say


@dataclass(frozen=True)
class PlanOptions(RecipeOptions):
    """The machines, and what is assumed of them."""

    gpus: int = setting(8, everyday=True)
    """GPUs that train together."""
    gpus_per_node: int = 8
    """GPUs of one machine."""
    gpu: str = setting("h100", everyday=True)
    """h100, h200, a100-40, a100-80, or bytes of memory, such as 80e9."""
    reserve: float = RESERVE
    """Share of the memory kept free."""
    assumed_mfu: float = setting(0.4, above=0, most=1)
    """Share of the GPUs' peak that training is taken to reach, for the GPU-hours."""
    assumed_tokens_per_s: float = setting(0.0, least=0)
    """Response tokens that one GPU is taken to sample in a second; 0 = from its memory's bandwidth."""


def run_plan(options: PlanOptions) -> int:
    """Print the plan, and the GPU-hours where the GPU is known; returns 0 when it fits and 1 when it does not."""
    import torch

    from siri.data.problems import resolve_path
    from siri.model.policy import ARCHITECTURES
    from siri.model.weight_files import settle_tying
    from siri.rollout.engines import engine_for

    config = options.config("model")
    gpu = find_gpu(options.gpu)
    machine = Machine(options.gpus, gpu.memory, options.gpus_per_node, options.reserve, gpu.multiprocessors)
    model_config = load_model_config(config.model)
    if model_config.model_type in ARCHITECTURES:  # others are refused below
        note = settle_tying(model_config, config.model, resolve_path(config.model), fetch=False)
        if note:
            say(note)
    # that of a run on GPUs, with the vLLM that is installed here, if it is
    plan = memory_plan(model_config, config, machine, rollout=engine_for(config, torch.device("cuda")))
    print_plan(plan)
    if gpu.flops:
        rates = Rates(options.assumed_mfu * gpu.flops, gpu.bandwidth, options.assumed_tokens_per_s)
        print_hours(run_hours(model_config, plan, rates), plan, rates, options.assumed_mfu)
    return 0 if plan.fits else 1
