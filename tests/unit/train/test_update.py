"""The policy update: the gradient does not depend on packing, order or budget, and equals the plain formula."""

import dataclasses
import random

import pytest
import torch

import siri.train.learner
from siri.config import Config
from siri.rollout import Request
from siri.rollout.local import LocalRollout
from siri.runtime.stopwatch import Stopwatch
from siri.train.learner import loss_denominator, policy_loss
from siri.train.micro_batch import MicroBatch
from siri.train.samples import Sample
from tests.support.tiny import VOCAB, tiny_policy
from tests.support.update import update_policy

CPU = torch.device("cpu")


def make_samples(seed: int, count: int = 24, longest: int = 40) -> list[Sample]:
    draw = random.Random(seed)
    samples = []
    for index in range(count):
        prompt = [draw.randrange(3, VOCAB) for _ in range(draw.randint(1, 12))]
        response = [draw.randrange(3, VOCAB) for _ in range(draw.randint(1, longest))]
        logp = [-draw.uniform(0.5, 6) for _ in response]
        advantage = 0.0 if index % 5 == 0 else draw.uniform(-2, 2)
        samples.append(Sample(prompt, response, logp, advantage, counted=index % 7 != 3))
    return samples


def config(**settings) -> Config:
    return Config(**{"temperature": 0.9, "lr": 1e-3, "l_max": 64, "l_min": 8, **settings})


def updated(batches, settings: Config, budget: int, **options) -> tuple[list[torch.Tensor], dict]:
    """Parameters after one update with SGD of rate 1 and no clipping: the negative gradient, added."""
    policy = tiny_policy(**options)
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=1.0)
    metrics = update_policy(policy, optimizer, batches, settings, watch=Stopwatch(CPU), token_budget=budget)
    return [parameter.detach().clone() for parameter in policy.model.parameters()], metrics


@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean", "seq_sum", "seq_mean_fixed"])
@pytest.mark.parametrize("loss", ["grpo", "gspo", "cispo"])
def test_any_order_and_budget_give_the_same_gradient(aggregation, loss):
    # The second mini-batch meets weights that the first has moved, so its ratios are off 1 and some are clipped.
    batches = [make_samples(1), make_samples(2)]
    settings = config(aggregation=aggregation, loss=loss, grad_clip=0.3, clip_low=0.02, clip_high=0.02)
    reference, metrics = updated(batches, settings, 10**6)
    assert metrics["micro_steps"] == 2 and metrics["grad_norm"] > 1e-3
    assert metrics["clip_high_fraction"] + metrics["clip_low_fraction"] > 0.01, "the test needs clipped tokens"
    for seed, budget in ((2, 60), (3, 150), (4, 400)):
        shuffled = [random.Random(seed).sample(batch, len(batch)) for batch in batches]
        got, other = updated(shuffled, settings, budget)
        assert other["micro_steps"] > 2
        scale = max(float(parameter.abs().max()) for parameter in reference)
        for expected, gradient in zip(reference, got, strict=True):
            torch.testing.assert_close(expected, gradient, rtol=0, atol=1e-6 * max(scale, 1))
        for name in ("loss", "entropy", "approx_kl", "clip_high_fraction"):
            assert other[name] == pytest.approx(metrics[name], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean"])
def test_gradient_equals_the_plain_formula_one_by_one(aggregation):
    """No packing, no fused loss: autograd through log_softmax of each sequence alone, with old log-probs off-policy."""
    samples = make_samples(5, count=10)
    settings = config(aggregation=aggregation, clip_low=0.2, clip_high=0.28)
    policy = tiny_policy(dtype=torch.float64)
    old = tiny_policy(dtype=torch.float64, seed=1)
    total = torch.zeros((), dtype=torch.float64)
    logps = []
    for sample in samples:
        ids = torch.tensor(sample.prompt_ids + sample.response_ids)
        start = len(sample.prompt_ids)

        def score(model, ids=ids, start=start):
            logits = model(ids[None], use_cache=False).logits[0, start - 1 : -1] / settings.temperature
            return torch.log_softmax(logits, -1).gather(1, ids[start:, None])[:, 0]

        new = score(policy.model)
        logps.append(new.detach() + 0.3 * (score(old.model).detach() - new.detach()).clamp(-1, 1))
        ratio = (new - logps[-1]).exp()
        term = -torch.minimum(ratio * sample.advantage, ratio.clamp(0.8, 1.28) * sample.advantage)
        if sample.counted:
            total = total + (term.sum() if aggregation == "token_mean" else term.mean())
    (total / loss_denominator(samples, aggregation)).backward()
    plain = [parameter.grad.clone() for parameter in policy.model.parameters()]

    policy.model.zero_grad()
    micro = MicroBatch.of(samples, entropy_bonus=False, device=CPU)
    result = policy_loss(
        policy.model, micro, settings, torch.cat(logps), loss_denominator(samples, aggregation), Stopwatch(CPU)
    )
    result.loss.backward()
    assert float(result.metrics["clip_high_fraction"]) > 0, "the test needs clipped tokens"
    assert float(result.loss.detach()) == pytest.approx(
        float(total.detach()) / loss_denominator(samples, aggregation), rel=1e-6
    )
    for gradient, parameter in zip(plain, policy.model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-7)


def test_later_mini_batches_are_measured_against_the_weights_that_sampled():
    """With a learning rate of zero every ratio is 1; with a large one only the second mini-batch has moved."""
    samples = make_samples(6)
    _, metrics = updated([samples[:12], samples[12:]], config(), 10**6)
    policy = tiny_policy()
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.0)
    unmoved = update_policy(
        policy, optimizer, [samples[:12], samples[12:]], config(), watch=Stopwatch(CPU), token_budget=10**6
    )
    assert unmoved["ratio_max"] == pytest.approx(1, abs=1e-5) and unmoved["approx_kl"] < 1e-9
    assert metrics["approx_kl"] > 1e-6 and metrics["ratio_max"] > 1.001
    _, alone = updated([samples], config(), 10**6)
    assert alone["ratio_max"] == 1.0 and alone["approx_kl"] == 0.0


