"""The policy update: samples -> packed micro-batches -> fused GRPO loss -> gradient -> AdamW.

The loss is divided by the counts of the whole optimizer step before backward, so neither the packing nor the token
budget nor the order of the samples changes the gradient.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from siri_kernels import GrpoResult, linear_grpo_loss, linear_logprob, merge_metrics

from siri.attention import PackedLayout
from siri.config import Config
from siri.cost import sequence_cost, training_flops
from siri.distributed import ALONE, Ranks, full
from siri.model import Policy, packed_hidden
from siri.packing import Cost, Plan, pack
from siri.step_plan import StepPlan
from siri.timing import Stopwatch

ALWAYS = ("entropy_mean", "clip_low_fraction", "clip_high_fraction", "approx_kl", "ratio_max")
"""Metrics that every step has, null where nothing was trained on."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One response, ready to train on."""

    prompt_ids: list[int]
    response_ids: list[int]
    rollout_logp: list[float]
    advantage: float
    counted: bool = True
    """False keeps the response out of the loss (overlong = mask)."""

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Sequences laid end to end, [N] tokens, and what the loss needs of their R response tokens and S sequences."""

    input_ids_N: torch.Tensor
    layout: PackedLayout
    rows_R: torch.Tensor
    """Rows of the pack whose hidden state predicts a response token."""
    target_ids_R: torch.Tensor
    rollout_logp_R: torch.Tensor
    mask_R: torch.Tensor
    keep_K: torch.Tensor
    """Rows among the R that may have a gradient, known on the host."""
    cu_seqlens: torch.Tensor
    """[S + 1] int32, over the R response tokens."""
    advantages_S: torch.Tensor

    @classmethod
    def of(cls, samples: Sequence[Sample], *, entropy_bonus: bool, device: torch.device) -> "MicroBatch":
        """Lay the samples end to end."""
        lengths = [len(sample) for sample in samples]
        answers = torch.tensor([len(sample.response_ids) for sample in samples])
        starts = torch.tensor(lengths).cumsum(0) - answers
        offsets_R = torch.arange(int(answers.sum())) - torch.repeat_interleave(answers.cumsum(0) - answers, answers)
        rows_R = torch.repeat_interleave(starts, answers) + offsets_R - 1
        ids_N = torch.tensor([token for sample in samples for token in (*sample.prompt_ids, *sample.response_ids)])
        counted_S = torch.tensor([sample.counted for sample in samples])
        alive_S = counted_S & torch.tensor([entropy_bonus or sample.advantage != 0 for sample in samples])
        tensors = {
            "input_ids_N": ids_N,
            "rows_R": rows_R,
            "target_ids_R": ids_N[rows_R + 1],
            "rollout_logp_R": torch.tensor([logp for sample in samples for logp in sample.rollout_logp]),
            "mask_R": torch.repeat_interleave(counted_S, answers),
            "keep_K": torch.repeat_interleave(alive_S, answers).nonzero()[:, 0],
            "cu_seqlens": torch.cat([torch.zeros(1), answers.cumsum(0)]).to(torch.int32),
            "advantages_S": torch.tensor([sample.advantage for sample in samples], dtype=torch.float32),
        }
        return cls(layout=PackedLayout.of(lengths, device), **{k: tensor.to(device) for k, tensor in tensors.items()})


def update_policy(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    mini_batches: Sequence[Sequence[Sample]],
    config: Config,
    *,
    token_budget: int,
    watch: Stopwatch,
    ranks: Ranks = ALONE,
    cost: Cost | None = None,
) -> dict[str, Any]:
    """One optimizer step for each mini-batch; returns the metrics of the whole rollout batch, the same on every rank,
    with its model FLOPs (training_flops) and its StepPlan (plan). cost: of the plan; None = `sequence_cost`.

    Every rank is given all samples and runs its part of the plan. The first mini-batch is on-policy, so its old
    log-probs are its own and need no pass. Those of the later ones are computed before the first step, under the
    weights that sampled. A step whose gradient is not finite is skipped and counted.
    """
    bonus = config.entropy_coef != 0
    step_plan, batches, flops = StepPlan(), [], 0.0
    for samples in mini_batches:
        run = [sample for sample in samples if config.score_all or bonus or (sample.advantage and sample.counted)]
        with watch("plan"):
            plan, micro_batches = _pack(policy, run, token_budget, bonus, ranks, cost) if run else (Plan([], []), [])
        step_plan.add(plan, [len(sample) for sample in run])
        flops += training_flops(
            policy.model.config,
            [len(sample) for sample in run],
            [len(sample.response_ids) for sample in run],
            [sample.counted and (bonus or sample.advantage != 0) for sample in run],
            scored=bool(batches),
        )
        batches.append(micro_batches)
    old_logps: list[list[torch.Tensor | None]] = [[None] * len(batches[0])] if batches else []
    for micro_batches in batches[1:]:
        with torch.no_grad(), watch("old_logp"):
            old_logps.append([policy.run(score, micro, config) for micro in micro_batches])

    parts, losses, norms, skipped = [], [], [], 0
    for samples, micro_batches, olds in zip(mini_batches, batches, old_logps, strict=True):
        if not micro_batches:
            continue
        denominator = loss_denominator(samples, config.aggregation)
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=policy.device)
        for number, (micro, old_logp) in enumerate(zip(micro_batches, olds, strict=True), start=1):
            if ranks.sharded:
                policy.model.set_requires_gradient_sync(number == len(micro_batches))
            result = policy.run(policy_loss, micro, config, old_logp, denominator, watch)
            with watch("backward"):
                # FSDP2 averages gradients over the ranks, but the denominator is already everybody's
                (result.loss * ranks.size).backward()
            total += result.loss.detach()
            parts.append(result.metrics)
        with watch("optimizer"):
            norm = full(torch.nn.utils.clip_grad_norm_(policy.model.parameters(), config.grad_clip))
            if math.isfinite(norm.item()):
                optimizer.step()
            else:
                skipped += 1
        losses.append(total.item())
        norms.append(norm.item())
    optimizer.zero_grad(set_to_none=True)

    metrics = _merged(parts, ranks)
    metrics["loss"] = _mean([sum(shares) for shares in zip(*ranks.gather(losses), strict=True)])
    metrics["grad_norm"] = _mean(norms)
    metrics["skipped_updates"] = skipped
    metrics["micro_steps"] = sum(map(len, batches))
    metrics["lockstep_efficiency"] = step_plan.lockstep_efficiency
    metrics["budget_use"] = step_plan.budget_use(token_budget)
    return metrics | {"training_flops": flops, "plan": step_plan}


def policy_loss(
    model: Any,
    micro: MicroBatch,
    config: Config,
    old_logp: torch.Tensor | None,
    denominator: float,
    watch: Stopwatch,
) -> GrpoResult:
    """Loss of one micro-batch; the losses of a step's micro-batches, over all ranks, add up to the loss of the step."""
    with watch("forward"):
        hidden_RD, weight, bias = _head_inputs(model, micro)
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
            loss=config.loss,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            dual_clip=config.dual_clip,
            importance=config.importance,
            importance_low=config.importance_low,
            importance_cap=config.importance_cap,
            aggregation=config.aggregation,
            denominator=denominator,
            fixed_length=config.length_schedule().longest if config.aggregation == "seq_mean_fixed" else None,
            temperature=config.temperature,
            bias=bias,
            entropy_coef=config.entropy_coef,
        )


