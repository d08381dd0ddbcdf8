"""`python -m tests.support.unreported`: the command `siri`, whose runs draw no report. For runs in processes of their
own whose pictures nobody looks at: they take as long as a short run's training."""

import sys

from siri.cli import main
from siri.report import view


def draw_nothing(folder: object) -> None:
    """In the place of `write_report`."""


if __name__ == "__main__":
    view.write_report = draw_nothing
    sys.exit(main())
