"""`siri report`: the pictures and report.html of a run, or results of `siri eval` beside the paper's table."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from siri.config.settings import Settings, setting
from siri.errors import InputError
from siri.text import printable, say


@dataclass(frozen=True)
class ReportOptions(Settings):
    """How it is shown."""

    run: str = setting("", positional=True)
    """Folder of the run."""
    beside: str = setting("", everyday=True)
    """Folder of another run, whose curves and evaluations are shown beside it."""
    live: bool = setting(False, everyday=True)
    """Serve a page on this machine that follows the run while it goes on, until Ctrl-C; nothing is written."""
    port: int = setting(8400, least=0, most=65535, everyday=True)
    """Port of that page; 0 = any that is free."""


def run_report(options: ReportOptions) -> int:
    if options.live and options.beside:
        raise InputError("--beside is for the report that is drawn; leave out --live, or --beside")
    if options.live:
        return _follow(options)
    if options.port != ReportOptions.port:
        raise InputError("--port is of the page that --live serves; give --live, or leave it out")
    from siri.report.html import write_report

    say(write_report(Path(options.run), options.beside or None))
    return 0


def _follow(options: ReportOptions) -> int:
    from siri.report.live import LiveServer

    with LiveServer(Path(options.run), options.port) as server, suppress(KeyboardInterrupt):
        print(f"{server.url} follows {printable(options.run)}; Ctrl-C ends it", flush=True)
        server.serve_forever(poll_interval=0.2)
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
