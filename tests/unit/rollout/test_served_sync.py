"""The weights on their way to servers that crash, restart, keep the old ones or hold what was not sent."""

import pytest
import torch

from siri.errors import InputError
from siri.rollout.fleet import ServedEngine
from siri.rollout.order import ExpectedLengths
from siri.rollout.vllm import VllmRollout, weights
from siri.runtime.ranks import Ranks
from tests.support.served import again, engine, options, tokens


def test_a_sync_that_is_interrupted_is_tried_again(synced, servers, undisturbed):
    servers[1].load_faults.append("crash")
    synced.sync()
    assert synced.metrics()["rollout_servers_used"] == 2
    servers[1].load_faults.extend(["crash", "crash"])
    synced.sync()
    assert synced.metrics()["rollout_servers_used"] == 1, "it is left out, it may hold half of the weights"
    assert tokens(again(synced)) == tokens(undisturbed)
    for server in servers:
        server.load_faults.extend(["crash"] * 2)
    with pytest.raises(InputError, match=r"reached no rollout server: .*weight sync interrupted"):
        synced.sync()


def test_a_stale_server_is_found_out(synced, servers):
    with torch.no_grad():
        synced.policy.model.lm_head.weight.add_(torch.randn_like(synced.policy.model.lm_head.weight) * 0.1)
    servers[1].load_faults.append("stale")
    with pytest.raises(InputError, match=rf"server {servers[1].url} does not sample from the trainer's weights"):
        synced.sync()


def test_a_damaged_tensor_is_named(synced, servers):
    servers[1].load_faults.append("wrong")
    with pytest.raises(InputError, match=rf"{servers[1].url} does not hold what was sent: model.norm.weight"):
        synced.sync()


def test_weights_that_cannot_be_written(servers, tmp_path):
    (tmp_path / "weights").write_text("a file where the folder should be")
    with pytest.raises(InputError, match="weights cannot be written there"):
        engine(servers, tmp_path).sync()


def test_a_server_whose_cache_was_not_cleared_is_not_used(synced, servers, undisturbed):
    """Keys and values of the old weights would bias what it samples, although the new ones are in place."""
    servers[1].reset_faults.extend(["busy"] * 2)
    synced.sync()
    assert synced.metrics()["rollout_servers_used"] == 1
    resets, loads = servers[1].resets, servers[1].loads
    assert servers[1].weights is None, "weights without a name are given again"
    assert tokens(again(synced)) == tokens(undisturbed)
    for _ in range(50):  # it may come back only after the others have finished
        if servers[1].weights:
            break
        again(synced)
    assert servers[1].resets > resets and servers[1].loads > loads


def test_a_rank_that_did_not_write_the_files_can_give_them(synced, servers, undisturbed, tmp_path):
    """Any rank may be the one that finds a restarted server."""
    first = synced.backend
    backend = ServedEngine(options(servers, tmp_path), synced.policy, ranks=Ranks(rank=1, size=1))
    backend.offer(weights(synced.policy, torch.float32), first.version)
    backend.load(iter(()), first.version)
    assert (backend.files.folder, backend.files.sums) == (first.files.folder, first.files.sums)
    servers[0].faults.extend(["", "restart"])
    loads = servers[0].loads
    other = VllmRollout(synced.policy, backend, temperature=0.8, lengths=ExpectedLengths())
    assert tokens(again(other)) == tokens(undisturbed)
    again(other)
    assert servers[0].loads == loads + 1 and servers[0].weights == first.version


def test_what_a_killed_run_left_behind_goes_at_the_first_sync(servers, tmp_path):
    (tmp_path / "weights" / "sync-7-dead").mkdir(parents=True)
    rollout = engine(servers, tmp_path)
    rollout.sync()
    assert [folder.name for folder in (tmp_path / "weights").iterdir()] == [rollout.backend.version]
    real = rollout.policy.model.named_parameters

    def broken():
        yield next(iter(real()))
        raise RuntimeError("lost on the way")

    rollout.policy.model.named_parameters = broken
    with pytest.raises(InputError, match="lost on the way"):
        rollout.sync()
    assert len(list((tmp_path / "weights").iterdir())) == 1, "half of a sync was left behind"
    rollout.close()
    assert not (tmp_path / "weights").exists()
    deep = engine(servers, tmp_path, sync_dir=tmp_path / "figures.json.weights" / "rollout-weights")
    deep.sync()
    deep.close()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_servers_do_not_see(servers, tmp_path):
    rollout = engine(servers, tmp_path)
    servers[0].siri_load = lambda folder: {"unseen": True}
    with pytest.raises(
        InputError, match=rf"{servers[0].url} does not see .*sync-1.*; name a folder .*--rollout-sync-dir"
    ):
        rollout.sync()


def test_a_failed_sync_still_goes_through_all_tensors(synced, monkeypatch):
    """Gathering a tensor takes every rank: one that stopped at the first would leave the others waiting."""
    seen = []

    def counted(policy, dtype):
        for name, tensor in weights(policy, dtype):
            seen.append(name)
            yield name, tensor

    def offer(stream, version):
        next(stream)
        raise RuntimeError("the engine fell over")

    monkeypatch.setattr("siri.rollout.vllm.weights", counted)
    monkeypatch.setattr(synced.backend, "offer", offer)
    with pytest.raises(InputError, match=r"weight sync-2-.* failed: the engine fell over"):
        synced.sync()
    assert seen == [name for name, _ in synced.policy.model.named_parameters()]
