"""`siri plan`: what a run needs of each GPU's memory, before it starts.

Weights, gradients and optimizer state are counted from the model's shapes and are exact. Activations, the totals and
the verdict are predictions; one step has been compared with them on a GPU, and peaked 7 % below (docs/gpu.md). The
formulas are in `formulas`, the hours in `hours`, both beside this file.

The plan is that of the sharded trainer (torchrun) with the rollout engine that it would take:

    local       embedded: bf16 weights of its own, which stay during the update; keys and values while it samples
    colocated   vLLM in the training processes: rollout_memory of the GPU while it samples, asleep during the update
    served      vLLM on other GPUs: nothing
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from siri.config import Config
from siri.errors import InputError
from siri.planning.budget import token_budget
from siri.planning.formulas import (
    LEVELS,
    RESERVE,
    Checkpointing,
    Shapes,
    accumulated_bytes,
    adapter_shapes,
    cache_token_bytes,
    embedded_cache_tokens,
    parameter_shapes,
    root_and_layer,
    sharded_bytes,
    update_moments,
)
from siri.schedule import OPEN

LEAST_SHARE, MOST_SHARE = 0.05, 0.9
"""Of rollout_memory where the plan chooses it."""
ADVISED_RANK = 32
"""Of an adapter, where no setting makes all weights fit."""
MOST_GPUS = 128
"""More are not suggested."""
VLLM_WORKSPACE = 2 * 10**9
"""Bytes of vLLM's share that hold neither weights nor cache: activations and CUDA graphs. Assumed."""


