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


def run_compare(options: CompareOptions) -> int:
    from siri.study.compare import curves_of_runs
    from siri.study.report import show_comparison, write_comparison

    curves = curves_of_runs([Path(run) for run in options.runs])
    if options.out and not Path(options.out).absolute().parent.is_dir():
        raise InputError(f"--out {options.out}: its parent is no folder; make it first")
    folder = Path(options.out) if options.out else None
    show_comparison(write_comparison(curves, folder, reference=options.reference), curves, options.reference)
    return 0
