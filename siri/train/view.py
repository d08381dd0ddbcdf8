"""What a run asks of whoever shows it: what trains knows nothing of pictures and terminals."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from siri.rollout import Progress as Finished


class Stage(Protocol):
    """Says what happens within a step: a name, and how many responses it is made of (0 = it has no parts). A context;
    what it gives is told how many more are finished."""

    def __call__(self, what: str, total: int = 0) -> AbstractContextManager[Finished]: ...


@contextmanager
def unseen(what: str, total: int = 0) -> Iterator[Finished]:
    """A `Stage` that nobody watches."""
    yield lambda count: None


class Progress(Protocol):
    """The display of a run; a context."""

    stage: Stage

    def __enter__(self) -> Any: ...

    def __exit__(self, *exception: object) -> None: ...

    def update(self, row: Mapping[str, Any]) -> None:
        """Show a finished step, given as its row of metrics.jsonl."""

    def note(self, message: str) -> None:
        """Show a line."""


class View(Protocol):
    """How a run is shown (`siri.report.view`)."""

    def progress(
        self,
        steps: int,
        start: int,
        quiet: bool,
        *,
        cap: Callable[[int], int],
        evaluations: Callable[[int], int],
        log: Path | None,
    ) -> Progress:
        """The display of a run of `steps` steps, `start` of which are done. cap: of a step, tokens. evaluations: how
        many are due after more than so many steps. log: the run folder, on the rank that writes there."""
        ...

    def write_report(self, folder: Path) -> None:
        """Draw the report of a run folder."""

    def print_closing(self, folder: Path) -> None:
        """Print the table at the end of a run."""
