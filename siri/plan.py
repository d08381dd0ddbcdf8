"""`siri plan`: what a run needs of each GPU's memory, before it starts.

Weights, gradients and optimizer state are counted from the model's shapes and are exact. Activations, the totals and
the verdict are predictions that have NOT been checked on a GPU yet; the formulas are in `siri.memory`.

The plan is that of the sharded trainer (torchrun) with its embedded rollout engine, which keeps bf16 weights of its
own.
"""

from dataclasses import dataclass, fields
from math import prod
from typing import Any

from siri.config import Config, resolve
from siri.errors import InputError
from siri.memory import LEVELS, Checkpointing, parameter_shapes, root_and_layer, sharded_bytes, update_moments, widths

GPUS = {"h100": 80, "h200": 141, "a100-40": 40, "a100-80": 80}
"""Memory by name, 10^9 bytes."""
AUTO_BUDGET = 36864
"""What token_budget = auto is on a GPU at least; see `siri.trainer.plan_token_budget`."""
MOST_GPUS = 128
"""More are not suggested."""


@dataclass(frozen=True)
class PhasePlan:
    """The plan at one cap of the schedule, for each GPU."""

    name: str
    cap: int
    """Longest response, tokens."""
    sequence_tokens: int
    """Longest prompt and response together."""
    micro_step_tokens: int
    """Most tokens of one packed micro-step: the token budget, or all of an optimizer step if that is less."""
    largest_micro_step: int
    """Most tokens of a micro-step that the memory holds (0: not even one)."""
    cache_tokens: int
    """Tokens of keys and values that fit during rollout."""
    sequences_in_flight: int
    """Responses that can be sampled at once, should all reach the cap; at most this GPU's share of the batch."""
    update_bytes: int
    """Peak of the update."""


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted memory of one GPU, bytes. Totals are not yet checked on a GPU (see the module's docstring)."""

    gpus: int
    shards: int
    checkpointing: Checkpointing
    token_budget: int
    memory: int
    reserve: int
    """Kept free for the CUDA context, NCCL and fragmentation."""
    parameters: int
    """Of the whole model."""
    weights: int
    """Master weights, fp32, this GPU's shards."""
    gradients: int
    """fp32, this GPU's shards."""
    optimizer: int
    """Both AdamW moments, fp32, this GPU's shards."""
    gathered: int
    """bf16 weights in one piece: the root, the layer that runs and the one that is fetched ahead."""
    engine: int
    """Weights of the rollout engine, bf16; they stay during the update."""
    moments: dict[str, int]
    """What comes on top at each moment of the update; the largest counts."""
    cache_token: int
    """Keys and values of one token."""
    phases: tuple[PhasePlan, ...]
    advice: tuple[str, ...]
    """What to change if it does not fit; each line is enough by itself."""

    @property
    def always(self) -> int:
        """Bytes held during the whole update."""
        return self.weights + self.gradients + self.optimizer + self.gathered + self.engine

    @property
    def update_bytes(self) -> int:
        """Peak of the update, at the cap that needs most."""
        return self.always + max(self.moments.values())

    @property
    def fits(self) -> bool:
        """The update fits beside the reserve, and at every cap at least one response can be sampled."""
        sampled = all(phase.sequences_in_flight > 0 for phase in self.phases)
        return sampled and self.update_bytes + self.reserve <= self.memory


def memory_plan(
    model_config: Any,
    *,
    config: Config,
    gpus: int,
    gpu_memory_bytes: int,
    gpus_per_node: int = 8,
    reserve: float = 0.08,
    multiprocessors: int = 132,
) -> MemoryPlan:
    """Predict the memory of each GPU for a run of `config` on a model of a transformers configuration.

    On several nodes the training state is sharded inside each, over all GPUs with config.shard_across_nodes. reserve:
    share of the memory kept free. multiprocessors: of the GPU (132 on H100 and H200, 108 on A100); the head's chunks
    depend on it. Raises InputError for an architecture that cannot be trained, or figures that make no sense. The
    totals are predictions, not yet checked on a GPU.
    """
    from siri.model import ARCHITECTURES

    if model_config.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise InputError(f"architecture {model_config.model_type!r} cannot be planned; those that train are {known}")
    if gpus < 1 or gpus_per_node < 1 or (gpus > gpus_per_node and gpus % gpus_per_node):
        raise InputError(
            f"gpus is {gpus}; it must be at least 1, and a multiple of the {gpus_per_node} of a node beyond"
        )
    if gpu_memory_bytes < 1 or not 0 <= reserve < 1:
        raise InputError(f"a GPU of {gpu_memory_bytes} bytes with a share of {reserve} in reserve cannot be planned")
    longest = config.max_prompt_tokens + config.length_schedule().longest
    budget = config.token_budget
    if budget == "auto":
        budget = max(2 * longest, AUTO_BUDGET)
    if budget < longest:
        raise InputError(
            f"token_budget is {budget}, but the longest prompt and cap make {longest} tokens; raise --token-budget or "
            "lower --l-max"
        )
    fixed = {"config": config, "memory": gpu_memory_bytes, "reserve": reserve, "multiprocessors": multiprocessors}
    fixed["gpus_per_node"] = gpus_per_node
    chosen = {"gpus": gpus, "across_nodes": config.shard_across_nodes}
    chosen |= {"checkpointing": config.checkpointing, "budget": budget}
    plan = _predict(model_config, **fixed, **chosen)
    if plan.fits:
        return plan
    return _predict(model_config, **fixed, **chosen, advice=_advice(model_config, fixed, chosen, plan, longest))


def _predict(
    c: Any,
    *,
    config: Config,
    memory: int,
    reserve: float,
    multiprocessors: int,
    gpus_per_node: int,
    gpus: int,
    across_nodes: bool,
    checkpointing: Checkpointing,
    budget: int,
    advice: tuple[str, ...] = (),
) -> MemoryPlan:
    shards = gpus if across_nodes else min(gpus, gpus_per_node)
    shapes = parameter_shapes(c)
    root, layer = root_and_layer(shapes)
    parameters = sum(prod(shape) for shape in shapes.values())
    master = sharded_bytes(shapes, shards)
    gathered = 2 * root + 2 * 2 * layer
    engine = 2 * parameters
    always = 4 * master + gathered + engine
    kept_free = int(reserve * memory)
    _, _, keys = widths(c)
    cache_token = 2 * 2 * c.num_hidden_layers * keys
    # gradients are gone then; the embedded engine fills half of what is free, because its cache grows by copying
    room = max(0, memory - kept_free - 3 * master - engine) // 2 // cache_token
    cache_tokens = room if config.rollout_tokens == "auto" else min(room, config.rollout_tokens)

    def moments(tokens: int) -> dict[str, int]:
        options = {"shards": shards, "checkpointing": checkpointing, "multiprocessors": multiprocessors}
        return update_moments(c, tokens, **options)

    largest = _largest(lambda tokens: always + max(moments(tokens).values()) + kept_free <= memory)
    phases = []
    for name, cap in _caps(config):
        sequence = config.max_prompt_tokens + cap
        batch = min(config.prompts_per_step, config.mini_batch_prompts) * config.group_size
        micro_step = min(budget, batch * sequence)
        share = -(-config.prompts_per_step * config.group_size // gpus)
        in_flight = min(share, cache_tokens // sequence)
        peak = always + max(moments(micro_step).values())
        phases.append(PhasePlan(name, cap, sequence, micro_step, largest, cache_tokens, in_flight, peak))
    return MemoryPlan(
        gpus=gpus,
        shards=shards,
        checkpointing=checkpointing,
        token_budget=budget,
        memory=memory,
        reserve=kept_free,
        parameters=parameters,
        weights=master,
        gradients=master,
        optimizer=2 * master,
        gathered=gathered,
        moments=moments(max(phase.micro_step_tokens for phase in phases)),
        engine=engine,
        cache_token=cache_token,
        phases=tuple(phases),
        advice=advice,
    )


def _advice(c: Any, fixed: dict, chosen: dict, plan: MemoryPlan, longest: int) -> tuple[str, ...]:
    """Changes that were each tried and are enough by themselves, or else the first combination that is."""

    def fits(**changes: Any) -> bool:
        return _predict(c, **fixed, **{**chosen, **changes}).fits

    lines = []
    smaller = _round(plan.phases[0].largest_micro_step)
    if longest <= smaller < chosen["budget"] and fits(budget=smaller):
        lines.append(f"--token-budget {smaller}")
    stronger = LEVELS[LEVELS.index(chosen["checkpointing"]) + 1 :]
    lines += [f"--checkpointing {level}" for level in stronger if fits(checkpointing=level)][:1]
    if chosen["gpus"] > fixed["gpus_per_node"] and not chosen["across_nodes"] and fits(across_nodes=True):
        lines.append("--shard-across-nodes")
    counts = [chosen["gpus"] * 2**power for power in range(1, 8) if chosen["gpus"] * 2**power <= MOST_GPUS]
    counts = [gpus for gpus in counts if gpus <= fixed["gpus_per_node"] or not gpus % fixed["gpus_per_node"]]
    lines += [f"{gpus} of these GPUs" for gpus in counts if fits(gpus=gpus)][:1]
    if lines:
        return tuple(lines)
    least = {"across_nodes": True, "checkpointing": "full", "budget": longest}
    for gpus in (chosen["gpus"], *counts):
        if fits(gpus=gpus, **least):
            across = " --shard-across-nodes" if gpus > fixed["gpus_per_node"] else ""
            return (f"{gpus} of these GPUs with --checkpointing full --token-budget {longest}{across}",)
    return ("larger GPUs, a smaller model, or a lower --l-max: neither settings nor more of these GPUs are enough",)


def _round(tokens: int) -> int:
    """Down to a whole number of 1,024 tokens, if that leaves any."""
    return tokens // 1024 * 1024 or tokens


def _largest(fits: Any) -> int:
    """The largest whole number that fits, for a condition that holds up to some number; at most 2^24."""
    low, high = 0, 2**24
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _caps(config: Config) -> list[tuple[str, int]]:
    if config.schedule == "steps":
        return [(f"from step {start}", cap) for start, cap in config.stages]
    if config.schedule == "constant":
        return [("all steps", config.l_max)]
    return [("L_max", config.l_max), ("L_min", config.l_min)]


def print_plan(plan: MemoryPlan) -> None:
    """The plan as tables, with the verdict and what to change."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(
        f"Each of {plan.gpus} GPU{'s' * (plan.gpus > 1)} of {plan.memory / 1e9:g} GB: {plan.parameters:,} parameters "
        f"in {plan.shards} shard{'s' * (plan.shards > 1)},\ncheckpointing {plan.checkpointing}, token budget "
        f"{plan.token_budget:,}."
    )
    table = Table()
    table.add_column("during the update")
    table.add_column("GB", justify="right")
    peak = max(plan.moments, key=plan.moments.__getitem__)
    for name, size in (
        ("weights, fp32", plan.weights),
        ("gradients, fp32", plan.gradients),
        ("AdamW moments, fp32", plan.optimizer),
        ("gathered weights, bf16", plan.gathered),
        ("rollout engine's weights, bf16", plan.engine),
    ):
        table.add_row(name, _gb(size))
    table.add_section()
    for name, size in plan.moments.items():
        note = " (the largest counts)" if name == peak else ""
        table.add_row(f"+ at the {name}{note}", _gb(size), style="" if name == peak else "dim")
    table.add_section()
    table.add_row("peak", _gb(plan.update_bytes), style="bold")
    table.add_row("reserve", _gb(plan.reserve))
    console.print(table)

    phases = Table()
    for heading in ("", "cap", "micro-step", "peak GB", "largest", "rollout cache", "at once"):
        phases.add_column(heading, justify="right" if heading else "left")
    for phase in plan.phases:
        figures = (phase.cap, phase.micro_step_tokens, _gb(phase.update_bytes), phase.largest_micro_step)
        figures += (phase.cache_tokens, phase.sequences_in_flight)
        phases.add_row(phase.name, *(one if isinstance(one, str) else f"{one:,}" for one in figures))
    console.print(phases)
    for line in (
        "Lengths are in tokens. largest: the micro-step that would fill the memory.",
        f"rollout cache: keys and values, {plan.cache_token:,} bytes a token. at once: responses.",
        "A prediction, not yet checked on a GPU.",
    ):
        console.print(line, style="dim")
    if plan.fits:
        console.print("[green]It fits.[/]")
    else:
        console.print("[red]It does not fit.[/] Any one of these is enough:")
        for line in plan.advice:
            console.print(f"  {line}", markup=False)


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"


def gpu_memory(name: str) -> tuple[int, int]:
    """(bytes, multiprocessors) of a GPU by name (see GPUS), or of a number of bytes such as 80e9."""
    if name.lower() in GPUS:
        return GPUS[name.lower()] * 10**9, 108 if name.lower().startswith("a100") else 132
    try:
        size = int(float(name))
    except (ValueError, OverflowError):
        raise InputError(f"gpu {name!r} is unknown; use {', '.join(GPUS)}, or its bytes, such as 80e9") from None
    if size < 10**6:
        raise InputError(f"gpu {name!r}: {size} bytes of memory are too few; give bytes, such as 80e9")
    return size, 132


def load_model_config(source: str) -> Any:
    """The transformers configuration of a model: a folder with config.json, or a hub name. InputError in one line when
    it can be had from neither."""
    from transformers import AutoConfig

    from siri.data import resolve_path

    try:
        return AutoConfig.from_pretrained(resolve_path(source))
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"model {source}: no configuration to be had ({reason}); give --model a folder with config.json"
        ) from None


@dataclass(frozen=True)
class PlanOptions(Config):
    gpus: int = 8
    """GPUs that train together."""
    gpus_per_node: int = 8
    """GPUs of one machine."""
    gpu: str = "h100"
    """h100, h200, a100-40, a100-80, or bytes of memory, such as 80e9."""
    reserve: float = 0.08
    """Share of the memory kept free."""

    def __post_init__(self) -> None:
        """Nothing: a recipe may need the command line to make sense, so only the Config of both is checked."""


def run_plan(recipe: str, arguments: list[str]) -> int:
    """`siri plan RECIPE [--gpus N] [--gpu NAME] [--model FOLDER] [--KEY VALUE ...]`: print the plan; returns 0 when it
    fits and 1 when it does not."""
    options = resolve(recipe, PlanOptions, arguments, prog=f"siri plan {recipe}")
    config = Config(**{field.name: getattr(options, field.name) for field in fields(Config)})
    if not config.model:
        raise InputError("model is not set; give --model")
    memory, multiprocessors = gpu_memory(options.gpu)
    plan = memory_plan(
        load_model_config(config.model),
        config=config,
        gpus=options.gpus,
        gpu_memory_bytes=memory,
        gpus_per_node=options.gpus_per_node,
        reserve=options.reserve,
        multiprocessors=multiprocessors,
    )
    print_plan(plan)
    return 0 if plan.fits else 1
