"""The policy update: samples -> packed micro-batches -> fused GRPO loss -> gradient -> AdamW.

The loss is divided by the counts of the whole optimizer step before backward, so neither the packing nor the token
budget nor the order of the samples changes the gradient.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from siri_kernels import GrpoResult, linear_grpo_loss, linear_logprob, merge_metrics

from siri.config import Config
from siri.config.sections import LossSettings
from siri.config.settings import names
from siri.model.attention import select_backend
from siri.model.fsdp import full
from siri.model.policy import Policy, packed_hidden
from siri.model.split_head import HeadCut, gather_rows
from siri.packing import Cost, Plan, pack
from siri.packing.flops import sequence_cost, training_flops
from siri.packing.step_plan import StepPlan
from siri.runtime.ranks import ALONE, Arrays, Ranks
from siri.runtime.stopwatch import Stopwatch
from siri.train.judge import Attempt, Judge
from siri.train.micro_batch import MicroBatch
from siri.train.mismatch import Mismatch
from siri.train.samples import Sample

ALWAYS = ("entropy_mean", "clip_low_fraction", "clip_high_fraction", "approx_kl", "ratio_max")
"""Metrics that every step has, null where nothing was trained on."""


@dataclass(frozen=True, slots=True)
class Update:
    """What came of the update of one rollout batch, the same on every rank."""

    metrics: dict[str, Any]
    """For the row of the step."""
    plan: StepPlan
    """The micro-steps of its optimizer steps."""
    flops: float
    """Its model FLOPs (`siri.packing.flops.training_flops`)."""


@dataclass(frozen=True, slots=True)
class _MiniBatch:
    """What one optimizer step is made of."""

    samples: Sequence[Sample]
    """All of it, which its divisor counts."""
    running: Sequence[Sample]
    """Those that enter the model; the plan's indices are theirs."""
    plan: Plan
    micro_batches: Sequence[MicroBatch]
    """This rank's."""


class Learner:
    """Updates the policy with rollout batches. Every rank has one, is given all samples, and runs its part of the plan.

    The first mini-batch of an update is on-policy: its old log-probs are its own and need no pass. Those of the later
    ones are computed before the first step, under the weights that sampled. A step whose gradient is not finite is
    skipped and counted, and so is one that the judge, who is asked on every rank, does not allow. A mini-batch in which
    nothing has a gradient takes no step, whether its responses were run or not: AdamW would move the weights by its
    momentum and decay alone.
    """

    def __init__(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        config: Config,
        *,
        token_budget: int,
        watch: Stopwatch,
        ranks: Ranks = ALONE,
        cost: Cost | None = None,
        judge: Judge | None = None,
    ) -> None:
        """cost: of a sequence in the plan; None = `sequence_cost` of the model."""
        self.policy, self.optimizer, self.config = policy, optimizer, config
        self.token_budget, self.watch, self.ranks, self.judge = token_budget, watch, ranks, judge
        self.cost = cost or sequence_cost(policy.model.config)
        self.cut = HeadCut.of(ranks) if config.vocab_parallel else None
        self.backend = select_backend(config.attention, policy.device, policy.model.config, config.checkpointing)
        self.bonus = config.entropy_coef != 0

    def update(self, mini_batches: Sequence[Sequence[Sample]]) -> Update:
        """One optimizer step for each mini-batch."""
        step_plan, batches, flops = StepPlan(), [], 0.0
        for samples in mini_batches:
            batch = self._laid_out(samples)
            lengths = [len(sample) for sample in batch.running]
            step_plan.add(batch.plan, lengths)
            flops += training_flops(
                self.policy.model.config,
                lengths,
                [len(sample.response_ids) for sample in batch.running],
                [sample.teaches(self.bonus) for sample in batch.running],
                scored=bool(batches),
            )
            batches.append(batch)
        old_logps: list[Sequence[torch.Tensor | None]] = [[None] * len(batch.micro_batches) for batch in batches[:1]]
        for batch in batches[1:]:
            with torch.no_grad(), self.watch("old_logp"):
                scores = [self.policy.call(score, micro, self.config, self.cut) for micro in batch.micro_batches]
                old_logps.append(scores)

        tally = _Tally(Mismatch(self.config.importance_low, float(self.config.importance_cap), self.policy.device))
        for batch, olds in zip(batches, old_logps, strict=True):
            if batch.micro_batches:
                self._step(batch, olds, tally)
        self.optimizer.zero_grad(set_to_none=True)
        metrics = tally.metrics(self.ranks)
        metrics["micro_steps"] = sum(len(batch.micro_batches) for batch in batches)
        metrics["lockstep_efficiency"] = step_plan.lockstep_efficiency
        metrics["budget_use"] = step_plan.budget_use(self.token_budget)
        return Update(metrics, step_plan, flops)

    def _laid_out(self, samples: Sequence[Sample]) -> _MiniBatch:
        """Plan a mini-batch, and lay this rank's sequences end to end."""
        everything = self.config.score_all or self.bonus
        running = [sample for sample in samples if everything or sample.teaches(self.bonus)]
        with self.watch("plan"):
            plan = _plan(running, self.token_budget, self.ranks, self.cost) if running else Plan([], [])
            shares = _shares(running, plan, self.ranks, self.cut)
            options = {"entropy_bonus": self.bonus, "device": self.policy.device, "backend": self.backend}
            micro_batches = [MicroBatch.of(mine, **options, together=together) for mine, together in shares]
        return _MiniBatch(samples, running, plan, micro_batches)

    def _step(self, batch: _MiniBatch, old_logps: Sequence[torch.Tensor | None], tally: "_Tally") -> None:
        """One optimizer step: its micro-steps, forward and backward, and AdamW."""
        policy, config, ranks, cut = self.policy, self.config, self.ranks, self.cut
        denominator = loss_denominator(batch.samples, config.aggregation)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=policy.device)
        rows: list[dict[str, torch.Tensor]] = []
        for number, (micro, old_logp) in enumerate(zip(batch.micro_batches, old_logps, strict=True), start=1):
            if ranks.sharded:
                is_last = number == len(batch.micro_batches)
                policy.model.set_requires_gradient_sync(is_last or config.sync_every_micro_step)
                policy.model.set_requires_all_reduce(is_last)  # across the replicas of HSDP
            result = policy.call(policy_loss, micro, config, old_logp, denominator, self.watch, cut)
            with self.watch("backward"):
                # FSDP2 averages gradients over the ranks, but the denominator is already everybody's
                (result.loss * ranks.size).backward()
            if cut is None or cut.place == 0:  # the others have the same loss, of the same tokens
                total += result.loss.detach()
                rows.append(result.metrics)
                tally.mismatch.add(result.logp if old_logp is None else old_logp, micro.rollout_logp_R, micro.mask_R)
        with self.watch("optimizer"):
            if cut is not None:
                cut.finish(policy.model, ranks)
            norm = full(torch.nn.utils.clip_grad_norm_(policy.model.parameters(), config.grad_clip))
            attempt = Attempt(
                number=len(tally.losses),
                samples=batch.running,
                plan=batch.plan,
                old_logps=old_logps,
                denominator=denominator,
                loss=total.item(),
                grad_norm=norm.item(),
                rows=rows,
            )
            allowed = self.judge is None or self.judge.allows(attempt)
            sound = allowed and math.isfinite(attempt.grad_norm)
            if sound and any(sample.teaches(self.bonus) for sample in batch.samples):
                self.optimizer.step()
        tally.add(attempt, sound)


