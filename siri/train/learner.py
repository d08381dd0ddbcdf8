"""The policy update: samples -> packed micro-batches -> fused GRPO loss -> gradient -> AdamW.

The loss is divided by the counts of the whole optimizer step before backward, so neither the packing nor the token
budget nor the order of the samples changes the gradient.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from siri_kernels import GrpoResult, linear_grpo_loss, linear_logprob, merge_metrics

from siri.config import Config
from siri.model.attention import PackedLayout, choose
from siri.model.policy import Policy, packed_hidden
from siri.model.split_head import HeadCut, gather_rows
from siri.packing import Cost, Plan, pack
from siri.packing.flops import sequence_cost, training_flops
from siri.packing.step_plan import StepPlan
from siri.runtime.ranks import ALONE, Arrays, Ranks, full
from siri.runtime.stopwatch import Stopwatch
from siri.train.judge import Attempt
from siri.train.mismatch import Mismatch

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
    """Sequences laid end to end, [N] tokens, and what the loss needs of their R response tokens and S sequences.

    Where the head is cut over several ranks (`split_head`), the loss needs that of the tokens of all of them."""

    input_ids_N: torch.Tensor
    layout: PackedLayout
    rows_R: torch.Tensor
    """Rows of the pack whose hidden state predicts a response token."""
    target_ids_R: torch.Tensor
    rollout_logp_R: torch.Tensor
    mask_R: torch.Tensor
    keep_K: torch.Tensor
    """Rows among the R that may have a gradient, known on the host."""
    keep_lengths_S: torch.Tensor
    """How many of them are each sequence's, on the host: a sequence-level loss is cut between sequences."""
    cu_seqlens: torch.Tensor
    """[S + 1] int32, over the R response tokens."""
    advantages_S: torch.Tensor
    shares: tuple[int, ...]
    """How many of the R are each rank's; one share where the head is whole."""

    @classmethod
    def of(
        cls,
        samples: Sequence[Sample],
        *,
        entropy_bonus: bool,
        device: torch.device,
        backend: str = "sdpa",
        together: Sequence[Sequence[Sample]] = (),
    ) -> "MicroBatch":
        """Lay the samples end to end, for an attention backend. together: the samples of each rank that shares the
        head, these among them."""
        lengths = [len(sample) for sample in samples]
        answers = torch.tensor([len(sample.response_ids) for sample in samples])
        starts = torch.tensor(lengths).cumsum(0) - answers
        offsets_R = torch.arange(int(answers.sum())) - torch.repeat_interleave(answers.cumsum(0) - answers, answers)
        parts = together or (samples,)
        everybody = [sample for part in parts for sample in part]
        responses = torch.tensor([len(sample.response_ids) for sample in everybody])
        counted_S = torch.tensor([sample.counted for sample in everybody])
        alive_S = counted_S & torch.tensor([entropy_bonus or sample.advantage != 0 for sample in everybody])
        tensors = {
            "input_ids_N": _joined((ids for one in samples for ids in (one.prompt_ids, one.response_ids)), np.int64),
            "rows_R": torch.repeat_interleave(starts, answers) + offsets_R - 1,
            "target_ids_R": _joined((sample.response_ids for sample in everybody), np.int64),
            "rollout_logp_R": _joined((sample.rollout_logp for sample in everybody), np.float32),
            "mask_R": torch.repeat_interleave(counted_S, responses),
            "keep_K": torch.repeat_interleave(alive_S, responses).nonzero()[:, 0],
            "cu_seqlens": torch.cat([torch.zeros(1, dtype=torch.int64), responses.cumsum(0)]).to(torch.int32),
            "advantages_S": torch.tensor([sample.advantage for sample in everybody], dtype=torch.float32),
        }
        return cls(
            layout=PackedLayout.of(lengths, device, backend),
            keep_lengths_S=responses * alive_S,
            shares=tuple(sum(len(sample.response_ids) for sample in part) for part in parts),
            **{name: tensor.to(device) for name, tensor in tensors.items()},
        )


