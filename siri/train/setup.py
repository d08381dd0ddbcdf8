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
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from siri.config import Config
from siri.data.problems import resolve_path
from siri.data.prompts import PromptSet, load_prompts
from siri.errors import InputError
from siri.model import attention
from siri.model.fsdp import shard
from siri.model.liger import Applied, apply_liger
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
from siri.runtime.ranks import ALONE, Ranks
from siri.runtime.threads import use_threads
from siri.store import checkpoint

Weights = Literal["none", "read", "later", "random"]


@dataclass(frozen=True)
class Source:
    """Problems to be read, and what will be asked of them."""

    name: str
    cap: int
    """Longest response, tokens."""
    limit: int = 0
    """Only the first so many; 0 = all."""


def training_sources(config: Config) -> list[Source]:
    """What a run reads: the training problems first, then those of each evaluation."""
    longest = config.length_schedule().longest
    held_out = [Source(name, config.eval_cap or longest, config.eval_problems) for name in config.eval_data]
    return [Source(config.data, longest), *held_out]


@dataclass(frozen=True)
class Setup:
    """A model with its data, ready to be sampled from, and to be trained where that was asked for."""

    config: Config
    ranks: Ranks
    device: torch.device
    policy: Policy
    backend: str
    """Of attention; "" where nothing is trained."""
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
        """Lines for the user: what of the model's files was taken otherwise than its config.json has it, what of Liger
        could not be had, and what was left out of the problems."""
        pairs = zip(self.sources, self.problems, strict=True)
        return [
            *self.policy.notes,
            *self.liger.notes,
            *(line for source, problems in pairs for line in problems.notes(source.name)),
        ]


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
    backend, liger = "", Applied()
    if training:
        backend = attention.select_backend(config.attention, device, policy.model.config, config.checkpointing)
        liger = apply_liger(policy.model, config.liger, device)
        if config.vocab_parallel:
            check_parts(policy.model, parts or (ranks.mesh.shape[-1] if ranks.sharded else 1))
    problems = []
    for source in sources:
        prompts = load_prompts(source.name, policy.tokenizer, config, limit=source.limit)
        check_prompts(policy, prompts, source.cap, source=source.name)
        problems.append(prompts)
    budget, cost = 0, None
    if ratio is not None:
        longest = problems[0].longest + sources[0].cap
        budget = token_budget(config, longest=longest, on_gpu=device.type == "cuda")
        cost = sequence_cost(policy.model.config, cost_ratio=ratio)
    threads = 0
    if weights != "none":
        threads = use_threads(config.threads, policy.model, device, ranks)
        _settle(policy, config, ranks, device, training=training, read=weights == "read")
    return Setup(
        config=config,
        ranks=ranks,
        device=device,
        policy=policy,
        backend=backend,
        liger=liger,
        threads=threads,
        sources=tuple(sources),
        problems=tuple(problems),
        token_budget=budget,
        cost=cost,
    )


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
    if not weights or not checkpoint.is_checkpoint(folder):
        return load_policy(source, device, weights=weights, fetch=fetch, checkpoint=held, ranks=ranks)
    if fault := checkpoint.verify(folder):
        raise InputError(f"model {source}: damaged, {fault}; choose another checkpoint")
    policy = load_policy(source, device, weights=False, checkpoint=held, ranks=ranks)
    allocate(policy.model, device)
    checkpoint.load_weights(folder, policy)
    return policy


def _settle(policy: Policy, config: Config, ranks: Ranks, device: torch.device, *, training: bool, read: bool) -> None:
    """Shard the model and give it storage, where several share it; trade activations for compute."""
    if ranks.sharded:
        compute_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        shard(policy.model, ranks, compute_dtype=compute_dtype, vocab_parallel=config.vocab_parallel)
        allocate(policy.model, device)
        if read:
            checkpoint.load_weights(Path(resolve_path(config.model)), policy, ranks=ranks)
    if training:
        checkpoint_activations(policy.model, config.checkpointing)
