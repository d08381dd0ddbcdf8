"""What a person sees of a run: the display while it trains, the report and the table at its end."""

from collections.abc import Callable
from pathlib import Path

from siri.report.html import write_report
from siri.report.progress import TrainProgress
from siri.report.terminal import print_closing


class TerminalView:
    """The view of `siri train`; what `siri.train.view.View` asks for."""

    def progress(
        self,
        steps: int,
        start: int,
        quiet: bool,
        *,
        cap: Callable[[int], int],
        evaluations: Callable[[int], int],
        log: Path | None,
    ) -> TrainProgress:
        """The display of a run of `steps` steps, `start` of which are done."""
        return TrainProgress(steps, start, quiet, cap=cap, evaluations=evaluations, log=log)

    def write_report(self, folder: Path) -> None:
        """Draw report.html and the pictures of a run folder."""
        write_report(folder)

    def print_closing(self, folder: Path) -> None:
        """Print the table of a run's evaluations."""
        print_closing(folder)


class UndrawnView(TerminalView):
    """The view of a study's runs: nobody looks at hundreds of reports, and drawing them is a good part of a short
    run's work. `siri report RUN` draws one."""

    def write_report(self, folder: Path) -> None:
        pass
