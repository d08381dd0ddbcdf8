"""A run of three steps in milliseconds: the run folder, its logs and the saver as `siri train` drives them, and in the
place of a model a matrix whose every step follows from the one before."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from siri.config import Config
from siri.data.content import Content
from siri.data.sampler import Sampler
from siri.errors import InputError
from siri.store import checkpoint
from siri.store.run_folder import RunFolder
from siri.store.saver import MAX_FAILURES, Saver
from tests.support.saving import tensors

STEPS, PROBLEMS, SEED = 3, 8, 0
CONFIG = Config(
    model="m", data="d", steps=STEPS, save_every=1, cycle=2, keep_checkpoints=1, seed=SEED, eval_data=("e",)
)
ABOUT = {"config.json": b"{}", "tokenizer.json": b"{}"}


class Matrix(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lm_head = torch.nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.lm_head.weight.copy_(torch.arange(6.0).reshape(2, 3))


@dataclass
class Outcome:
    """How a run ended."""

    done: bool
    line: str
    """Of the InputError that ended it."""
    notes: list[str]


def run(path: Path, *, resume: Any = "auto", config: Config = CONFIG) -> Outcome:
    """Start or continue the run in `path`."""
    notes: list[str] = []
    # pytest keeps what is logged with the frames of its errors, and with them the run that holds the folder
    logging.disable()
    try:
        folder = RunFolder(path, config, "demo", resume)
        return Outcome(True, "", _steps(folder, notes))
    except InputError as error:
        return Outcome(False, str(error), notes)
    finally:
        logging.disable(logging.NOTSET)


def _steps(folder: RunFolder, notes: list[str]) -> list[str]:
    model = Matrix()
    policy: Any = SimpleNamespace(model=model, tokenizer=None, device=torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    folder._content = Content("d", (b"12345678",) * PROBLEMS, "t", "t")
    sampler = Sampler(PROBLEMS, SEED)
    if folder.finished():
        return folder.notes
    if folder.checkpoint:
        sampler = Sampler(PROBLEMS, **folder.state["sampler"])
        checkpoint.restore(folder.checkpoint, policy, optimizer)
    folder.create()
    notes += folder.notes
    saver = Saver(folder.checkpoints, keep=1, record=folder.saved)
    saver._about = dict(ABOUT)
    tokens, missed, schedule = folder.state["train_tokens"], None, CONFIG.length_schedule()
    evaluate(folder, folder.start)
    for step in range(folder.start, STEPS):
        drawn = sampler.take(2)
        model.lm_head.weight.grad = model.lm_head.weight.detach() * (1 + sum(drawn))
        optimizer.step()
        tokens += sum(drawn)
        folder.check_lease()
        folder.metrics.append({"step": step, "drawn": drawn, "norm": model.lm_head.weight.detach().norm().item()})
        state = {"sampler": sampler.state(), "train_tokens": tokens}
        for _ in range(MAX_FAILURES):  # what follows a save depends on when it ends: here it always has
            name = schedule.milestone(step + 1) or missed
            saver.save(step + 1, policy, optimizer, state, name=name)
            missed = name if (message := saver.outcome()) else None
            notes += filter(None, (message, saver.warning()))
            if not message or step + 1 < STEPS:
                break
        evaluate(folder, step + 1)
    saver.wait()
    return notes


def evaluate(folder: RunFolder, done: int) -> None:
    """What an evaluation writes, unless it is there."""
    if not any(row["step"] == done for row in folder.evals.rows()):
        if not folder.measured(done):
            folder.keep_measured(done, _Figures(accuracy=done / 4))
        folder.evals.append({"step": done, "accuracy": done / 4})


@dataclass(frozen=True)
class _Figures:
    accuracy: float


def contents(path: Path) -> dict[str, Any]:
    """What is left of a run: its logs, and the tensors and states of its newest checkpoint."""
    newest, damaged = checkpoint.newest_good(path / "checkpoints")
    assert newest is not None and not damaged, damaged
    held = {name: tensor.tolist() for name, tensor in tensors(newest).items()}
    logs = {name: (path / name).read_text() for name in ("metrics.jsonl", "eval.jsonl")}
    state = json.loads((newest / "state.json").read_text())
    names = {each.name: each.resolve().name for each in (path / "checkpoints").glob("siri-*")}
    return {"newest": newest.name, "tensors": held, "state": state, "names": names, **logs}
