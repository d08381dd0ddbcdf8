"""Checkpoints for tests: one at once, and what is in one."""

from pathlib import Path

import torch

from siri.runtime.ranks import ALONE
from siri.store.checkpoint import whole_moments, whole_weights
from siri.store.saver import Saver


def save_now(
    folder: Path, done: int, policy, optimizer, state: dict, *, name=None, ranks=ALONE, keep: int = 99
) -> Path:
    """Save a checkpoint and wait until it is there."""
    saver = Saver(folder, keep=keep, ranks=ranks)
    path = saver.save(done, policy, optimizer, {"train_tokens": 0, **state}, name=name)
    saver.wait()
    return path


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All weights and moments of a checkpoint, each in one piece."""
    moments = {f"optimizer/{name}": tensor for name, tensor in whole_moments(checkpoint).items()}
    return {f"weights/{name}": tensor for name, tensor in whole_weights(checkpoint).items()} | moments


def file_of(checkpoint: Path, kind: str) -> Path:
    """The first rank's file of "weights" or "optimizer"."""
    return sorted((checkpoint / kind).iterdir())[0]
