"""SIGINT and SIGTERM: the first asks the run to stop with its state saved, however often a supervisor repeats it. A
second Ctrl-C ends it at once."""

import signal
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from siri.runtime.ranks import ALONE, Ranks

T = TypeVar("T")

SAME_S = 2.0
"""One Ctrl-C may come more than once: from the terminal to all processes, and passed on by torchrun or a study."""


POLL_S = 1.0
"""How often a rank in the middle of long work asks whether another one got a signal."""
WORD = "stop"


class Interrupted(BaseException):
    """Work that may be left undone was left undone, on every rank, because the run is to stop. As with
    KeyboardInterrupt, nothing that handles errors on its way takes it for one."""


class Stop:
    """Whether the run has been asked to stop. A context manager: inside it signals are noted instead of obeyed.

    A step is finished first, unless it can be left undone (`heed`): sampling and grading change nothing that lasts, so
    a rollout or an evaluation of an hour does not use up the grace that a scheduler gives.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._previous: dict[int, Any] = {}
        self._at_once = False
        self._first = 0.0
        self._asked = -POLL_S
        self._told = False

    def __bool__(self) -> bool:
        return bool(self.received)

    def __enter__(self) -> "Stop":
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        except ValueError:  # not the main thread: the caller handles signals
            self._previous = {}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self, ranks: Ranks) -> None:
        """Interrupted where a signal came, here or on another rank. For long work that other ranks wait for: each calls
        it every now and then, and all of them leave off within seconds."""
        now = time.monotonic()
        if self.received and not self._told:
            self._told = True
            ranks.tell(WORD)
        elif not self.received and not self._told and now - self._asked >= POLL_S:
            self._asked, self._told = now, ranks.told(WORD)
        if self._told:
            raise Interrupted

    def heed(self, function: Callable[[], T], *, ranks: Ranks = ALONE, at_once: bool = True) -> T:
        """What `function` returns; Interrupted, on all ranks, where a signal came before or while it ran on any.

        `at_once` breaks it off, and its InputError on any rank is everybody's; else it runs to its end or to where it
        asks (`check`), as it must if it waits for the function of other ranks.
        """
        outcome, cut = None, bool(self)

        def run() -> None:
            nonlocal outcome, cut
            if cut:
                return
            try:
                self._at_once = at_once
                outcome = function()
            except Interrupted:
                cut = True
            finally:
                self._at_once = False

        if at_once:
            ranks.together(run)
        else:
            run()
        if any(ranks.gather(cut)):
            raise Interrupted
        return cast(T, outcome)

    def _note(self, number: int, _frame: Any) -> None:
        now = time.monotonic()
        self.received.append(number)
        if len(self.received) == 1:
            self._first = now
        elif number == signal.SIGINT and now - self._first >= SAME_S:
            for each in self._previous:  # as the system does
                signal.signal(each, signal.SIG_DFL)
            signal.raise_signal(number)
        if self._at_once:
            self._at_once = False
            raise Interrupted