class _Tally:
    """The metrics of an update, gathered step by step."""

    def __init__(self, mismatch: Mismatch) -> None:
        self.mismatch = mismatch
        self.rows: list[dict[str, torch.Tensor]] = []
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.skipped = 0

    def add(self, attempt: Attempt, sound: bool) -> None:
        """Count an optimizer step; one that is not sound was skipped."""
        self.rows += attempt.rows
        self.losses.append(attempt.loss)
        self.norms.append(attempt.grad_norm)
        self.skipped += not sound

    def metrics(self, ranks: Ranks) -> dict[str, Any]:
        """Those of all ranks, on each of them."""
        metrics = _merged(self.rows, ranks) | self.mismatch.metrics(ranks)
        metrics["loss"] = _mean([sum(shares) for shares in zip(*ranks.gather(self.losses), strict=True)])
        metrics["grad_norm"] = _mean(self.norms)
        metrics["skipped_updates"] = self.skipped
        return metrics


def policy_loss(
    model: Any,
    micro: MicroBatch,
    config: Config,
    old_logp: torch.Tensor | None,
    denominator: float,
    watch: Stopwatch,
    cut: HeadCut | None = None,
) -> GrpoResult:
    """Loss of one micro-batch; the losses of a step's micro-batches, over all ranks, add up to the loss of the step.
    With a cut head it is that of all ranks that share it, on each of them."""
    with watch("forward"):
        hidden_RD, weight, bias, place = _head_inputs(model, micro, cut)
    with watch("head"):  # its gradients are formed here too
        return linear_grpo_loss(
            hidden_RD,
            weight,
            micro.target_ids_R,
            micro.advantages_S,
            old_logp=old_logp,
            rollout_logp=micro.rollout_logp_R,
            mask=micro.mask_R,
            cu_seqlens=micro.cu_seqlens,
            keep=micro.keep_K,
            keep_lengths=micro.keep_lengths_S,
            denominator=denominator,
            temperature=config.temperature,
            bias=bias,
            **loss_options(config),
            **place,
        )


