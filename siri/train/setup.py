"""`prepare`: settings become a model with its data, on its device. Whatever runs a model is set up here.

command             weights   training   problems
siri train          read      yes        of training and evaluation
siri train, resumed later     yes        the same; the checkpoint fills the weights
--dry-run           none      yes        the same
siri replay         read      yes        none: the bundle holds the samples
bench calibrate     random    yes        none
siri eval           read      no         those that it measures
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Literal

import torch

from siri.config import Config
from siri.config.methods import L1
from siri.data.asked import AskedLengths
from siri.data.problems import resolve_path
from siri.data.progress import reading_bar
from siri.data.prompts import PromptSet, common, load_prompts
from siri.errors import InputError
from siri.model import attention
from siri.model.adapters import Adapter, add_adapter, initialise
from siri.model.fsdp import shard
from siri.model.liger import NOTHING, Applied, apply_liger
from siri.model.policy import (
    Policy,
    allocate,
    check_prompts,
    checkpoint_activations,
    load_policy,
    random_policy,
)
from siri.model.split_head import check_parts
from siri.packing import Cost
from siri.packing.flops import read_cost_ratio, sequence_cost
from siri.planning.budget import token_budget
from siri.planning.memory_plan import Machine, memory_plan
from siri.rewards.pool import wanted_columns
from siri.rollout.engines import engine_for, refuse_shared
from siri.runtime.heap import keep_freed_memory
from siri.runtime.ranks import ALONE, Ranks
from siri.runtime.threads import use_threads
from siri.store import checkpoint

CPU_SHARE = 0.6
"""Of rollout_memory on a CPU, where vLLM goes by other bounds."""
Weights = Literal["none", "read", "later", "random"]


@dataclass(frozen=True)
class Source:
    """Problems to be read, and what will be asked of them."""

    names: tuple[str, ...]
    cap: int
    """Longest response, tokens."""
    limit: int = 0
    """Only the first so many; 0 = all."""
    trained: bool = False
    """Whether they are trained on, and not measured."""

    @property
    def name(self) -> str:
        return ", ".join(self.names)


def training_sources(config: Config) -> list[Source]:
    """What a run reads: the training problems first, then those of each evaluation."""
    longest = config.length_schedule().longest
    held_out = [Source((name,), config.eval_cap or longest, config.eval_problems) for name in config.eval_data]
    return [Source(config.data, longest, trained=True), *held_out]


@dataclass(frozen=True)
class Setup:
    """A model with its data, ready to be sampled from, and to be trained where that was asked for."""

    config: Config
    """With what was left to the memory plan settled, where it trains."""
    ranks: Ranks
    device: torch.device
    policy: Policy
    backend: str
    """Of attention; "" where nothing is trained."""
    chosen: tuple[str, ...]
    """Lines on what the memory plan has settled, and on the kernels of attention."""
    liger: Applied
    """What of the layers runs on Liger's kernels."""
    threads: int
    """CPU threads that it computes with; 0 where there is nothing to compute."""
    sources: tuple[Source, ...]
    problems: tuple[PromptSet, ...]
    """One set for each source."""
    token_budget: int
    """Most tokens of a packed micro-step; 0 where nothing is planned."""
    cost: Cost | None
    """Of a sequence in the packing plan; None where nothing is planned."""

    def notes(self) -> list[str]:
        """Lines for the user: what of the model's files was taken otherwise than its config.json has it, what the
        memory plan has chosen, which kernels attend and which would be faster, what of Liger could not be had, and what
        was left out of the problems."""
        return [*self.policy.notes, *self.chosen, *self.liger.notes, *self.data_notes()]

    def data_notes(self) -> list[str]:
        """Lines about what was left out of the problems, what repeats, and what is trained on and measured as well."""
        pairs = zip(self.sources, self.problems, strict=True)
        return [*(line for source, problems in pairs for line in problems.notes(source.name)), *self.overlaps()]

    def overlaps(self) -> list[str]:
        """Lines about held-out problems that are trained on as well."""
        if not (self.sources and self.sources[0].trained):
            return []
        lines = []
        for source, prompts in zip(self.sources[1:], self.problems[1:], strict=True):
            if shared := common(self.problems[0], prompts):
                lines.append(
                    f"warning: {source.name}: {shared} of {len(prompts.ids)} held-out problems have a prompt that is "
                    "trained on, too"
                )
        return lines


