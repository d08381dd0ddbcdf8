"""`siri report`: the pictures and report.html of a run, or results of `siri eval` beside the paper's table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from siri.config.settings import setting
from siri.text import say


@dataclass(frozen=True)
class ReportOptions:
    run: str = setting("", positional=True)
    """Folder of the run."""


def run_report(options: ReportOptions) -> int:
    from siri.report.html import write_report

    say(write_report(Path(options.run)))
    return 0


@dataclass(frozen=True)
class PaperOptions:
    """The table."""

    files: tuple[str, ...] = setting((), positional=True, suffix=".json")
    """Result files of siri eval --out, the base's with base in its name."""
    size: Literal["auto", "1.5b", "7b"] = "auto"
    """Which half of the paper's table; auto = by the name of the base model."""


def run_paper(options: PaperOptions) -> int:
    from siri.report.paper import print_paper

    print_paper(options.files, options.size)
    return 0
