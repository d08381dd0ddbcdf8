import pytest

from tests.support.fake_server import FakeServer
from tests.support.served import engine, requests


@pytest.fixture
def servers():
    running = [FakeServer(), FakeServer()]
    yield running
    for server in running:
        server.stop()


@pytest.fixture
def synced(servers, tmp_path):
    rollout = engine(servers, tmp_path)
    rollout.sync()
    for server in servers:
        server.asked.clear()
        server.served = 0
    return rollout


@pytest.fixture
def undisturbed(synced, servers):
    """What the requests give without faults."""
    answers = synced.generate(requests(), temperature=0.8, seed=3)
    for server in servers:
        server.asked.clear()
        server.served = 0
    return answers