def loss_options(config: Config) -> dict[str, Any]:
    """The settings of the loss as `linear_grpo_loss` takes them."""
    fixed_length = config.length_schedule().longest if config.aggregation == "seq_mean_fixed" else None
    return {name: getattr(config, name) for name in names(LossSettings)} | {"fixed_length": fixed_length}


def score(model: Any, micro: MicroBatch, config: Config, cut: HeadCut | None = None) -> torch.Tensor:
    """Log-probs [R] of the response tokens under the current weights."""
    hidden_RD, weight, bias, place = _head_inputs(model, micro, cut)
    if cut is not None:  # of the log-probs' functions, this one knows parts of a vocabulary
        return linear_grpo_loss(
            hidden_RD,
            weight,
            micro.target_ids_R,
            torch.zeros_like(micro.rollout_logp_R),
            rollout_logp=micro.rollout_logp_R,
            keep=micro.keep_K[:0],
            temperature=config.temperature,
            bias=bias,
            **place,
        ).logp
    # the anchor of the loss's own pass: the same kernel with the same anchor gives a ratio of exactly 1
    anchor = micro.rollout_logp_R
    options: dict[str, Any] = {"temperature": config.temperature, "bias": bias, "anchor": anchor}
    return cast(torch.Tensor, linear_logprob(hidden_RD, weight, micro.target_ids_R, **options))  # no entropy asked for


def loss_denominator(samples: Sequence[Sample], aggregation: str) -> float:
    """Divisor of an optimizer step: its counted response tokens (token_mean), or its sequences."""
    if aggregation == "token_mean":
        return max(1, sum(len(sample.response_ids) for sample in samples if sample.counted))
    return len(samples)


def _plan(samples: Sequence[Sample], token_budget: int, ranks: Ranks, cost: Cost) -> Plan:
    """The plan of all ranks, made on rank 0."""
    if not ranks.main:
        return _unpacked(ranks.broadcast_arrays(None))
    lengths = [len(sample) for sample in samples]
    plan = pack(lengths, token_budget=token_budget, ranks=ranks.size, cost=cost)
    ranks.broadcast_arrays(
        {
            "counts": np.array([[len(pack) for pack in step] for step in plan.steps], np.int32),
            "members": np.array([index for step in plan.steps for pack in step for index in pack], np.int32),
            "costs": np.array(plan.costs, np.float64),
        }
    )
    return plan


def _unpacked(arrays: Arrays) -> Plan:
    counts = arrays["counts"]
    bins = iter(np.split(arrays["members"], np.cumsum(counts)[:-1]))
    return Plan([[next(bins).tolist() for _ in step] for step in counts], arrays["costs"].tolist())


def _shares(
    samples: Sequence[Sample], plan: Plan, ranks: Ranks, cut: HeadCut | None
) -> Iterator[tuple[list[Sample], list[list[Sample]]]]:
    """This rank's samples in each micro-step, and with a cut head those of each rank that shares it."""
    for step in plan.steps:
        # more ranks than sequences: one masked token keeps a rank in step with the others
        idle = Sample(samples[0].prompt_ids[:1], samples[0].response_ids[:1], [0.0], 0.0, counted=False)
        members = [[samples[index] for index in indices] or [idle] for indices in step]
        yield members[ranks.rank], [] if cut is None else members[cut.first : cut.first + cut.size]


def _head_inputs(
    model: Any, micro: MicroBatch, cut: HeadCut | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, dict[str, Any]]:
    """Hidden states, weight and bias in one dtype, and where they lie in the vocabulary."""
    hidden_RD = packed_hidden(model, micro.input_ids_N, micro.layout)[micro.rows_R]
    weight, bias, place = model.lm_head.weight, model.lm_head.bias, {}
    if cut is not None:
        hidden_RD = gather_rows(hidden_RD, micro.shares, cut)
        vocab = weight.shape[0]
        weight, bias, start = cut.weight(model)
        place = {"vocab_start": start, "vocab_size": vocab, "group": cut.group}
    return hidden_RD, weight.to(hidden_RD.dtype), None if bias is None else bias.to(hidden_RD.dtype), place


def _merged(rows: Sequence[dict[str, torch.Tensor]], ranks: Ranks) -> dict[str, float]:
    """Token-weighted metrics over all micro-batches of all ranks."""
    mine = {name: value.item() for name, value in merge_metrics(rows).items()} if rows else {}
    everybody = [
        {name: torch.tensor(value, dtype=torch.float64) for name, value in row.items()}
        for row in ranks.gather(mine)
        if row
    ]
    metrics: dict[str, float] = dict.fromkeys(ALWAYS, math.nan)
    if everybody:
        metrics |= {name: value.item() for name, value in merge_metrics(everybody).items()}
    metrics["entropy"] = metrics.pop("entropy_mean", math.nan)
    return metrics


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
