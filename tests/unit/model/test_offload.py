"""AdamW with its moments in host memory: bit for bit torch's AdamW, alone, sharded, and through a checkpoint."""

import copy

import pytest
import torch
import torch.distributed as dist

from siri.model import offload
from siri.model.fsdp import full, shard
from siri.model.offload import HostAdamW
from siri.runtime.ranks import ALONE
from siri.runtime.stopwatch import Stopwatch
from siri.store.checkpoint import restore
from tests.runs.test_distributed import join, spawn
from tests.support.saving import save_now
from tests.support.tiny import tiny_model, tiny_policy
from tests.support.update import update_policy
from tests.unit.train.test_update import config, make_samples


def backward(model, step: int) -> None:
    model.zero_grad()
    for number, (name, parameter) in enumerate(model.named_parameters()):
        if name.endswith("norm.weight") and step == 0:
            continue  # some begin later
        torch.manual_seed(100 * step + number)
        parameter.grad = torch.randn_like(parameter)


def steps(optimizer_class, model, count: int = 3, **options):
    groups = [{"params": list(model.model.parameters())}, {"params": [model.lm_head.weight], "weight_decay": 0.0}]
    optimizer = optimizer_class(groups, lr=1e-2, weight_decay=0.1, **options)
    for step in range(count):
        backward(model, step)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("chunk", [1, 3000, 2**28])
def test_the_same_bits_as_torch(monkeypatch, chunk):
    monkeypatch.setattr(offload, "CHUNK_BYTES", chunk)
    plain, hosted = tiny_model(), tiny_model()
    optimizer, host_optimizer = steps(torch.optim.AdamW, plain), steps(HostAdamW, hosted)
    for mine, theirs in zip(hosted.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert all(
            torch.equal(host_optimizer.state[mine][name], value) for name, value in optimizer.state[theirs].items()
        )
    assert [len(group["params"]) for group in host_optimizer.param_groups] == [
        len(group["params"]) for group in optimizer.param_groups
    ]


def test_no_more_than_a_chunk_visits_at_once(monkeypatch):
    """What is brought and parked, in order: never more than two of the parameters' moments are away from the host."""
    model = tiny_model()
    largest = max(2 * parameter.numel() * 4 for parameter in model.parameters())
    monkeypatch.setattr(offload, "CHUNK_BYTES", largest)
    away: dict[int, int] = {}
    peaks = []
    bring, park = offload.bring, HostAdamW.park

    def brought(moment, parameter):
        away[id(parameter)] = 2 * parameter.numel() * 4
        peaks.append(sum(away.values()))
        return bring(moment, parameter)

    def parked(self, parameter):
        away.pop(id(parameter), None)
        park(self, parameter)

    monkeypatch.setattr(offload, "bring", brought)
    monkeypatch.setattr(HostAdamW, "park", parked)
    steps(HostAdamW, model)
    assert not away and 0 < max(peaks) <= largest
    assert sum(2 * parameter.numel() * 4 for parameter in model.parameters()) > 2 * largest, "a chunk is not all"


def test_a_closure_is_refused():
    with pytest.raises(ValueError, match="no closure"):
        steps(HostAdamW, tiny_model(), 0).step(lambda: 0)


def sharded_run(ranks, optimizer_class, count: int, *, policy=None, optimizer=None, first: int = 0):
    if policy is None:
        policy = tiny_policy(vocab_size=97)
        if ranks.size > 1:
            shard(policy.model, ranks, compute_dtype=torch.float32)
        optimizer = optimizer_class(policy.model.parameters(), lr=1e-2, eps=1e-3)
    for step in range(first, first + count):
        update_policy(
            policy, optimizer, [make_samples(step, count=7)], config(), watch=Stopwatch(torch.device("cpu")),
            token_budget=80, ranks=ranks,
        )  # fmt: skip
    return policy, optimizer


def values(policy) -> dict[str, torch.Tensor]:
    return {name: full(value.detach()).clone() for name, value in policy.model.named_parameters()}


def worker(rank: int, world: int, port: int, results, folder) -> None:
    ranks = join(rank, world, port)
    plain, _ = sharded_run(ranks, torch.optim.AdamW, 3)
    hosted, optimizer = sharded_run(ranks, HostAdamW, 3)
    expected = values(plain)
    assert all(torch.equal(value, expected[name]) for name, value in values(hosted).items())
    for parameter in hosted.model.parameters():
        moment = optimizer.state[parameter]["exp_avg"]
        assert type(moment) is torch.Tensor and moment.shape == parameter.to_local().shape, "this rank's part alone"
    save_now(folder, 3, hosted, optimizer, {}, name=None, ranks=ranks)

    again = tiny_policy(vocab_size=97, seed=9)
    shard(again.model, ranks, compute_dtype=torch.float32)
    resumed = HostAdamW(again.model.parameters(), lr=1e-2, eps=1e-3)
    restore(folder / "step_000003", again, resumed, ranks=ranks)
    assert type(resumed.state[again.model.lm_head.weight]["exp_avg"]) is torch.Tensor, "on the host before any step"
    sharded_run(ranks, HostAdamW, 1, policy=again, optimizer=resumed, first=3)
    sharded_run(ranks, HostAdamW, 1, policy=hosted, optimizer=optimizer, first=3)
    expected = values(hosted)
    assert all(torch.equal(value, expected[name]) for name, value in values(again).items())
    if rank == 0:
        results["step 4"] = expected
    dist.destroy_process_group()


def test_sharded_saved_and_resumed_with_and_without(tmp_path):
    expected = spawn(worker, 2, tmp_path)["step 4"]
    policy = tiny_policy(vocab_size=97, seed=5)
    for optimizer_class in (torch.optim.AdamW, HostAdamW):  # a lone rank goes on where two left off
        again = copy.deepcopy(policy)
        optimizer = optimizer_class(again.model.parameters(), lr=1e-2, eps=1e-3)
        restore(tmp_path / "step_000003", again, optimizer)
        sharded_run(ALONE, optimizer_class, 1, policy=again, optimizer=optimizer, first=3)
        for name, value in values(again).items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a GPU")
def test_on_a_gpu():
    plain, hosted = tiny_model().cuda(), tiny_model().cuda()
    steps(torch.optim.AdamW, plain)
    optimizer = steps(HostAdamW, hosted)
    assert all(torch.equal(*pair) for pair in zip(hosted.parameters(), plain.parameters(), strict=True))
    moment = optimizer.state[hosted.lm_head.weight]["exp_avg"]
    assert moment.device.type == "cpu" and moment.is_pinned()
