"""An adapter reaches every engine merged into its base, and nothing else does."""

from dataclasses import replace

import pytest
import torch

import siri.rollout.vllm
from siri.errors import InputError
from siri.model.adapters import Adapter, base_parameters, merged_parameters
from siri.model.policy import hollow_copy
from siri.rollout.local import LocalRollout
from tests.support.served import engine
from tests.unit.model.test_adapters import adapted


def lora_policy():
    return replace(adapted(), adapter=Adapter("tiny", 4, 6.0, ()))


def frozen(model):
    """What verl#7495 sent: the base."""
    for name, parameter in base_parameters(model):
        yield name, parameter.detach()


def test_servers_hold_the_merged_weights(servers, tmp_path):
    policy = lora_policy()
    rollout = engine(servers, tmp_path, policy)
    rollout.sync()
    merged = dict(merged_parameters(policy.model))
    for server in servers:
        held = dict(server.policy.model.named_parameters())
        assert held.keys() == merged.keys() and all(torch.equal(held[name], merged[name]) for name in merged)
    assert rollout.metrics()["fingerprint_gap_mean"] < 1e-5
    with torch.no_grad():  # an update later
        policy.model.lm_head.lora_B["default"].weight.add_(0.1)
    rollout.sync()
    merged = dict(merged_parameters(policy.model))
    assert torch.equal(servers[0].policy.model.lm_head.weight, merged["lm_head.weight"])


def test_a_sync_that_pushes_the_frozen_model_stops_the_run(servers, tmp_path, monkeypatch):
    rollout = engine(servers, tmp_path, lora_policy())
    monkeypatch.setattr(siri.rollout.vllm, "merged_parameters", frozen)
    with pytest.raises(InputError, match="the engine was not sent the adapter"):
        rollout.sync()


def test_a_server_that_samples_from_the_base_is_found_out(servers, tmp_path):
    """unsloth#8701: exit code 0, and every rollout from the base. The server is sent the weights and keeps its own."""
    policy = lora_policy()
    rollout = engine(servers, tmp_path, policy)
    for server in servers:
        server.policy.model.load_state_dict(dict(frozen(policy.model)))
    servers[1].load_faults.append("stale")
    with pytest.raises(InputError, match=r"does not hold what was sent|does not sample from the trainer's weights"):
        rollout.sync()


def copied(policy):
    copy = hollow_copy(policy)
    copy.model.to_empty(device="cpu")
    model = copy.model.model
    model.rotary_emb = type(model.rotary_emb)(config=copy.model.config)
    return copy, LocalRollout(copy, cache_tokens=4096, trained=policy)


def test_the_embedded_engines_copy_has_the_merged_weights(monkeypatch):
    policy = lora_policy()
    copy, rollout = copied(policy)
    rollout.sync()
    merged = dict(merged_parameters(policy.model))
    assert all(torch.equal(parameter, merged[name]) for name, parameter in copy.model.named_parameters())
    assert rollout.metrics()["fingerprint_gap_mean"] < 1e-5
    monkeypatch.setattr("siri.rollout.local.merged_parameters", frozen)
    with pytest.raises(InputError, match="the engine was not sent the adapter"):
        rollout.sync()


def test_the_embedded_engine_that_samples_the_base_is_found_out(monkeypatch):
    policy = lora_policy()
    _, rollout = copied(policy)
    rollout.sync()
    state = dict(frozen(policy.model))

    def forgets(self, weights):
        list(weights)
        return iter(state.items())  # sent rightly, taken wrongly

    monkeypatch.setattr("siri.rollout.local.MergeCheck.passing", forgets)
    with pytest.raises(InputError, match="does not sample from the trainer's weights"):
        rollout.sync()


def test_an_adapter_that_is_switched_off_while_sampling_is_found_out(monkeypatch):
    """On one process the very model samples; its head has an adapter that only the head's own forward applies."""
    policy = lora_policy()
    rollout = LocalRollout(policy, cache_tokens=4096)
    rollout.sync()
    assert rollout.metrics()["fingerprint_gap_mean"] < 1e-5
    policy.model.lm_head.enable_adapters(False)
    with pytest.raises(InputError, match="does not sample from the trainer's weights"):
        rollout.sync()
