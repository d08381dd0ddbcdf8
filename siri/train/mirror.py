"""The logger beside metrics.jsonl: no run begins without the one it asked for, and none ends with it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from siri.config import Config
from siri.errors import first_line
from siri.store.loggers import Logger, make_logger


class Mirror:
    """Mirrors the rows of a run. Once it has begun, a logger that fails (a network, a full disk) is told and left."""

    def __init__(self, kind: str, folder: Path, config: Config, note: Callable[[str], None]) -> None:
        """note: says a line to the user."""
        self.kind, self.folder, self.config, self.note = kind, folder, config, note
        self._logger = Logger()

    def start(self) -> None:
        """Make the logger; InputError where it cannot be had."""
        self._logger = make_logger(self.kind, self.folder, self.config.to_json())

    def log(self, row: Mapping[str, Any], step: int) -> None:
        self._try(lambda: self._logger.log(row, step), "the run goes on without it")

    def close(self) -> None:
        self._try(self._logger.close, "its last rows may be missing there")
        self._logger = Logger()

    def _try(self, function: Callable[[], None], consequence: str) -> None:
        try:
            function()
        except Exception as error:  # their libraries raise what they will
            self._logger = Logger()
            self.note(f"warning: --logger {self.kind} failed ({first_line(error)}); {consequence}")