def test_masked_and_zero_advantage_responses_leave_no_gradient():
    samples = [dataclasses.replace(sample, advantage=0.0, counted=True) for sample in make_samples(7)]
    before = [parameter.detach().clone() for parameter in tiny_policy().model.parameters()]
    after, metrics = updated([samples], config(), 200)
    assert all(torch.equal(weight_before, weight) for weight_before, weight in zip(before, after, strict=True))
    assert metrics["entropy"] > 0, "they still count in the metrics"
    masked = [dataclasses.replace(sample, counted=False) for sample in make_samples(7)]
    after, metrics = updated([masked], config(), 200)
    assert all(torch.equal(weight_before, weight) for weight_before, weight in zip(before, after, strict=True))


def test_a_pass_of_old_log_probs_hands_its_offsets_to_the_loss(monkeypatch):
    """Of each micro-batch of a later mini-batch, and nothing to those of the first."""
    made, given = [], []
    loss, logprob = siri.train.learner.linear_grpo_loss, siri.train.learner.linear_logprob

    def scoring(*args, **options):
        made.append(logprob(*args, **options))
        return made[-1]

    def losing(*args, **options):
        given.append((options["old_logp"], options["offset"]))
        return loss(*args, **options)

    monkeypatch.setattr(siri.train.learner, "linear_logprob", scoring)
    monkeypatch.setattr(siri.train.learner, "linear_grpo_loss", losing)
    samples = make_samples(3)
    updated([samples[:12], samples[12:]], config(score_all=True), 150)
    without, later = given[: -len(made)], given[-len(made) :]
    assert len(made) > 1 and without and all(old is None and offset is None for old, offset in without)
    for (old_logp, offset), (logp, measured) in zip(later, made, strict=True):
        assert torch.equal(old_logp, logp) and torch.equal(offset, measured) and offset.isfinite().all()


@pytest.mark.parametrize("bonus", [0.0, 0.01])
def test_the_plan_tells_the_head_which_rows_have_gradients(monkeypatch, bonus):
    """On the host, sequence by sequence; and no pass for old log-probs but those of later mini-batches, before any
    step."""
    events, calls, step = [], [], torch.optim.SGD.step
    for name, function in (("loss", siri.train.learner.linear_grpo_loss), ("score", siri.train.learner.linear_logprob)):

        def recorded(*args, name=name, function=function, **options):
            events.append(name)
            calls.append((name, args, options))
            return function(*args, **options)

        monkeypatch.setattr(siri.train.learner, function.__name__, recorded)
    monkeypatch.setattr(torch.optim.SGD, "step", lambda *args: events.append("step") or step(*args))
    settings = config(loss="gspo", score_all=True, entropy_coef=bonus)
    updated([make_samples(3), make_samples(4)], settings, 150)
    assert [name for i, name in enumerate(events) if name != events[i - 1]] == ["score", "loss", "step", "loss", "step"]
    dropped = 0
    for name, (_, _, _, *advantages_S), options in calls:
        if name == "score":
            continue
        counts = options["cu_seqlens"].diff().long()
        useful = options["mask"] & torch.repeat_interleave((advantages_S[0] != 0) | bool(bonus), counts)
        assert torch.equal(options["keep"], useful.nonzero()[:, 0]) and options["keep_lengths"].device == CPU
        sums = torch.zeros_like(counts).index_add_(
            0, torch.repeat_interleave(torch.arange(len(counts)), counts), useful * 1
        )
        assert torch.equal(options["keep_lengths"], sums)
        dropped += int((~useful).sum())
    assert dropped > 50


