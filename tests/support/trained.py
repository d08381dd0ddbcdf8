"""Policies that took a few steps, their checkpoints, and how those are damaged."""

import hashlib
import json
from pathlib import Path

import torch

from siri.model.policy import load_policy
from siri.store.checkpoint import (
    MANIFEST,
)
from tests.support.saving import save_now
from tests.support.tiny import save_tiny

IDS = torch.tensor([[5, 9, 30, 31, 8, 77]])


def trained(folder: Path, *, steps: int = 3, seed: int = 0, **model):
    """A policy that took a few AdamW steps, and its optimizer."""
    torch.manual_seed(seed)
    policy = load_policy(str(save_tiny(folder, **model)), torch.device("cpu"))
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-2)
    take_steps(policy, optimizer, steps)
    return policy, optimizer


def take_steps(policy, optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        policy.model.lm_head(policy.model.model(input_ids=IDS).last_hidden_state).square().mean().backward()
        optimizer.step()


def logits(model) -> torch.Tensor:
    return model(input_ids=IDS).logits.detach()


def save(folder: Path, policy, optimizer, *steps: int, name: str | None = None) -> Path:
    for step in steps:
        path = save_now(folder, step, policy, optimizer, {"train_tokens": 10 * step}, name=name)
    return path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def claim(path: Path, name: str, data: bytes) -> None:
    """Put a file into the manifest of a checkpoint, with a checksum that fits."""
    listing = json.loads((path / MANIFEST).read_text())
    listing[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / MANIFEST).write_text(json.dumps(listing))


def rewrite(path: Path, name: str, data: bytes) -> None:
    (path / name).write_bytes(data)
    claim(path, name, data)
