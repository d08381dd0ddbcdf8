"""What is shown of a run while it goes on: notes on a step's grading, and the report at each milestone."""

import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from siri.config import Config
from siri.errors import InputError, first_line
from siri.train.auto import AnySchedule
from siri.train.saves import due
from siri.train.view import View

SHARE = 0.05
"""Most of a run's time that its report may take up while it goes on."""


def evaluations_left(config: Config, schedule: AnySchedule) -> Callable[[int], int]:
    """How many benchmarks will be measured after more than so many steps, as far as the schedule knows."""
    steps = range(1, config.steps + 1) if config.eval_data else ()
    every, last = config.eval_every, config.steps
    known = [step for step in steps if step == last or schedule.milestone(step) or due(step, every)]
    return lambda done: (len(known) - bisect_right(known, done)) * len(config.eval_data)


class GradingNotes:
    """Lines about answers that could not be graded."""

    def __init__(self, note: Callable[[str], None], first_error: Callable[[], str]) -> None:
        """note: says a line. first_error: what the first failure was."""
        self.note, self.first_error = note, first_error
        self._warned = False

    def see(self, row: Mapping[str, Any]) -> None:
        """Say what there is to say of a step, given as its row of metrics.jsonl."""
        if row["reward_errors"] and not self._warned:
            self._warned = True
            self.note(f"warning: the reward failed on {row['reward_errors']} answers: {self.first_error()}")
        if row["reward_timeouts"]:
            self.note(f"note: {row['reward_timeouts']} answers could not be graded in time: out of the loss")
        if row["reward_undecided"]:
            self.note(f"note: {row['reward_undecided']} answers were too close to call, and score 0")


class ReportDrawer:
    """Draws the report of a run, on one rank. What goes wrong with it is told and costs the run nothing."""

    def __init__(
        self, view: View, folder: Path, note: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """note: says a line to the user."""
        self.view, self.folder, self.note, self.clock = view, folder, note, clock
        self._took = 0.0
        self._drawn = clock()

    def milestone(self) -> None:
        """Draw it anew, unless it took more than SHARE of the time since it was last drawn: the report of a short run
        is drawn at its first milestone and at its end."""
        if self._took <= SHARE * (self.clock() - self._drawn):
            self.draw()

    def draw(self) -> None:
        began = self.clock()
        try:
            self.view.write_report(self.folder)
        except (OSError, InputError) as error:
            self.note(f"warning: the report could not be written ({first_line(error)}); see siri report")
        self._drawn = self.clock()
        self._took = self._drawn - began