@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean"])
def test_score_all_off_changes_the_work_and_not_the_update(aggregation):
    samples = make_samples(8)
    full, _ = updated([samples], config(aggregation=aggregation), 10**6)
    less, metrics = updated([samples], config(aggregation=aggregation, score_all=False), 10**6)
    for weight, weight_of_less in zip(full, less, strict=True):
        torch.testing.assert_close(weight, weight_of_less, rtol=0, atol=1e-6)
    alive = sum(len(sample.response_ids) for sample in samples if sample.advantage and sample.counted)
    assert metrics["tokens"] == alive


@pytest.mark.parametrize("bonus", [0.0, 0.01])
@pytest.mark.parametrize("idle", [{"advantage": 0.0, "counted": True}, {"counted": False}], ids=["even", "masked"])
def test_a_mini_batch_that_teaches_nothing_takes_no_step(idle, bonus):
    """AdamW has momentum and decay, which move the weights under a gradient of zero."""
    batches = [make_samples(8), [dataclasses.replace(sample, **idle) for sample in make_samples(9)], make_samples(10)]
    taught = len(batches) - (bonus == 0 or not idle["counted"])
    weights, moments = [], []
    for score_all in (True, False):
        policy = tiny_policy(dtype=torch.float64)  # AdamW makes much of a last bit
        optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-2, weight_decay=0.1)
        settings = config(score_all=score_all, entropy_coef=bonus)
        metrics = update_policy(policy, optimizer, batches, settings, watch=Stopwatch(CPU), token_budget=10**6)
        weights.append([parameter.detach().clone() for parameter in policy.model.parameters()])
        moments.append([state["exp_avg"] for state in optimizer.state.values()])
        assert {int(state["step"]) for state in optimizer.state.values()} == {taught}
        assert metrics["skipped_updates"] == 0, "those are faults"
    for tensor, tensor_expected in zip(weights[0] + moments[0], weights[1] + moments[1], strict=True):
        torch.testing.assert_close(tensor, tensor_expected, rtol=0, atol=1e-9)


def test_entropy_bonus_reaches_responses_without_advantage():
    samples = [dataclasses.replace(sample, advantage=0.0, counted=True) for sample in make_samples(9)]
    _, metrics = updated([samples], config(entropy_coef=0.1, score_all=False), 300)
    assert metrics["grad_norm"] > 0
    assert metrics["loss"] == pytest.approx(-0.1 * metrics["entropy"], rel=1e-5)


def test_gradient_clipping_and_not_finite_gradients():
    policy = tiny_policy()
    before = [parameter.detach().clone() for parameter in policy.model.parameters()]
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=1.0)
    metrics = update_policy(
        policy, optimizer, [make_samples(10)], config(grad_clip=1e-3), watch=Stopwatch(CPU), token_budget=500
    )
    moved = (
        sum(
            float(((weight_before - weight.detach()) ** 2).sum())
            for weight_before, weight in zip(before, policy.model.parameters(), strict=True)
        )
        ** 0.5
    )
    assert metrics["grad_norm"] > 1e-2 and moved == pytest.approx(1e-3, rel=1e-2)

    with torch.no_grad():
        policy.model.lm_head.weight[3, 0] = float("nan")
    kept = [parameter.detach().clone() for parameter in policy.model.parameters()]
    metrics = update_policy(policy, optimizer, [make_samples(10)], config(), watch=Stopwatch(CPU), token_budget=500)
    assert metrics["skipped_updates"] == 1
    for weight_before, weight in zip(kept, policy.model.parameters(), strict=True):
        torch.testing.assert_close(weight_before, weight.detach(), equal_nan=True, rtol=0, atol=0)


def test_engine_and_trainer_agree_on_log_probs():
    """The mismatch metrics of a real rollout are rounding noise."""
    policy = tiny_policy()
    engine = LocalRollout(policy, cache_tokens=10**6)
    answers = engine.generate([Request([5, 6, 7 + i], 30, 3) for i in range(4)], temperature=0.9, seed=0)
    samples = [
        Sample([5, 6, 7 + i], completion.token_ids, completion.logp, 0.5)
        for i, group in enumerate(answers)
        for completion in group
    ]
    metrics = update_policy(
        policy,
        torch.optim.SGD(policy.model.parameters(), lr=0.1),
        [samples],
        config(),
        watch=Stopwatch(CPU),
        token_budget=99,
    )
    assert metrics["mismatch_max"] < 1e-4 and abs(metrics["mismatch_k1"]) < 1e-5


def test_a_step_without_anything_to_train_has_every_metric():
    """Dynamic sampling may find no group; the row still has the keys that loggers and reports look for."""
    policy = tiny_policy()
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=1.0)
    metrics = update_policy(policy, optimizer, [], config(), watch=Stopwatch(CPU), token_budget=99)
    assert {"loss", "entropy", "grad_norm", "clip_low_fraction", "clip_high_fraction", "approx_kl"} <= metrics.keys()
    assert metrics["micro_steps"] == 0
