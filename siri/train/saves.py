"""When a run saves, and under which name."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from siri.config import Config
from siri.model.policy import Policy
from siri.store.saver import MAX_FAILURES, Saver

PAUSE_S = 2.0
"""Before the last save of a run is tried again: several fit into the grace that a scheduler gives."""


@dataclass(frozen=True)
class Agreed:
    """What all ranks know after an update."""

    notes: Sequence[str]
    """The judge's lines for the user."""
    ill: str
    """Why the judge ends the run; "" = it goes on."""
    fault: str
    """Why the save before failed; "" = it did not, or is under way."""
    failures: int
    """How many have failed in a row."""
    warning: str = ""
    """What went wrong beside a save that was made."""


class Saves:
    """Saves at the ends of phases, every `save_every` steps, at the end, and again after a save that failed: that one
    bears the name that was lost, since a step or so late is better than never. Every rank has one."""

    def __init__(self, saver: Saver, config: Config, policy: Policy, optimizer: torch.optim.Optimizer, start: int):
        self.saver, self.policy, self.optimizer = saver, policy, optimizer
        self.schedule = config.length_schedule()
        self.every = config.save_every or max(1, config.cycle // 4)
        self._saved = start
        self._owed: str | None = None  # the name of the last save, until it is known to be there

    def due(self, done: int, agreed: Agreed, *, ends: bool) -> bool:
        """Whether to save after `done` steps. ends: there is no further one. InputError after too many saves that
        failed."""
        if agreed.failures >= MAX_FAILURES:
            self.saver.give_up(agreed.fault)
        needed = agreed.fault or agreed.ill or ends
        return bool(needed or self.schedule.milestone(done) or due(done, self.every))

    def save(self, done: int, state: dict[str, Any], agreed: Agreed) -> None:
        """Start to write the checkpoint after `done` steps."""
        name = self.schedule.milestone(done) or (self._owed if agreed.fault else None)
        self.saver.save(done, self.policy, self.optimizer, state, name=name)
        self._saved, self._owed = done, name

    def finish(self, done: int, state: dict[str, Any]) -> str:
        """Save what is not saved yet, and wait for it; a save that fails is tried again after a moment. Returns a line
        about what failed on the way; InputError if all fails."""
        fault = self.saver.outcome()
        for attempt in range(MAX_FAILURES):
            if not fault and self._saved == done:
                break
            if fault and attempt:
                time.sleep(PAUSE_S)
            name = self.schedule.milestone(done) or (self._owed if fault else None)
            self.saver.save(done, self.policy, self.optimizer, state, name=name)
            self._saved, self._owed = done, name
            failed, fault = fault, self.saver.outcome()
            if fault:
                continue
            return f"warning: a checkpoint could not be saved ({failed}); the next try was" if failed else ""
        self.saver.wait()
        return ""


def due(done: int, every: int) -> bool:
    """Whether something that happens every `every` steps (0 = never) happens after `done` steps."""
    return every > 0 and done % every == 0
