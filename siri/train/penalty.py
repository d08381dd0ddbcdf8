"""DRPO's penalty on the distance of the policy from the weights that sampled (arXiv 2510.04474): the later
mini-batches of an update add beta sg([K - delta]+) K to the loss, where K is the mean of old log-prob minus log-prob
over the counted tokens of the mini-batch, and sg a stop of the gradient.

Its gradient is -beta [K - delta]+ / T for the log-prob of each of the T tokens. Under `seq_mean` and ratios that carry
no gradient (cispo with both clips 0) an advantage A of a response of n tokens among S is -A / (S n) a token: the
penalty is beta [K - delta]+ S n / T on top of every counted response's advantage, and needs no kernel of its own.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from siri.runtime.ranks import Ranks
from siri.train.micro_batch import MicroBatch
from siri.train.samples import Sample


def distance(
    old_logps: Sequence[torch.Tensor], logps: Sequence[torch.Tensor], micro_batches: Sequence[MicroBatch], ranks: Ranks
) -> float:
    """K of a mini-batch over all ranks, nats a token; 0 where nothing is counted. Log-probs [R] of each micro-batch."""
    total = tokens = 0.0
    for old_R, logp_R, micro in zip(old_logps, logps, micro_batches, strict=True):
        total += float((old_R.double() - logp_R.double())[micro.mask_R].sum())
        tokens += float(micro.mask_R.sum())
    totals, counts = zip(*ranks.gather((total, tokens)), strict=True)
    return sum(totals) / sum(counts) if sum(counts) else 0.0


def strength(distance_now: float, beta: float, delta: float) -> float:
    """beta [K - delta]+."""
    return beta * max(0.0, distance_now - delta)


def penalised_samples(samples: Sequence[Sample], strength: float) -> list[Sample]:
    """The samples of a whole mini-batch with the penalty in their advantages."""
    unit = strength * len(samples) / max(1, sum(len(sample.response_ids) for sample in samples if sample.counted))
    return [
        replace(sample, advantage=sample.advantage + unit * len(sample.response_ids)) if sample.counted else sample
        for sample in samples
    ]
