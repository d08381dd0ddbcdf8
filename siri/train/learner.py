"""The policy update: samples -> packed micro-batches -> fused GRPO loss -> gradient -> AdamW.

The loss is divided by the counts of the whole optimizer step before backward, so neither the packing nor the token
budget nor the order of the samples changes the gradient.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from siri_kernels import GrpoResult, linear_grpo_loss, linear_logprob
from siri_kernels.selection import select

from siri.config import Config
from siri.config.sections import LossSettings
from siri.config.settings import names
from siri.model.adapters import adapter_size, head_share
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
from siri.train.micro_batch import MicroBatch, Scores
from siri.train.mismatch import Mismatch
from siri.train.penalty import distance, penalised_samples, strength
from siri.train.samples import Sample
from siri.train.tally import Tally


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
    learns: Sequence[bool]
    """Of each micro-step, whether anything in it, on any rank, may have a gradient; the others run forward only."""


class Learner:
    """Updates the policy with rollout batches. Every rank has one, is given all samples, and runs its part of the plan.

    The first mini-batch of an update is on-policy: its old log-probs are its own and need no pass. Those of the later
    ones are computed before the first step, under the weights that sampled. A step whose gradient is not finite is
    skipped and counted, and so is one that the judge, who is asked on every rank, does not allow. A mini-batch in which
    nothing has a gradient takes no step, whether its responses were run or not: AdamW would move the weights by its
    momentum and decay alone.

    With `score_all` responses that teach nothing run forward only. On a GPU they have micro-steps of their own
    (`apart`) behind the others, whose gradient is then that of a run without `score_all`, bit for bit; on a CPU the
    plan mixes them, and a micro-step in which nobody learns has no backward.
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
        self.adapter = adapter_size(policy.model)
        self.beta = config.drpo_beta if config.advantages == "drpo" else 0.0
        # DRPO's penalty changes, under the same plan, which responses teach
        self.apart = policy.device.type == "cuda" and not self.beta

    def try_head(self) -> str:
        """Which implementation of the head the loss will take. On a GPU it is tried, once in a process, which compiles
        its kernels; of a sharded model a collective."""

        def chosen(model: Any) -> str:
            weight, bias = model.lm_head.weight, model.lm_head.bias
            if self.cut is not None:
                weight, bias, _ = self.cut.weight(model)
            dtype = torch.bfloat16 if weight.is_cuda else weight.dtype  # of hidden states (`packed_hidden`)
            like = torch.empty(0, weight.shape[1], dtype=dtype, device=weight.device)
            group = None if self.cut is None else self.cut.group
            return select("auto", like, weight, temperature=self.config.temperature, bias=bias, group=group)

        with torch.no_grad():
            return self.policy.call(chosen)

    def update(self, mini_batches: Sequence[Sequence[Sample]]) -> Update:
        """One optimizer step for each mini-batch."""
        step_plan, batches, flops = StepPlan(), [], 0.0
        for samples in mini_batches:
            batch = self._laid_out(samples)
            step_plan.add(batch.plan, [len(sample) for sample in batch.running])
            flops += self._flops(batch, scorings=bool(batches) * (2 if self.beta else 1))
            batches.append(batch)
        olds: list[Sequence[Scores | None]] = [[None] * len(batch.micro_batches) for batch in batches[:1]]
        for batch in batches[1:]:
            with torch.no_grad(), self.watch("old_logp"):
                scores = [self.policy.call(score, micro, self.config, self.cut) for micro in batch.micro_batches]
                olds.append(scores)

        tally = Tally(Mismatch(self.config.importance_low, float(self.config.importance_cap), self.policy.device))
        for number, (batch, scores) in enumerate(zip(batches, olds, strict=True)):
            penalised = self._penalised(batch, scores, tally) if self.beta and number else batch
            if batch.micro_batches:
                self._step(penalised, scores, tally)
        self.optimizer.zero_grad(set_to_none=True)
        metrics = tally.metrics(self.ranks)
        metrics["micro_steps"] = sum(len(batch.micro_batches) for batch in batches)
        metrics["lockstep_efficiency"] = step_plan.lockstep_efficiency
        metrics["budget_use"] = step_plan.budget_use(self.token_budget)
        return Update(metrics, step_plan, flops)

    def _flops(self, batch: _MiniBatch, *, scorings: int) -> float:
        """Model FLOPs of an optimizer step, whose log-probs are also taken so often without a gradient."""
        lengths = [len(sample) for sample in batch.running]
        responses = [len(sample.response_ids) for sample in batch.running]
        alive = [sample.teaches(self.bonus) for sample in batch.running]
        backward = [False] * len(alive)
        for micro_step, learns in zip(batch.plan.steps, batch.learns, strict=True):
            for index in (index for share in micro_step for index in share):
                backward[index] = learns
        about = (self.policy.model.config, lengths, responses, alive)

        def flops(scored: bool) -> float:
            return training_flops(*about, backward=backward, scored=scored, adapter=self.adapter)

        return flops(scorings > 0) + (flops(True) - flops(False) if scorings > 1 else 0.0)

    def _penalised(self, batch: _MiniBatch, olds: Sequence[Scores | None], tally: Tally) -> _MiniBatch:
        """The mini-batch with DRPO's penalty in its advantages; a pass of its own says how far the policy has moved."""
        with torch.no_grad(), self.watch("distance"):
            logps = [self.policy.call(score, micro, self.config, self.cut).logp_R for micro in batch.micro_batches]
            old_logps = [old.logp_R for old in olds if old is not None]
            tally.distances.append(distance(old_logps, logps, batch.micro_batches, self.ranks))
        weight = strength(tally.distances[-1], self.beta, self.config.drpo_delta)
        # the same plan, because the same sequences run: `score_all` is on
        return self._laid_out(penalised_samples(batch.samples, weight)) if weight else batch

    def _laid_out(self, samples: Sequence[Sample]) -> _MiniBatch:
        """Plan a mini-batch, and lay this rank's sequences end to end."""
        everything = self.config.score_all or self.bonus
        running = [sample for sample in samples if everything or sample.teaches(self.bonus)]
        with self.watch("plan"):
            teaching = [sample.teaches(self.bonus) for sample in running]
            plan = self._plan(running, teaching) if running else Plan([], [])
            learns = [any(teaching[index] for share in step for index in share) for step in plan.steps]
            shares = _shares(running, plan, self.ranks, self.cut)
            options = {"entropy_bonus": self.bonus, "device": self.policy.device, "backend": self.backend}
            micro_batches = [MicroBatch.of(mine, **options, together=together) for mine, together in shares]
        return _MiniBatch(samples, running, plan, micro_batches, learns)

    def _plan(self, samples: Sequence[Sample], teaching: Sequence[bool]) -> Plan:
        """The plan of all ranks, made on rank 0."""
        if not self.ranks.main:
            return _unpacked(self.ranks.broadcast_arrays(None))
        plan = Plan([], [])
        for kind in (True, False) if self.apart else (None,):
            chosen = [index for index, teaches in enumerate(teaching) if kind in (None, teaches)]
            if chosen:
                lengths = [len(samples[index]) for index in chosen]
                part = pack(lengths, token_budget=self.token_budget, ranks=self.ranks.size, cost=self.cost)
                plan.steps.extend([[chosen[place] for place in share] for share in step] for step in part.steps)
                # without a backward, which costs twice the forward, a third
                plan.costs.extend([cost / 3 if kind is False else cost for cost in costs] for costs in part.costs)
        self.ranks.broadcast_arrays(
            {
                "counts": np.array([[len(share) for share in step] for step in plan.steps], np.int32),
                "members": np.array([index for step in plan.steps for share in step for index in share], np.int32),
                "costs": np.array(plan.costs, np.float64),
            }
        )
        return plan

    def _step(self, batch: _MiniBatch, olds: Sequence[Scores | None], tally: Tally) -> None:
        """One optimizer step: its micro-steps, forward and backward, and AdamW."""
        policy, config, ranks, cut = self.policy, self.config, self.ranks, self.cut
        denominator = loss_denominator(batch.samples, config.aggregation)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=policy.device)
        rows: list[dict[str, torch.Tensor]] = []
        last = max((number for number, learns in enumerate(batch.learns) if learns), default=None)
        old_logps = [None if old is None else old.logp_R for old in olds]
        for number, (micro, old) in enumerate(zip(batch.micro_batches, olds, strict=True)):
            learns = batch.learns[number]
            if ranks.sharded and learns:
                policy.model.set_requires_gradient_sync(number == last or config.sync_every_micro_step)
                policy.model.set_requires_all_reduce(number == last)  # across the replicas of HSDP
            old_logp, offset = old or (None, None)
            with torch.set_grad_enabled(learns):
                result = policy.call(policy_loss, micro, config, old_logp, denominator, self.watch, cut, offset)
            with self.watch("backward"):
                if learns:
                    # FSDP2 averages gradients over the ranks, but the denominator is already everybody's
                    (result.loss * ranks.size).backward()
            if cut is None or cut.place == 0:  # the others have the same loss, of the same tokens
                total += result.loss.detach()
                rows.append(result.metrics)
                tally.mismatch.add(result.logp if old_logp is None else old_logp, micro.rollout_logp_R, micro.mask_R)
        with self.watch("optimizer"):
            if cut is not None and last is not None:
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