@dataclass(frozen=True)
class Machine:
    """The GPUs of a run."""

    gpus: int
    memory: int
    """Of each GPU, bytes."""
    gpus_per_node: int = 8
    reserve: float = RESERVE
    """Share of the memory kept free."""
    multiprocessors: int = 132
    """Of the GPU (132 on H100 and H200, 108 on A100); the head's chunks depend on it."""

    def __post_init__(self) -> None:
        """InputError for figures that make no sense."""
        gpus, node = self.gpus, self.gpus_per_node
        if gpus < 1 or node < 1 or (gpus > node and gpus % node):
            raise InputError(f"gpus is {gpus}; it must be at least 1, and a multiple of the {node} of a node beyond")
        if self.memory < 1 or not 0 <= self.reserve < 1:
            raise InputError(
                f"a GPU of {self.memory} bytes with a share of {self.reserve} in reserve cannot be planned"
            )


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
    """Tokens of keys and values that fit during rollout; 0 with vLLM servers, whose GPUs are others."""
    sequences_in_flight: int
    """Responses that can be sampled at once, should all reach the cap; at most this GPU's share of the batch."""
    update_bytes: int
    """Peak of the update."""


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted memory of one GPU, bytes. Totals are predictions (see the module's docstring)."""

    machine: Machine
    config: Config
    """With what was left to the plan, such as the token budget, settled."""
    rollout: str
    """The engine: local, colocated or served."""
    shards: int
    reserve: int
    """Kept free for the CUDA context, NCCL and fragmentation."""
    parameters: int
    """Of the whole model."""
    adapter: int
    """Parameters of a LoRA adapter; 0 where all weights are trained."""
    weights: int
    """This GPU's shards: master weights, fp32, or frozen ones, bf16, and an adapter, fp32."""
    gradients: int
    """fp32, this GPU's shards."""
    accumulated: int
    """What gradients take on top until the last micro-step of an optimizer step, fp32; 0 where each is reduced."""
    optimizer: int
    """Both AdamW moments, fp32, this GPU's shards; 0 where they live in host memory."""
    gathered: int
    """bf16 weights in one piece: the root, the layer that runs and the one that is fetched ahead."""
    engine: int
    """Weights of the embedded rollout engine, bf16, which stay during the update."""
    moments: dict[str, int]
    """What comes on top at each moment of the update; the largest counts."""
    rollout_bytes: int
    """Held while sampling: weights, moments and the engine with its cache."""
    cache_token: int
    """Keys and values of one token."""
    phases: tuple[PhasePlan, ...]
    liger: tuple[str, ...] = ()
    """The parts of Liger that are planned with."""
    chosen: tuple[str, ...] = ()
    """A line for each setting that the plan has settled by what fits."""
    advice: tuple[str, ...] = ()
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
        """Update and rollout fit beside the reserve, and at every cap at least one response can be sampled."""
        sampled = all(phase.sequences_in_flight > 0 for phase in self.phases)
        return sampled and self.update_fits and self.rollout_bytes + self.reserve <= self.machine.memory

    @property
    def update_fits(self) -> bool:
        """The update fits beside the reserve, whatever the rollout needs."""
        return self.update_bytes + self.reserve <= self.machine.memory


def memory_plan(
    model_config: Any, config: Config, machine: Machine, *, rollout: str, liger: tuple[str, ...] = ()
) -> MemoryPlan:
    """Predict the memory of each GPU for a run of `config` on a model of a transformers configuration.

    On several nodes the training state is sharded inside each, over all GPUs with config.shard_across_nodes. rollout:
    the engine (`siri.rollout.engines.engine_for`). liger: the parts of it that run. Raises InputError for an
    architecture that cannot be trained. The totals are predictions.
    """
    from siri.model.policy import ARCHITECTURES

    if model_config.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise InputError(f"architecture {model_config.model_type!r} cannot be planned; those that train are {known}")
    longest = config.max_prompt_tokens + config.length_schedule().longest
    config = replace(config, token_budget=token_budget(config, longest=longest, on_gpu=True))
    config, chosen = _settled(model_config, config, machine, rollout, liger)
    plan = replace(_predict(model_config, config, machine, rollout, liger), chosen=chosen)
    return plan if plan.fits else replace(plan, advice=_advice(model_config, plan, longest))


def _settled(
    c: Any, config: Config, machine: Machine, rollout: str, liger: tuple[str, ...]
) -> tuple[Config, tuple[str, ...]]:
    """The settings with those that are left to the plan in numbers and names, and a line for each."""
    lines = []
    if config.rollout_memory == "auto":
        stand_in = replace(config, checkpointing="full", rollout_memory=0.5)
        held = _predict(c, stand_in, machine, "served", liger).rollout_bytes
        room = 1 - (held + int(machine.reserve * machine.memory)) / machine.memory
        share = max(LEAST_SHARE, min(MOST_SHARE, int(100 * room) / 100))
        config = replace(config, rollout_memory=share)
        if rollout == "colocated":
            lines.append(f"rollout_memory auto: {share:g} of each GPU for vLLM while it samples")
    if config.checkpointing == "auto":
        levels = [level for level in LEVELS if not (level == "selective" and config.attention == "flex")]
        plans = [_predict(c, replace(config, checkpointing=level), machine, rollout, liger) for level in levels]
        tried = [plan.update_fits for plan in plans]
        fitting = [level for level, fits in zip(levels, tried, strict=True) if fits]
        config = replace(config, checkpointing=(fitting or levels[-1:])[0])
        why = f"the first of {', '.join(levels)} that fits" if fitting else "although not even that fits"
        lines.append(f"checkpointing auto: {config.checkpointing}, {why}")
    return config, tuple(lines)


def update_peak(model_config: Any, plan: MemoryPlan, tokens: int, *, several: bool) -> int:
    """Predicted peak, bytes, of an update of plan's run whose largest micro-step has `tokens` tokens. several: some
    optimizer step has more micro-steps than one."""
    accumulated = plan.accumulated if several else 0
    moments = _moments(
        model_config, plan.config, plan.shards, plan.machine.multiprocessors, accumulated, tokens, plan.liger
    )
    return plan.always + max(moments.values())


def _moments(
    c: Any,
    config: Config,
    shards: int,
    multiprocessors: int,
    accumulated: int,
    tokens: int,
    liger: tuple[str, ...],
) -> dict[str, int]:
    visiting = 0
    if config.optimizer_offload:
        from siri.model.offload import CHUNK_BYTES

        trained = adapter_of(c, config) or parameter_shapes(c)
        largest = max(2 * sharded_bytes({name: shape}, shards) for name, shape in trained.items())
        visiting = 3 * max(CHUNK_BYTES, largest) // 2  # moments, and AdamW's square roots of half of them
    return update_moments(
        c,
        tokens,
        shards=shards,
        checkpointing=settled_level(config),
        multiprocessors=multiprocessors,
        accumulated=accumulated,
        vocab_parts=shards if config.vocab_parallel else 1,
        visiting=visiting,
        adapter=adapter_of(c, config),
        liger=liger,
        attention=config.attention,
    )


def settled_level(config: Config) -> Checkpointing:
    """checkpointing as a plan has settled it."""
    assert config.checkpointing != "auto"
    return config.checkpointing


def adapter_of(c: Any, config: Config) -> Shapes:
    """Shapes of the run's adapter; none where all weights are trained. InputError for a target that it cannot have."""
    targets = config.targets()
    shapes = adapter_shapes(c, config.lora_rank, targets)
    have = {name.split(".lora_")[0].rpartition(".")[2] for name in shapes}
    if missing := [target for target in targets if target not in have]:
        raise InputError(f"lora_targets: the model has no linear layer {missing[0]!r} of its own to adapt")
    return shapes


def _predict(c: Any, config: Config, machine: Machine, rollout: str, liger: tuple[str, ...] = ()) -> MemoryPlan:
    shards = machine.gpus if config.shard_across_nodes else min(machine.gpus, machine.gpus_per_node)
    # a tied head is gathered for the embedding all the same
    cut = shards if config.vocab_parallel and not c.tie_word_embeddings else 1
    shapes = parameter_shapes(c)
    adapter = adapter_of(c, config)
    trained = adapter or shapes
    root, layer = root_and_layer(shapes | adapter, cut)
    parameters = sum(prod(shape) for shape in shapes.values())
    gradients = sharded_bytes(trained, shards)
    # what is frozen is kept as it is computed with
    master = gradients + (sharded_bytes(shapes, shards, 2) if adapter else 0)
    optimizer = 0 if config.optimizer_offload else 2 * gradients
    head_part = 2 * -(-c.vocab_size // cut) * c.hidden_size if cut > 1 else 0
    gathered = 2 * root + head_part + 2 * 2 * layer
    engine = 2 * parameters if rollout == "local" else 0
    always = master + gradients + optimizer + gathered + engine
    batch = min(config.prompts_per_step, config.mini_batch_prompts) * config.group_size
    longest = config.max_prompt_tokens + config.length_schedule().longest
    budget = int(config.token_budget)  # `memory_plan` has put a number for auto
    several = batch * longest > budget * machine.gpus
    one_reduction = several and not config.sync_every_micro_step
    accumulated = accumulated_bytes(trained, shards, cut) if one_reduction else 0

    def moments(tokens: int) -> dict[str, int]:
        return _moments(c, config, shards, machine.multiprocessors, accumulated, tokens, liger)

    reserve = int(machine.reserve * machine.memory)
    largest = _largest(lambda tokens: always + max(moments(tokens).values()) + reserve <= machine.memory)
    held = master + optimizer + engine  # gradients are gone while it samples
    cache_tokens, rollout_bytes = _rollout(c, config, machine, rollout, held, parameters)
    phases = []
    for name, cap in caps(config):
        sequence = config.max_prompt_tokens + cap
        micro_step = min(budget, batch * sequence)
        share = -(-config.prompts_per_step // machine.gpus) * config.group_size
        in_flight = share if rollout == "served" else min(share, cache_tokens // sequence)
        peak = always + max(moments(micro_step).values())
        phases.append(PhasePlan(name, cap, sequence, micro_step, largest, cache_tokens, in_flight, peak))
    return MemoryPlan(
        machine=machine,
        config=config,
        rollout=rollout,
        shards=shards,
        reserve=reserve,
        parameters=parameters,
        weights=master,
        gradients=gradients,
        adapter=sum(prod(shape) for shape in adapter.values()),
        accumulated=accumulated,
        optimizer=optimizer,
        gathered=gathered,
        moments=moments(max(phase.micro_step_tokens for phase in phases)),
        engine=engine,
        rollout_bytes=rollout_bytes,
        cache_token=cache_token_bytes(c),
        phases=tuple(phases),
        liger=liger,
    )


def _rollout(c: Any, config: Config, machine: Machine, rollout: str, held: int, parameters: int) -> tuple[int, int]:
    """(tokens of keys and values, bytes) while sampling; held: weights, moments and the embedded engine's weights."""
    token = cache_token_bytes(c)
    if rollout == "served":
        return 0, held
    if rollout == "colocated":
        share = int(float(config.rollout_memory) * machine.memory)
        return max(0, share - 2 * parameters - VLLM_WORKSPACE) // token, held + share
    tokens = config.rollout_tokens
    if tokens == "auto":
        tokens = embedded_cache_tokens(c, memory=machine.memory, held=held, reserve=machine.reserve)
    return tokens, held + 2 * tokens * token  # the cache grows by copying


def _advice(c: Any, plan: MemoryPlan, longest: int) -> tuple[str, ...]:
    """Changes that were each tried and are enough by themselves, or else the first combination that is."""
    config, machine = plan.config, plan.machine

    def fits(gpus: int = machine.gpus, **changes: Any) -> bool:
        return _predict(c, replace(config, **changes), replace(machine, gpus=gpus), plan.rollout, plan.liger).fits

    lines = []
    smaller = _round(plan.phases[0].largest_micro_step)
    if longest <= smaller < int(config.token_budget) and fits(token_budget=smaller):
        lines.append(f"--token-budget {smaller}")
    stronger = LEVELS[LEVELS.index(settled_level(config)) + 1 :]
    lines += [f"--checkpointing {level}" for level in stronger if fits(checkpointing=level)][:1]
    switches = ["sync_every_micro_step", "optimizer_offload"]
    if machine.gpus > machine.gpus_per_node:
        switches.append("shard_across_nodes")
    for name in switches:
        if not getattr(config, name) and fits(**{name: True}):
            lines.append(f"--{name.replace('_', '-')}")
    if plan.rollout == "colocated":
        shares = [share / 20 for share in range(int(20 * float(config.rollout_memory)), 1, -1)]
        lines += [f"--rollout-memory {share:g}" for share in shares if fits(rollout_memory=share)][:1]
    if config.rollout_tokens != "auto" and fits(rollout_tokens="auto"):
        lines.append("--rollout-tokens auto")
    counts = [machine.gpus * 2**power for power in range(1, 8) if machine.gpus * 2**power <= MOST_GPUS]
    counts = [gpus for gpus in counts if gpus <= machine.gpus_per_node or not gpus % machine.gpus_per_node]
    lines += [f"{gpus} of these GPUs" for gpus in counts if fits(gpus=gpus)][:1]
    if not config.lora_rank and not any(line.startswith("--") for line in lines) and fits(lora_rank=ADVISED_RANK):
        lines.append(f"--lora-rank {ADVISED_RANK}, which trains an adapter and leaves the weights as they are")
    if lines:
        return tuple(lines)
    least = {"checkpointing": "full", "token_budget": longest, "sync_every_micro_step": True, "optimizer_offload": True}
    for gpus in (machine.gpus, *counts):
        if fits(gpus=gpus, shard_across_nodes=True, **least):
            settings = "--checkpointing full --sync-every-micro-step --optimizer-offload"
            across = " --shard-across-nodes" if gpus > machine.gpus_per_node else ""
            return (f"{gpus} of these GPUs with {settings} --token-budget {longest}{across}",)
    return ("larger GPUs, a smaller model, or a lower --l-max: neither settings nor more of these GPUs are enough",)


def _round(tokens: int) -> int:
    """Down to a whole number of 1,024 tokens, if that leaves any."""
    return tokens // 1024 * 1024 or tokens


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest whole number that fits, for a condition that holds up to some number; at most 2^24."""
    low, high = 0, 2**24
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def caps(config: Config) -> list[tuple[str, int]]:
    """(name, cap) of each phase of the schedule, the longest first, or of each stage."""
    if config.schedule == "steps":
        return [(f"from step {start}", cap) for start, cap in config.stages]
    if config.schedule in OPEN:
        return [("all steps", config.l_max)]
    return [("L_max", config.l_max), ("L_min", config.l_min)]
