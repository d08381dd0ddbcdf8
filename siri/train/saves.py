"""When a run saves, and under which name."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from siri.config import Config
from siri.model.policy import Policy
from siri.runtime.ranks import Arrays, Ranks
from siri.store.about import ABOUT, about_run, base_dtype
from siri.store.run_folder import RunFolder
from siri.store.saver import MAX_FAILURES, Saver
from siri.train.auto import AnySchedule

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

    def __init__(
        self,
        saver: Saver,
        config: Config,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        start: int,
        schedule: AnySchedule | None = None,
    ) -> None:
        """schedule: the run's own, where it is not that of its settings (auto)."""
        self.saver, self.policy, self.optimizer = saver, policy, optimizer
        self.schedule: AnySchedule = schedule or config.length_schedule()
        self.every = config.save_every or max(1, config.cycle // 4)
        self.pending: Callable[[], Arrays | None] = lambda: None
        """The rollouts that are sampled ahead, as they are now; every rank calls it."""
        self._saved = start
        self._last_name: str | None = None  # the name of the last save, until it is known to be there

    def due(self, done: int, agreed: Agreed, *, ends: bool) -> bool:
        """Whether to save after `done` steps. ends: there is no further one. InputError after too many saves that
        failed."""
        if agreed.failures >= MAX_FAILURES:
            self.saver.give_up(agreed.fault)
        needed = agreed.fault or agreed.ill or ends
        return bool(needed or self.schedule.milestone(done) or due(done, self.every))

    def save(self, done: int, state: dict[str, Any], agreed: Agreed) -> None:
        """Start to write the checkpoint after `done` steps, once the one before is there or has failed: nobody would
        hear of it any more after this. InputError after too many saves that failed."""
        fault = self.saver.outcome()
        if fault:
            if self.saver.ranks.broadcast(self.saver.failures) >= MAX_FAILURES:
                self.saver.give_up(fault)
            self.saver.warn(f"a checkpoint could not be saved ({fault}); the next one is being written")
        name = self._name(done, failed=bool(agreed.fault or fault))
        self.saver.save(done, self.policy, self.optimizer, state, name=name, pending=self.pending())
        self._saved, self._last_name = done, name

    def keep(self, done: int, state: dict[str, Any], name: str) -> None:
        """Give the state after `done` steps a name beside that of its phase; it is saved if it is not yet."""
        if self._saved != done:
            self.save(done, state, Agreed((), "", "", 0))
        self.saver.also(done, name)

    def finish(self, done: int, state: dict[str, Any], *, again: bool = False) -> str:
        """Save what is not saved yet, and wait for it; a save that fails is tried again after a moment. Returns a line
        about what failed on the way; InputError if all fails. again: also what is saved, because rollouts have gone on
        since."""
        fault = self.saver.outcome()
        for attempt in range(MAX_FAILURES):
            if not fault and self._saved == done and not again:
                break
            again = False
            if fault and attempt:
                time.sleep(PAUSE_S)
            name = self._name(done, failed=bool(fault))
            self.saver.save(done, self.policy, self.optimizer, state, name=name, pending=self.pending())
            self._saved, self._last_name = done, name
            failed, fault = fault, self.saver.outcome()
            if fault:
                continue
            return f"warning: a checkpoint could not be saved ({failed}); the next try was" if failed else ""
        self.saver.wait()
        return ""

    def _name(self, done: int, *, failed: bool) -> str | None:
        """What the checkpoint after `done` steps is called: the end of its phase, or what the save that failed owes."""
        name, missed = self.schedule.milestone(done), self._last_name if failed else None
        if name and missed and name != missed:
            self.saver.warn(f"no checkpoint is called {missed}: its save failed, and the next one is {name}")
        return name or missed


def make_saver(config: Config, folder: RunFolder, ranks: Ranks) -> Saver:
    """What writes the checkpoints of a run, each with what it says of itself."""
    about = about_run(config, folder.recipe, base_dtype(config.model)) if ranks.main else b""
    return Saver(
        folder.checkpoints,
        keep=config.keep_checkpoints,
        keep_every=config.keep_every,
        ranks=ranks,
        record=folder.saved,
        beside={ABOUT: about},
    )


def due(done: int, every: int) -> bool:
    """Whether something that happens every `every` steps (0 = never) happens after `done` steps."""
    return every > 0 and done % every == 0
