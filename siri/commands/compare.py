"""`siri compare RUN RUN ...`: the table and pictures of a study for run folders at hand."""

from dataclasses import dataclass
from pathlib import Path

from siri.config.settings import setting
from siri.errors import InputError


@dataclass(frozen=True)
class CompareOptions:
    """The comparison."""

    runs: tuple[str, ...] = setting((), positional=True, least=2)
    """Run folders, two at least."""
    out: str = ""
    """Folder for table.md and the pictures; none = only the table in the terminal."""
    reference: str = ""
    """Arm that the others are compared with; default the first."""
    until: int = setting(0, least=0)
    """Leave out what came after this step, as where one run is shorter than another; 0 = nothing."""


def run_compare(options: CompareOptions) -> int:
    from siri.study.compare import curves_of_runs, unlike, until
    from siri.study.report import show_comparison, write_comparison
    from siri.text import say

    runs = [Path(run) for run in options.runs]
    curves = curves_of_runs(runs)
    if options.until:
        curves = [until(curve, options.until) for curve in curves]
    if options.out and not Path(options.out).absolute().parent.is_dir():
        raise InputError(f"--out {options.out}: its parent is no folder; make it first")
    folder = Path(options.out) if options.out else None
    for line in unlike(runs, curves):
        say(line)
    show_comparison(write_comparison(curves, folder, reference=options.reference), curves, options.reference)
    return 0
