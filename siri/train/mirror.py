"""The loggers beside metrics.jsonl: no run begins without those it asked for, and none ends with them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from siri.config import Config
from siri.errors import InputError, first_line
from siri.store.loggers import Logger, make_logger
from siri.store.responses import Response

MOST = 32
"""Responses of a table."""


class Mirror:
    """Mirrors the rows of a run. Once it has begun, a logger that fails (a network, a full disk) is told and left, and
    the others go on."""

    def __init__(self, kinds: Sequence[str], folder: Path, config: Config, note: Callable[[str], None]) -> None:
        """note: says a line to the user."""
        self.kinds, self.folder, self.config, self.note = kinds, folder, config, note
        self._loggers: dict[str, Logger] = {}

    def start(self) -> None:
        """Make the loggers; InputError where one of them cannot be had, and then there is none."""
        for kind in self.kinds:
            try:
                self._loggers[kind] = make_logger(kind, self.folder, self.config.to_json())
            except InputError:
                self.close()
                raise

    def log(self, row: Mapping[str, Any], step: int) -> None:
        self._try(lambda logger: logger.log(row, step), "the run goes on without it")

    def table(self, name: str, responses: Sequence[Response], step: int) -> None:
        """Mirror some responses of a step or an evaluation."""
        self._try(lambda logger: logger.table(name, spread(responses), step), "the run goes on without it")

    def close(self) -> None:
        self._try(lambda logger: logger.close(), "its last rows may be missing there")
        self._loggers = {}

    def _try(self, function: Callable[[Logger], None], consequence: str) -> None:
        for kind, logger in list(self._loggers.items()):
            try:
                function(logger)
            except Exception as error:  # their libraries raise what they will
                del self._loggers[kind]
                self.note(f"warning: --logger {kind} failed ({first_line(error)}); {consequence}")


def spread(responses: Sequence[Response]) -> list[Response]:
    """At most MOST of the responses, evenly from all of them."""
    count = min(MOST, len(responses))
    return [responses[index * len(responses) // count] for index in range(count)]