def policy_loss(
    model: Any,
    micro: MicroBatch,
    config: Config,
    old_logp: torch.Tensor | None,
    denominator: float,
    watch: Stopwatch,
    cut: HeadCut | None = None,
    offset: torch.Tensor | None = None,
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
            offset=offset,
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


def score(model: Any, micro: MicroBatch, config: Config, cut: HeadCut | None = None) -> Scores:
    """Of the response tokens under the current weights."""
    hidden_RD, weight, bias, place = _head_inputs(model, micro, cut)
    if cut is not None:  # of the log-probs' functions, this one knows parts of a vocabulary
        result = linear_grpo_loss(
            hidden_RD,
            weight,
            micro.target_ids_R,
            torch.zeros_like(micro.rollout_logp_R),
            rollout_logp=micro.rollout_logp_R,
            keep=micro.keep_K[:0],
            temperature=config.temperature,
            bias=bias,
            **place,
        )
        return Scores(result.logp, None)
    options: dict[str, Any] = {"temperature": config.temperature, "bias": bias, **place}
    options |= {"anchor": micro.rollout_logp_R, "return_offset": True}
    return Scores(*linear_logprob(hidden_RD, weight, micro.target_ids_R, **options))


def loss_denominator(samples: Sequence[Sample], aggregation: str) -> float:
    """Divisor of an optimizer step: its counted response tokens (token_mean), or its sequences."""
    if aggregation == "token_mean":
        return max(1, sum(len(sample.response_ids) for sample in samples if sample.counted))
    return len(samples)


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
    """Hidden states, weight and bias in one dtype, and where they lie in the vocabulary or what an adapter adds."""
    hidden_RD = packed_hidden(model, micro.input_ids_N, micro.layout)[micro.rows_R]
    weight, bias = model.lm_head.weight, model.lm_head.bias
    place: dict[str, Any] = {}
    if (share := head_share(model.lm_head, hidden_RD)) is not None:
        place["low_rank"] = share
    if cut is not None:
        hidden_RD = gather_rows(hidden_RD, micro.shares, cut)
        vocab = weight.shape[0]
        weight, bias, start = cut.weight(model)
        place = {"vocab_start": start, "vocab_size": vocab, "group": cut.group}
    return hidden_RD, weight.to(hidden_RD.dtype), None if bias is None else bias.to(hidden_RD.dtype), place