def score(model: Any, micro: MicroBatch, config: Config) -> torch.Tensor:
    """Log-probs [R] of the response tokens under the current weights."""
    hidden_RD, weight, bias = _head_inputs(model, micro)
    # the anchor of the loss's own pass: the same kernel with the same anchor gives a ratio of exactly 1
    anchor = micro.rollout_logp_R
    return linear_logprob(
        hidden_RD, weight, micro.target_ids_R, temperature=config.temperature, bias=bias, anchor=anchor
    )


def loss_denominator(samples: Sequence[Sample], aggregation: str) -> float:
    """Divisor of an optimizer step: its counted response tokens (token_mean), or its sequences."""
    if aggregation == "token_mean":
        return max(1, sum(len(sample.response_ids) for sample in samples if sample.counted))
    return len(samples)


def _pack(
    policy: Policy, samples: Sequence[Sample], token_budget: int, bonus: bool, ranks: Ranks, cost: Cost | None
) -> tuple[Plan, list[MicroBatch]]:
    """The plan of all ranks, made on rank 0, and this rank's micro-batches."""
    plan = None
    if ranks.main:
        lengths = [len(sample) for sample in samples]
        cost = cost or sequence_cost(policy.model.config)
        plan = pack(lengths, token_budget=token_budget, ranks=ranks.size, cost=cost)
    plan = ranks.broadcast(plan)
    # more ranks than sequences: one masked token keeps a rank in step with the others
    idle = Sample(samples[0].prompt_ids[:1], samples[0].response_ids[:1], [0.0], 0.0, counted=False)
    own = ([samples[i] for i in step[ranks.rank]] or [idle] for step in plan.steps)
    return plan, [MicroBatch.of(members, entropy_bonus=bonus, device=policy.device) for members in own]


def _head_inputs(model: Any, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    hidden_RD = packed_hidden(model, micro.input_ids_N, micro.layout)[micro.rows_R]
    bias = None if model.lm_head.bias is None else model.lm_head.bias.to(hidden_RD.dtype)
    return hidden_RD, model.lm_head.weight.to(hidden_RD.dtype), bias


def _merged(parts: Sequence[dict[str, torch.Tensor]], ranks: Ranks) -> dict[str, float]:
    """Token-weighted metrics over all micro-batches of all ranks."""
    own = {name: value.item() for name, value in merge_metrics(parts).items()} if parts else {}
    everybody = [
        {name: torch.tensor(value, dtype=torch.float64) for name, value in one.items()}
        for one in ranks.gather(own)
        if one
    ]
    metrics = dict.fromkeys(ALWAYS, math.nan)
    if everybody:
        metrics |= {name: value.item() for name, value in merge_metrics(everybody).items()}
    metrics["entropy"] = metrics.pop("entropy_mean", math.nan)
    return metrics


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