def prepare(
    config: Config,
    *,
    device: torch.device,
    ranks: Ranks = ALONE,
    sources: Sequence[Source] = (),
    weights: Weights = "read",
    held: Path | None = None,
    training: bool = True,
    parts: int | None = None,
    layers: int = 0,
) -> Setup:
    """Build a model for `config`, and read the problems of `sources`, of which the first are those that are trained on.

    Everything that is asked of the settings is tried here, in one order for all commands: InputError names what does
    not fit. weights: none leaves the model without storage; later leaves a sharded one without values, for a
    checkpoint; random is for timing. held: the checkpoint that fills the model afterwards, if any. parts: of a head
    that is cut, by default the ranks that share the model. layers: of the model, if not all of them (random weights
    only).
    """
    ratio = ranks.on_main(lambda: read_cost_ratio(config.cost_ratio)) if training and sources else None
    if weights == "random":
        policy = random_policy(config.model, device, layers=layers)
    else:
        how = {"weights": weights != "none" and not ranks.sharded, "fetch": weights == "read", "held": held}
        policy = read_policy(config.model, device, **how, ranks=ranks)
    backend, liger, chosen = "", Applied(), ()
    if training and sources:
        refuse_shared(config.staleness, config, device)
    if training and config.lora_rank:
        policy = with_adapter(policy, config)
    if training:
        liger = apply_liger(policy.model, config.liger, device)
        level = "none" if config.checkpointing == "auto" else config.checkpointing
        backend = attention.select_backend(config.attention, device, policy.model.config, level)
        if config.vocab_parallel:
            check_parts(policy.model, parts or (ranks.mesh.shape[-1] if ranks.sharded else 1))
    problems = []
    wanted = ranks.on_main(lambda: wanted_columns(config.reward)) if sources else None
    with reading_bar(ranks.main) as told:
        for source in sources:
            prompts = load_prompts(
                source.names,
                policy.tokenizer,
                config,
                limit=source.limit,
                asked=asked_lengths(config),
                wanted=wanted,
                told=told,
                drop=config.duplicates == "drop" if source.trained else None,
            )
            check_prompts(policy, prompts, source.cap, source=source.name)
            problems.append(prompts)
    if training and config.epochs and problems:
        config, chosen = with_epochs(config, problems[0])
    budget, cost = 0, None
    if ratio is not None:
        longest = problems[0].longest + sources[0].cap
        budget = token_budget(config, longest=longest, on_gpu=device.type == "cuda")
        cost = sequence_cost(policy.model.config, cost_ratio=ratio)
    if training:
        longest_prompt = problems[0].longest if problems else config.max_prompt_tokens
        # of what this backend keeps; the plan chooses no level that it cannot have
        asked = replace(config, attention=backend, max_prompt_tokens=longest_prompt)
        asked = replace(asked, token_budget=budget or config.token_budget)
        settled, said = settle_memory(asked, policy, ranks, device, liger)
        changes = {"checkpointing": settled.checkpointing, "rollout_memory": settled.rollout_memory}
        config = replace(config, **changes)
        chosen += said + attention.notes(backend, device, policy.model.config)
    threads = 0
    if weights != "none":
        threads = use_threads(config.threads, policy.model, device, ranks)
        if device.type == "cpu":
            keep_freed_memory()
        _settle(policy, config, ranks, device, training=training, read=weights == "read")
    return Setup(
        config=config,
        ranks=ranks,
        device=device,
        policy=policy,
        backend=backend,
        chosen=chosen,
        liger=liger,
        threads=threads,
        sources=tuple(sources),
        problems=tuple(problems),
        token_budget=budget,
        cost=cost,
    )


