"""What runs of several files train with."""

import pytest
import torch

from siri.model.policy import load_policy
from tests.support.fake_server import FakeServer


@pytest.fixture
def servers():
    """Two stand-ins for vLLM's servers, with the demo's base."""
    running = [FakeServer(load_policy("siri:demo/model", torch.device("cpu"))) for _ in range(2)]
    for server in running:
        server.token_s = 0.01
    yield running
    for server in running:
        server.stop()
