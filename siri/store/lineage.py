"""Runs that start from a checkpoint of another, RUN@STEP: where that is, and what is kept of it in config.json."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siri.errors import InputError
from siri.model.weight_files import MANIFEST
from siri.store import files
from siri.store.checkpoint import checkpoints, read_state, verify
from siri.store.held import held_settings


@dataclass(frozen=True)
class BranchPoint:
    """The checkpoint that a run starts from."""

    run: Path
    checkpoint: Path
    state: dict[str, Any]
    """What the other run said of itself there."""

    @classmethod
    def of(cls, text: str) -> "BranchPoint":
        """RUN@STEP: a run folder, and the steps after which a checkpoint of it was written or the name of one, such as
        siri-low-1. InputError where there is none, or a damaged one."""
        folder, _, step = text.rpartition("@")
        run = Path(folder)
        if not folder or not step or "/" in step:
            raise InputError(
                f"{text!r} names no checkpoint; write RUN@STEP, as in runs/demo@80 or runs/demo@siri-low-1"
            )
        path = run / "checkpoints" / (f"step_{int(step):06d}" if step.isdecimal() else step)
        known = ", ".join(each.name.removeprefix("step_").lstrip("0") or "0" for each in checkpoints(path.parent))
        if not files.there(path):
            raise InputError(f"{text}: no such checkpoint; {run} has those after step {known or 'none'}")
        path = path.resolve()
        if fault := verify(path):
            raise InputError(f"{path}: damaged, {fault}; branch off another checkpoint")
        state = read_state(path)
        if "sampler" not in state:
            raise InputError(f"{path}: no checkpoint of a training run")
        return cls(run, path, state)

    def lineage(self) -> dict[str, Any]:
        """For the config.json of the run that starts here: run, step, tokens that were trained on by then, the digest
        of the checkpoint's manifest, and the other run's own lineage."""
        lineage = {
            "run": str(self.run),
            "step": self.state["steps_done"],
            "train_tokens": self.state["train_tokens"],
            "manifest": hashlib.sha256(files.read(self.checkpoint / MANIFEST)).hexdigest(),
        }
        above = held_settings(self.run).get("lineage")
        return lineage | ({"lineage": above} if above else {})

    def check(self, known: Mapping[str, Any] | None) -> None:
        """InputError where this is not the checkpoint that the run began with."""
        if known and known.get("manifest") != self.lineage()["manifest"]:
            raise InputError(f"{self.checkpoint} is another checkpoint than this run began with; restore that one")
