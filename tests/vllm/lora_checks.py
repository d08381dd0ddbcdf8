"""What an engine has to hold whose trainer has an adapter: it samples from the merged weights, and whatever else it
samples from ends the sync."""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from siri.errors import InputError
from siri.model.adapters import base_parameters, trained_parameters
from siri.model.policy import Policy
from siri.rollout import vllm
from tests.vllm.checks import TEMPERATURE, assert_current, assert_follows, make, requests

RANK = 8


def with_adapter(model: Path, folder: Path, **settings):
    """A policy whose adapter says something, and its vLLM engine, not synced yet."""
    policy, engine = make(model, folder, lora_rank=RANK, **settings)
    turn(policy, seed=1)
    return policy, engine


@torch.no_grad()
def turn(policy: Policy, seed: int) -> None:
    """Give the adapter other values: they move the likeliest tokens, too."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in trained_parameters(policy.model):
        assert ".lora_" in name
        if ".lora_B." in name:
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def base_of(policy: Policy):
    """The frozen weights, as a sync would send those of a model without an adapter."""
    return ((name, parameter.detach()) for name, parameter in base_parameters(policy.model))


def assert_merged_weights_arrive(policy: Policy, engine, deliver: tuple[object, str]) -> None:
    """deliver: (object, name of its method) that takes the weights on their last way to the engine."""
    with (
        patch.object(vllm, "merged_parameters", lambda model: base_of(policy)),  # verl#7495
        pytest.raises(InputError, match=r"was not sent the adapter \(model\.layers\.0\.\S+ is not its base"),
    ):
        engine.sync()
    engine.sync()
    assert engine.metrics()["fingerprint_gap_max"] < 1e-3
    assert_current(policy, engine)
    merged = engine.generate(requests(), temperature=TEMPERATURE, seed=9)

    place, name = deliver
    real = getattr(place, name)

    def frozen(weights, version):
        list(weights)  # what leaves the trainer is right, and checked
        return real(base_of(policy), version)

    with (
        patch.object(place, name, frozen),  # unsloth#8701
        pytest.raises(InputError, match="does not sample from the trainer's weights"),
    ):
        engine.sync()
    assert engine.generate(requests(), temperature=TEMPERATURE, seed=9) != merged, "it did sample from the base"
    engine.sync()
    assert engine.generate(requests(), temperature=TEMPERATURE, seed=9) == merged
    assert_follows(policy, engine)  # an adapter of before, too
