"""DRPO's penalty: its gradient through the kernels and through the learner is that of its formula, in fp64."""

import dataclasses

import pytest
import torch
from siri_kernels import linear_grpo_loss

from siri.runtime.ranks import ALONE, Ranks
from siri.runtime.stopwatch import Stopwatch
from siri.train.learner import Learner
from siri.train.micro_batch import MicroBatch
from siri.train.penalty import distance, penalised_samples, strength
from tests.support.tiny import tiny_policy
from tests.unit.train.test_update import CPU, config, make_samples

DRPO = {"advantages": "drpo", "loss": "cispo", "clip_low": 0.0, "clip_high": 0.0, "aggregation": "seq_mean"}


def plain_loss(samples, logps, olds, beta: float, delta: float) -> torch.Tensor:
    """-mean over sequences of A times the mean log-prob, plus beta sg([K - delta]+) K."""
    terms = [
        -sample.advantage * logp.mean() if sample.counted else 0 * logp.sum()
        for sample, logp in zip(samples, logps, strict=True)
    ]
    gaps = torch.cat([old - logp for sample, old, logp in zip(samples, olds, logps, strict=True) if sample.counted])
    far = gaps.mean()
    return torch.stack(terms).mean() + beta * (far.detach() - delta).clamp(min=0) * far


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_through_the_kernel_is_that_of_the_formula(impl, seed):
    samples = make_samples(20 + seed, count=9)
    generator = torch.Generator().manual_seed(seed)
    lengths = [len(sample.response_ids) for sample in samples]
    hidden = torch.randn(sum(lengths), 16, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(96, 16, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.tensor([token for sample in samples for token in sample.response_ids])
    logp = torch.log_softmax(hidden @ weight.T / 0.9, -1).gather(1, targets[:, None])[:, 0]
    old = logp.detach() + 0.2 + 0.1 * torch.randn(sum(lengths), generator=generator, dtype=torch.float64)
    loss = plain_loss(samples, logp.split(lengths), old.split(lengths), 5.0, 0.01)
    wanted = torch.autograd.grad(loss, (hidden, weight))

    micro = MicroBatch.of(samples, entropy_bonus=False, device=CPU)
    far = distance([old], [logp.detach()], [micro], ALONE)
    assert far > 0.1
    penalised = penalised_samples(samples, strength(far, 5.0, 0.01))
    moved = MicroBatch.of(penalised, entropy_bonus=False, device=CPU)
    result = linear_grpo_loss(
        hidden,
        weight,
        targets,
        torch.tensor([sample.advantage for sample in penalised], dtype=torch.float64),
        old_logp=old,
        mask=moved.mask_R,
        cu_seqlens=moved.cu_seqlens,
        keep=moved.keep_K,
        denominator=len(samples),
        temperature=0.9,
        loss="cispo",
        clip_low=0.0,
        clip_high=0.0,
        aggregation="seq_mean",
        impl=impl,
    )
    got = torch.autograd.grad(result.loss, (hidden, weight))
    for gradient, expected in zip(got, wanted, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-13)


def test_there_is_no_penalty_within_delta_and_what_is_not_counted_has_none():
    assert strength(0.01, 1000, 0.02) == strength(-5.0, 1000, 0.02) == 0
    assert strength(0.03, 1000, 0.02) == pytest.approx(10)
    samples = make_samples(3, count=8)
    moved = penalised_samples(samples, 2.0)
    counted = [sample for sample in samples if sample.counted]
    tokens = sum(len(sample.response_ids) for sample in counted)
    for before, after in zip(samples, moved, strict=True):
        more = 2.0 * 8 * len(before.response_ids) / tokens if before.counted else 0.0
        assert after.advantage - before.advantage == pytest.approx(more)


def test_the_distance_is_that_of_all_ranks():
    class Two(Ranks):
        def gather(self, value):
            return [value, (30.0, 10.0)]

    samples = [dataclasses.replace(sample, counted=True) for sample in make_samples(4, count=3)]
    micro = MicroBatch.of(samples, entropy_bonus=False, device=CPU)
    tokens = len(micro.mask_R)
    far = distance([torch.full((tokens,), -1.0)], [torch.full((tokens,), -1.5)], [micro], Two(0, 2))
    assert far == pytest.approx((0.5 * tokens + 30) / (tokens + 10))


@pytest.mark.parametrize("beta", [0.0, 50.0])
def test_the_second_mini_batch_of_an_update_is_penalised(beta):
    """Two steps of SGD beside the formula, in fp64; the first moves the policy away from the second's old log-probs."""
    batches = [make_samples(5, count=6), make_samples(6, count=6)]
    settings = config(**DRPO, drpo_beta=beta, drpo_delta=1e-5, grad_clip=1e9)
    policy = tiny_policy(dtype=torch.float64)
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.05)
    metrics = Learner(policy, optimizer, settings, token_budget=150, watch=Stopwatch(CPU)).update(batches).metrics

    plain = tiny_policy(dtype=torch.float64)

    def logps(samples):
        for sample in samples:
            ids = torch.tensor(sample.prompt_ids + sample.response_ids)
            start = len(sample.prompt_ids)
            logits = plain.model(ids[None], use_cache=False).logits[0, start - 1 : -1] / settings.temperature
            yield torch.log_softmax(logits, -1).gather(1, ids[start:, None])[:, 0]

    olds = [[logp.detach() for logp in logps(samples)] for samples in batches]
    step = torch.optim.SGD(plain.model.parameters(), lr=0.05)
    for samples, old in zip(batches, olds, strict=True):
        step.zero_grad()
        plain_loss(samples, list(logps(samples)), old, beta, 1e-5).backward()
        step.step()
    for parameter, parameter_plain in zip(policy.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(parameter, parameter_plain, rtol=1e-5, atol=1e-7)
    assert ("policy_distance" in metrics) is bool(beta)
    if beta:
        assert metrics["policy_distance"] > 1e-5, "the test needs a penalty"
