"""How far the reading of problems has come, on a terminal."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from siri.data.problems import RowsRead
from siri.text import printable

PATIENCE_S = 2.0
"""What is read sooner shows nothing."""


@contextmanager
def reading_bar(wanted: bool = True) -> Iterator[Callable[[str], RowsRead] | None]:
    """What gives each source something to tell its rows to: a bar on standard error for a source that takes its time.
    Nothing where standard error is no terminal, or not `wanted`."""
    if not wanted or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns(), TimeElapsedColumn(), MofNCompleteColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    begun = time.monotonic()

    def source(name: str) -> RowsRead:
        task = bar.add_task(f"reading {escape(printable(name))}", total=None)

        def told(rows: int, total: int | None) -> None:
            if time.monotonic() - begun > PATIENCE_S:
                bar.start()
            bar.update(task, completed=rows, total=total)

        return told

    try:
        yield source
    finally:
        bar.stop()