def _joined(lists: Iterable[Sequence[Any]], dtype: type) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([np.asarray(one, dtype) for one in lists]))


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
    allows: Callable[[Attempt], bool] | None = None,
) -> dict[str, Any]:
    """One optimizer step for each mini-batch; returns the metrics of the whole rollout batch, the same on every rank,
    with its model FLOPs (training_flops) and its StepPlan (plan). cost: of the plan; None = `sequence_cost`.

    Every rank is given all samples and runs its part of the plan. The first mini-batch is on-policy, so its old
    log-probs are its own and need no pass. Those of the later ones are computed before the first step, under the
    weights that sampled. A step whose gradient is not finite is skipped and counted, and so is one that `allows`, which
    is asked on every rank, does not allow.
    """
    bonus = config.entropy_coef != 0
    cut = HeadCut.of(ranks) if config.vocab_parallel else None
    backend = choose(config.attention, policy.device, policy.model.config, config.checkpointing)
    step_plan, batches, runs, flops = StepPlan(), [], [], 0.0
    for samples in mini_batches:
        run = [sample for sample in samples if config.score_all or bonus or (sample.advantage and sample.counted)]
        with watch("plan"):
            plan = _plan(policy, run, token_budget, ranks, cost) if run else Plan([], [])
            own = _own(run, plan, ranks, cut)
            options = {"entropy_bonus": bonus, "device": policy.device, "backend": backend}
            micro_batches = [MicroBatch.of(mine, **options, together=together) for mine, together in own]
        runs.append((run, plan))
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
            old_logps.append([policy.run(score, micro, config, cut) for micro in micro_batches])

    parts, losses, norms, skipped = [], [], [], 0
    mismatch = Mismatch(config.importance_low, config.importance_cap, policy.device)
    for samples, micro_batches, olds, ran in zip(mini_batches, batches, old_logps, runs, strict=True):
        if not micro_batches:
            continue
        first_part = len(parts)
        denominator = loss_denominator(samples, config.aggregation)
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=policy.device)
        for number, (micro, old_logp) in enumerate(zip(micro_batches, olds, strict=True), start=1):
            if ranks.sharded:
                is_last = number == len(micro_batches)
                policy.model.set_requires_gradient_sync(is_last or config.sync_every_micro_step)
                policy.model.set_requires_all_reduce(is_last)  # across the replicas of HSDP
            result = policy.run(policy_loss, micro, config, old_logp, denominator, watch, cut)
            with watch("backward"):
                # FSDP2 averages gradients over the ranks, but the denominator is already everybody's
                (result.loss * ranks.size).backward()
            if cut is None or cut.place == 0:  # the others have the same loss, of the same tokens
                total += result.loss.detach()
                parts.append(result.metrics)
                mismatch.add(result.logp if old_logp is None else old_logp, micro.rollout_logp_R, micro.mask_R)
        with watch("optimizer"):
            if cut is not None:
                cut.finish(policy.model, ranks)
            norm = full(torch.nn.utils.clip_grad_norm_(policy.model.parameters(), config.grad_clip))
            allowed = True
            if allows is not None:
                number, own = len(losses), (total.item(), norm.item(), parts[first_part:])
                allowed = allows(Attempt(number, *ran, olds, denominator, *own))
            if allowed and math.isfinite(norm.item()):
                optimizer.step()
            else:
                skipped += 1
        losses.append(total.item())
        norms.append(norm.item())
    optimizer.zero_grad(set_to_none=True)

    metrics = _merged(parts, ranks) | mismatch.metrics(ranks)
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
            **place,
        )


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
    return linear_logprob(
        hidden_RD, weight, micro.target_ids_R, temperature=config.temperature, bias=bias, anchor=anchor
    )


def loss_denominator(samples: Sequence[Sample], aggregation: str) -> float:
    """Divisor of an optimizer step: its counted response tokens (token_mean), or its sequences."""
    if aggregation == "token_mean":
        return max(1, sum(len(sample.response_ids) for sample in samples if sample.counted))
    return len(samples)


def _plan(policy: Policy, samples: Sequence[Sample], token_budget: int, ranks: Ranks, cost: Cost | None) -> Plan:
    """The plan of all ranks, made on rank 0."""
    if not ranks.main:
        return _unpacked(ranks.broadcast_arrays(None))
    lengths = [len(sample) for sample in samples]
    cost = cost or sequence_cost(policy.model.config)
    plan = pack(lengths, token_budget=token_budget, ranks=ranks.size, cost=cost)
    ranks.broadcast_arrays(
        {
            "counts": np.array([[len(one) for one in step] for step in plan.steps], np.int32),
            "members": np.array([index for step in plan.steps for one in step for index in one], np.int32),
            "costs": np.array(plan.costs, np.float64),
        }
    )
    return plan


def _unpacked(arrays: Arrays) -> Plan:
    counts = arrays["counts"]
    bins = iter(np.split(arrays["members"], np.cumsum(counts)[:-1]))
    return Plan([[next(bins).tolist() for _ in step] for step in counts], arrays["costs"].tolist())


def _own(
    samples: Sequence[Sample], plan: Plan, ranks: Ranks, cut: HeadCut | None
) -> Iterator[tuple[list[Sample], list[list[Sample]]]]:
    """This rank's samples in each micro-step, and with a cut head those of each rank that shares it."""
    for step in plan.steps:
        # more ranks than sequences: one masked token keeps a rank in step with the others
        idle = Sample(samples[0].prompt_ids[:1], samples[0].response_ids[:1], [0.0], 0.0, counted=False)
        members = [[samples[index] for index in one] or [idle] for one in step]
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
