"""What a run asks of whoever shows it: what trains knows nothing of pictures and terminals."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Progress(Protocol):
    """The display of a run; a context."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *exception: object) -> None: ...

    def update(self, row: Mapping[str, Any]) -> None:
        """Show a finished step, given as its row of metrics.jsonl."""

    def note(self, message: str) -> None:
        """Show a line."""


class View(Protocol):
    """How a run is shown (`siri.report.view`)."""

    def progress(self, steps: int, start: int, quiet: bool) -> Progress:
        """The display of a run of `steps` steps, `start` of which are done."""
        ...

    def write_report(self, folder: Path) -> None:
        """Draw the report of a run folder."""

    def print_closing(self, folder: Path) -> None:
        """Print the table at the end of a run."""
