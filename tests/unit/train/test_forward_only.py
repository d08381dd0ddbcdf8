"""Responses without an advantage, run for their metrics alone: forward only, and the update is as without them."""

import dataclasses

import numpy as np
import pytest
import torch

import siri.train.learner
from siri.model.fsdp import full, shard
from siri.model.policy import Policy
from siri.packing.flops import forward_flops, sequence_cost
from siri.runtime.ranks import ALONE, Ranks, leave_ranks
from siri.runtime.stopwatch import Stopwatch
from siri.train.learner import Learner
from tests.runs.test_distributed import join, spawn
from tests.support.tiny import tiny_policy
from tests.unit.train.test_update import config, make_samples

CPU = torch.device("cpu")
BATCHES = [make_samples(1), make_samples(2), make_samples(3)]


def updated(batches, *, apart: bool, ranks: Ranks = ALONE, tied: bool = False, **settings):
    """(parameters after the update with SGD of rate 1, the update), as on a GPU where `apart`."""
    policy = tiny_policy(tie_word_embeddings=tied, vocab_size=97)
    if ranks.size > 1:
        shard(policy.model, ranks, compute_dtype=torch.float32, vocab_parallel=settings.get("vocab_parallel", False))
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=1.0)
    watch = Stopwatch(CPU)
    learner = Learner(policy, optimizer, config(**settings), token_budget=150, watch=watch, ranks=ranks)
    learner.apart = apart
    update = learner.update(batches)
    return {name: full(value.detach()).clone() for name, value in policy.model.named_parameters()}, update


def teaching(samples) -> list:
    return [sample for sample in samples if sample.teaches(False)]


@pytest.mark.parametrize("loss", ["grpo", "gspo", "cispo"])
@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean_fixed"])
def test_the_update_has_the_bits_of_one_without_them(loss, aggregation):
    """Old log-probs of the later mini-batches included; the metrics are of every token all the same."""
    settings = {"loss": loss, "aggregation": aggregation, "grad_clip": 0.3}
    with_them, update = updated(BATCHES, apart=True, **settings)
    without, less = updated(BATCHES, apart=False, score_all=False, **settings)
    assert all(torch.equal(with_them[name], tensor) for name, tensor in without.items())
    for name in ("loss", "grad_norm"):
        assert update.metrics[name] == less.metrics[name], name
    counted = [sample for batch in BATCHES for sample in batch if sample.counted]
    assert update.metrics["tokens"] == sum(len(sample.response_ids) for sample in counted) > less.metrics["tokens"]
    mixed, other = updated(BATCHES, apart=False, **settings)
    for name in ("entropy", "approx_kl", "mismatch_abs_mean"):
        assert update.metrics[name] == pytest.approx(other.metrics[name], rel=1e-4), name
    assert all(torch.allclose(with_them[name], tensor, rtol=0, atol=1e-5) for name, tensor in mixed.items())


def test_they_run_without_a_graph_and_last(monkeypatch):
    passes, real = [], siri.train.learner.packed_hidden

    def recorded(model, input_ids_N, layout):
        passes.append((torch.is_grad_enabled(), len(input_ids_N)))
        return real(model, input_ids_N, layout)

    monkeypatch.setattr(siri.train.learner, "packed_hidden", recorded)
    updated(BATCHES[:1], apart=True)
    taught = sum(len(sample) for sample in teaching(BATCHES[0]))
    assert sum(tokens for graph, tokens in passes if graph) == taught
    assert sum(tokens for graph, tokens in passes if not graph) == sum(map(len, BATCHES[0])) - taught > 0
    graphs = [graph for graph, _ in passes]
    assert graphs == sorted(graphs, reverse=True), "memory peaks at once"


def test_a_micro_step_in_which_nobody_learns_has_no_backward_under_any_plan(monkeypatch):
    """As on a CPU, where the plan mixes them: the same bits as with a backward through all of it."""
    draw = [dataclasses.replace(s, advantage=0.0) if i % 8 else s for i, s in enumerate(make_samples(4, count=40))]
    less, update = updated([draw], apart=False)
    real, idle = Learner._laid_out, []

    def laid_out(self, samples):
        batch = real(self, samples)
        idle.extend(learns for learns in batch.learns if not learns)
        return dataclasses.replace(batch, learns=[True] * len(batch.learns))

    monkeypatch.setattr(Learner, "_laid_out", laid_out)
    whole, other = updated([draw], apart=False)
    assert idle, "no micro-step without anything to learn: this test shows nothing"
    assert all(torch.equal(less[name], tensor) for name, tensor in whole.items())
    different = {name for name in update.metrics if update.metrics[name] != other.metrics[name]}
    assert different <= {name for name, value in update.metrics.items() if value != value}, different


def test_what_does_not_run_is_not_counted():
    _, update = updated(BATCHES[:1], apart=True)
    model_config = tiny_policy(vocab_size=97).model.config
    layers, head, attention = forward_flops(model_config)
    expected = 0.0
    for sample in BATCHES[0]:
        passes = 3 if sample.teaches(False) else 1
        expected += passes * (layers * len(sample) + attention * len(sample) ** 2 + head * len(sample.response_ids))
    assert update.flops == pytest.approx(expected)
    # nor in the plan: the micro-steps are of those that teach, then of the others
    cost, taught = sequence_cost(model_config), sum(map(len, teaching(BATCHES[0])))
    for (lengths,), (planned,) in zip(update.plan.lengths, update.plan.costs, strict=True):
        assert planned == pytest.approx(float(cost(np.array(lengths, float)).sum()) / (1 if taught > 0 else 3))
        taught -= sum(lengths)


def test_a_mini_batch_without_any_advantage_is_run_and_taken_no_step_from():
    even = [dataclasses.replace(sample, advantage=0.0) for sample in BATCHES[0]]
    before = {name: value.detach().clone() for name, value in tiny_policy(vocab_size=97).model.named_parameters()}
    after, update = updated([even], apart=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert update.metrics["micro_steps"] > 1 and update.metrics["entropy"] > 0 and update.metrics["grad_norm"] == 0
    assert update.metrics["skipped_updates"] == 0


def test_drpo_changes_who_teaches_under_one_plan(monkeypatch):
    monkeypatch.setattr(Policy, "device", property(lambda self: torch.device("cuda", 0)))
    monkeypatch.setattr(siri.train.learner, "select_backend", lambda *_: "varlen")
    settings = {"advantages": "drpo", "loss": "cispo", "clip_low": 0, "clip_high": 0, "aggregation": "seq_mean"}
    for beta, apart in ((0.1, False), (0.0, True)):
        options = {"token_budget": 99, "watch": Stopwatch(CPU)}
        assert Learner(tiny_policy(), None, config(**settings, drpo_beta=beta), **options).apart is apart


def on_ranks(rank: int, world: int, port: int, results) -> None:
    everybody = join(rank, world, port)
    for cut in (False, True):
        for tied in (False, True):
            options = {"ranks": everybody, "tied": tied, "vocab_parallel": cut}
            learnt = [
                updated(BATCHES, apart=True, **options)[0],
                updated(BATCHES, apart=False, score_all=False, **options)[0],
            ]
            if rank == 0:
                results[cut, tied] = learnt
    leave_ranks()


def test_on_two_ranks_with_a_cut_head_or_a_whole_one():
    results = spawn(on_ranks, 2)
    assert len(results) == 4
    for with_them, without in results.values():
        assert all(torch.equal(with_them[name], tensor) for name, tensor in without.items())
