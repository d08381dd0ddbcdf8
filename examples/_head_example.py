"""The comparison of the three trainers whose fused or plain heads are functions of hidden states and a weight: the
trainer's published formula against the adapter. None of the three installs on a CPU (ray, DeepSpeed, vLLM)."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
import types

import torch
from _compare import DEVICE, largest_difference, measure, report

B, T, D, V = 2, 256, 64, 16384


def formula(hidden, weight, ids, temperature):
    """Log-prob of ids and entropy of softmax(hidden weight^T / T): what all three compute."""
    logits = (hidden @ weight.T).float() / temperature
    logp = logits.log_softmax(-1)
    return logp.gather(-1, ids[..., None]).squeeze(-1), -(logp.exp() * logp).sum(-1)


@contextlib.contextmanager
def stand_in(distribution: str, version: str, modules: dict[str, dict]):
    """Lets an adapter find a trainer that is not here: `modules` at the trainer's places, with what it looks up."""
    try:
        importlib.metadata.version(distribution)
        print(f"{distribution} is installed: the adapter meets the real one")
        yield
        return
    except importlib.metadata.PackageNotFoundError:
        print(f"{distribution} is not installed here: the adapter runs against its published formula")
    real = importlib.metadata.version
    importlib.metadata.version = lambda name: version if name == distribution else real(name)
    for path, contents in modules.items():
        for end in range(1, len(path.split(".")) + 1):
            name = ".".join(path.split(".")[:end])
            sys.modules.setdefault(name, types.ModuleType(name)).__path__ = []
        vars(sys.modules[path]).update(contents)
    try:
        yield
    finally:
        importlib.metadata.version = real


def compare(title: str, adapter) -> None:
    """adapter(hidden [B, T, D], weight [V, D], ids [B, T], temperature) -> log-probs, entropy"""
    torch.manual_seed(0)
    hidden = torch.randn(B, T, D, device=DEVICE).requires_grad_()
    weight = torch.nn.Parameter(torch.randn(V, D, device=DEVICE).mul(0.1))
    ids = torch.randint(V, (B, T), device=DEVICE)

    def step(function):
        def run():
            hidden.grad = weight.grad = None
            logp, entropy = function(hidden, weight, ids, 0.8)
            (logp.sum() + 0.01 * entropy.sum()).backward()
            return logp, entropy, hidden.grad, weight.grad

        return run

    difference = largest_difference(step(formula)(), step(adapter)())
    report(title, measure(step(formula)), measure(step(adapter)), difference)