def with_epochs(config: Config, prompts: PromptSet) -> tuple[Config, tuple[str, ...]]:
    """The settings with the steps that `epochs` comes to, and a line that says so. InputError where these do not go
    together with the rest."""
    size = prompts.epoch
    steps = max(1, ceil(config.epochs * size / config.prompts_per_step))
    line = f"{config.epochs:g} epochs of {size:,} problems at {config.prompts_per_step} a step: {steps:,} steps"
    if config.steps != steps:
        line += f" (epochs go before steps, which says {config.steps:,})"
    return replace(config, steps=steps), (line,)


def settle_memory(
    config: Config, policy: Policy, ranks: Ranks, device: torch.device, liger: Applied = NOTHING
) -> tuple[Config, tuple[str, ...]]:
    """The settings with those that are left to the memory plan as it has them for this machine, and a line for each.
    On a CPU nothing is planned: no checkpointing."""
    if "auto" not in (config.checkpointing, config.rollout_memory):
        return config, ()
    if device.type != "cuda":
        level = "none" if config.checkpointing == "auto" else config.checkpointing
        share = CPU_SHARE if config.rollout_memory == "auto" else config.rollout_memory
        return replace(config, checkpointing=level, rollout_memory=share), ()
    options = {"rollout": engine_for(config, device), "liger": liger.sparing}
    plan = memory_plan(policy.model.config, config, machine_of(ranks, device), **options)
    return plan.config, plan.chosen


def machine_of(ranks: Ranks, device: torch.device) -> Machine:
    """The GPUs of these ranks, which are taken to be alike."""
    gpu = torch.cuda.get_device_properties(device)
    here = ranks.mesh.shape[-1] if ranks.sharded else 1
    return Machine(ranks.size, gpu.total_memory, here, multiprocessors=gpu.multi_processor_count)


def asked_lengths(config: Config) -> AskedLengths | None:
    """The lengths that the prompts of a run ask for, held-out ones among them; None where its method asks for none."""
    if config.length_reward not in L1:
        return None
    exact = config.length_reward == "l1_exact"
    return AskedLengths(config.asked_least, config.asked_most, config.seed, exact=exact)


def read_policy(
    source: str,
    device: torch.device,
    *,
    weights: bool = True,
    fetch: bool = True,
    held: Path | None = None,
    ranks: Ranks = ALONE,
) -> Policy:
    """`load_policy`, of a run's checkpoint as well as of a model. held: the checkpoint that a run goes on from."""
    folder = Path(resolve_path(source))
    if not checkpoint.is_checkpoint(folder):
        return load_policy(source, device, weights=weights, fetch=fetch, checkpoint=held, ranks=ranks)
    if fetch and (fault := ranks.on_main(lambda: checkpoint.verify(folder))):
        raise InputError(f"model {source}: damaged, {fault}; choose another checkpoint")
    adapter = ranks.on_main(lambda: Adapter.read(folder)) if held is None else None
    if adapter:  # whether the head is tied is for its base to say
        held = Path(resolve_path(adapter.base))
    policy = load_policy(source, device, weights=False, fetch=fetch, checkpoint=held, ranks=ranks)
    if not weights:
        return policy
    allocate(policy.model, device)
    checkpoint.load_weights(folder, policy)
    return policy


def with_adapter(policy: Policy, config: Config) -> Policy:
    """The policy with a new adapter in its model, as the settings ask for it."""
    adapter = Adapter(config.model, config.lora_rank, config.alpha(), config.targets())
    add_adapter(policy.model, adapter)
    return replace(policy, adapter=adapter)


def _settle(policy: Policy, config: Config, ranks: Ranks, device: torch.device, *, training: bool, read: bool) -> None:
    """Shard the model and give it storage, where several share it; trade activations for compute."""
    if ranks.sharded:
        compute_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        shard(policy.model, ranks, compute_dtype=compute_dtype, vocab_parallel=config.vocab_parallel)
        allocate(policy.model, device)
        if read:
            checkpoint.load_weights(Path(resolve_path(config.model)), policy, ranks=ranks)
    if policy.adapter is not None:
        initialise(policy.model, config.seed)
    if training:
        checkpoint_activations(policy.model, config.checkpointing)
