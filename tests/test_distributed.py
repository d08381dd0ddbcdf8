"""Sharded training over gloo: the same parameters after three steps on 1, 2, 3 and 4 ranks."""

import os
import random
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from siri.distributed import Ranks, full, join_ranks, shard
from siri.update import update_policy
from tests.test_update import config, make_samples
from tests.tiny import tiny_policy

AGGREGATIONS = ("token_mean", "seq_mean", "seq_sum", "seq_mean_fixed")


def train(
    ranks: Ranks, aggregation: str, budget: int, *, tied: bool = False
) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Three rollout batches of two optimizer steps each, of the same samples in an order of their own."""
    policy = tiny_policy(tie_word_embeddings=tied)
    if ranks.size > 1:
        shard(policy.model, ranks, compute_dtype=torch.float32)
    # eps keeps Adam from blowing up the rounding of gradients that are nearly zero
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-2, eps=1e-3)
    metrics = []
    for step in range(3):
        samples = make_samples(step, count=13)
        batches = [samples[:7], samples[7:]]
        batches = [random.Random(budget + step).sample(batch, len(batch)) for batch in batches]
        settings = config(aggregation=aggregation, grad_clip=0.5)
        metrics.append(update_policy(policy, optimizer, batches, settings, token_budget=budget, ranks=ranks))
    return {name: full(value.detach()).clone() for name, value in policy.model.named_parameters()}, metrics


def worker(rank: int, world: int, port: int, results) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)
    everybody, _ = join_ranks(torch.device("cpu"))
    cases = [(size, aggregation, False) for size in (2, 3, 4) for aggregation in AGGREGATIONS] + [
        (2, "token_mean", True)
    ]
    for size, aggregation, tied in cases:
        mesh = dist.DeviceMesh("cpu", list(range(size)))  # a collective: ranks outside take part in making it
        if rank < size:
            budget = {2: 60, 3: 150, 4: 52}[size]
            parameters, metrics = train(Ranks(rank, size, mesh), aggregation, budget, tied=tied)
            if rank == 0:
                results[size, aggregation, tied] = (parameters, metrics)
    assert everybody.gather(rank) == list(range(world))
    assert everybody.broadcast(f"from {rank}") == "from 0"
    covered = [i for part in everybody.gather(everybody.share(10)) for i in range(10)[part]]
    assert covered == list(range(10))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def sharded():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = mp.get_context("spawn").Manager().dict()
    mp.spawn(worker, (4, port, results), nprocs=4)
    return dict(results)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_any_number_of_ranks_learns_the_same(sharded, aggregation):
    reference, alone = train(Ranks(), aggregation, 10**6)
    start = dict(tiny_policy().model.named_parameters())
    moved = max(float((reference[name] - start[name]).abs().max()) for name in reference)
    assert moved > 1e-2, "three steps must change something"
    for size in (2, 3, 4):
        parameters, metrics = sharded[size, aggregation, False]
        for name, value in reference.items():
            torch.testing.assert_close(parameters[name], value, rtol=0, atol=1e-6)
        for one, two in zip(alone, metrics, strict=True):
            assert two["tokens"] == one["tokens"] and two["micro_steps"] >= one["micro_steps"]
            for name in ("loss", "grad_norm", "entropy", "approx_kl", "ratio_max", "mismatch_k3"):
                assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-6), (size, name)


def test_tied_embeddings(sharded):
    reference, _ = train(Ranks(), "token_mean", 10**6, tied=True)
    parameters, _ = sharded[2, "token_mean", True]
    assert "lm_head.weight" not in parameters
    for name, value in reference.items():
        torch.testing.assert_close(parameters[name], value, rtol=0, atol=1e-6)
