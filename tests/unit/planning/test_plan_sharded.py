"""The plan's weights, gradients and moments against the tensors of FSDP2, two replicas of two shards over gloo."""

import os

import pytest
import torch

from siri.config import Config
from siri.model.attention import PackedLayout
from siri.model.fsdp import shard
from siri.model.policy import packed_hidden
from siri.planning.memory_plan import Machine, memory_plan
from siri.runtime.ranks import join_ranks, leave_ranks
from tests.runs.test_distributed import join, spawn, train
from tests.support.tiny import tiny_model, tiny_policy

VOCAB = 97  # cut unevenly


def local_bytes(tensors) -> int:
    return sum(
        (tensor.to_local() if hasattr(tensor, "to_local") else tensor).nbytes
        for tensor in tensors
        if tensor is not None
    )


def accumulated(model) -> list[torch.Tensor]:
    """The gradients that FSDP2 holds back from a reduction."""
    states = [module._get_fsdp_state() for module in model.modules() if hasattr(module, "_get_fsdp_state")]
    groups = [group for s in states for group in getattr(s, "_fsdp_param_groups", None) or [s._fsdp_param_group]]
    held = [parameter.unsharded_accumulated_grad for group in groups if group for parameter in group.fsdp_params]
    return [parameter for parameter in held if parameter is not None]


def backward(policy) -> None:
    def loss(model):
        ids = torch.arange(3, 19)
        hidden = packed_hidden(model, ids, PackedLayout.of([9, 7]))
        return (hidden @ model.lm_head.weight.T.to(hidden.dtype)).float().logsumexp(-1).sum()

    policy.call(loss).backward()


def measure(hybrid) -> dict[str, int]:
    policy = tiny_policy(vocab_size=VOCAB)
    shard(policy.model, hybrid, compute_dtype=torch.bfloat16)
    parameters = list(policy.model.parameters())
    optimizer = torch.optim.AdamW(parameters)
    policy.model.set_requires_gradient_sync(False)
    backward(policy)
    bytes_held = {"whole": sum(gradient.nbytes for gradient in accumulated(policy.model))}
    bytes_held["shards before"] = local_bytes(parameter.grad for parameter in parameters)
    policy.model.set_requires_gradient_sync(True)
    backward(policy)
    bytes_held["left"] = sum(gradient.nbytes for gradient in accumulated(policy.model))
    optimizer.step()
    bytes_held["weights"] = local_bytes(parameters)
    bytes_held["gradients"] = local_bytes(parameter.grad for parameter in parameters)
    states = optimizer.state.values()
    bytes_held["optimizer"] = local_bytes(state[name] for state in states for name in ("exp_avg", "exp_avg_sq"))
    optimizer.zero_grad()
    policy.model.set_requires_gradient_sync(True)
    policy.model.set_requires_all_reduce(False)
    backward(policy)
    bytes_held["whole, synced"] = sum(gradient.nbytes for gradient in accumulated(policy.model))
    return bytes_held


def worker(rank: int, world: int, port: int, results) -> None:
    join(rank, world, port)
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    hybrid, _ = join_ranks(torch.device("cpu"))
    bytes_held = measure(hybrid)
    often, _ = train(hybrid, "token_mean", 60, sync_every_micro_step=True)
    once, _ = train(hybrid, "token_mean", 60)
    if rank == 0:
        results["bytes"], results["often"], results["once"] = bytes_held, often, once
    leave_ranks()


@pytest.fixture(scope="module")
def sharded():
    return spawn(worker, 4)


def test_bytes_of_the_first_rank_are_those_of_the_plan(sharded):
    bytes_held = sharded["bytes"]
    config = Config(l_max=64, l_min=32, max_prompt_tokens=8, token_budget=100)
    plan = memory_plan(tiny_model(vocab_size=VOCAB).config, config, Machine(4, 10**9, gpus_per_node=2), rollout="local")
    assert plan.shards == 2
    assert bytes_held["weights"] == plan.weights
    assert bytes_held["gradients"] == plan.gradients
    assert bytes_held["optimizer"] == plan.optimizer
    assert bytes_held["whole"] - plan.gradients == plan.accumulated > 0, "whole in fp32, though the compute is in bf16"
    assert bytes_held["shards before"] == bytes_held["left"] == bytes_held["whole, synced"] == 0


def test_reducing_every_micro_step_changes_no_parameter(sharded):
    for name, value in sharded["once"].items():
        torch.testing.assert_close(sharded["often"][name], value, rtol=0, atol=1e-6, msg=name)
