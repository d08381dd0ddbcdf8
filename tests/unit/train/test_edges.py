"""What is said before the first step."""

from types import SimpleNamespace

import pytest
import torch

from siri.config import Config
from siri.runtime.stopwatch import Stopwatch
from siri.train.edges import compile_kernels
from siri.train.learner import Learner
from tests.support.tiny import tiny_policy


def test_nobody_takes_a_compiler_for_a_hang(monkeypatch):
    """A line before it begins, and one when it has ended; nothing where nothing is compiled."""
    events = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    learner = SimpleNamespace(policy=SimpleNamespace(device=torch.device("cuda", 0)))
    learner.try_head = lambda: events.append("tried") or "anchored"
    compile_kernels(learner, events.append)
    assert events[0].startswith("compiling kernels for NVIDIA H100 80GB HBM3; Triton keeps them")
    assert events[1] == "tried" and events[2].startswith("the head's kernels (anchored) are there after 0 s")
    events.clear()
    learner.policy.device = torch.device("cpu")
    compile_kernels(learner, events.append)
    assert events == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_head_that_is_tried_is_the_losss(dtype):
    policy = tiny_policy(dtype=dtype)
    watch = Stopwatch(torch.device("cpu"))
    learner = Learner(policy, torch.optim.SGD(policy.model.parameters()), Config(), token_budget=99, watch=watch)
    assert learner.try_head() == "torch"
