"""`siri study STUDY.toml`: run what is missing of a study, then its table and pictures."""

from dataclasses import dataclass
from pathlib import Path

from siri.config.settings import Settings, setting


@dataclass(frozen=True)
class StudyOptions(Settings):
    """How much of the study is run, and how."""

    study: str = setting("", positional=True)
    """The study's .toml file."""
    jobs: int = setting(1, least=1)
    """Runs at a time, each in a process of its own."""
    threads: int = setting(1, least=1)
    """CPU threads of each."""
    limit: int = setting(0, least=0)
    """Most runs of this call; 0 = all that are missing."""
    reward: tuple[str, ...] = ()
    """Functions (module:function) that the study may name as rewards: they are code, and a file alone is no reason to
    run it."""
    only: tuple[str, ...] = ()
    """Only these arms (and the sweeps that they wait for)."""
    runs: str = ""
    """Folder of the run folders; default runs/study-NAME. They hold no report: `siri report` draws it."""
    rewind: bool = False
    """Go on where a run's checkpoints are gone, from those that are left, or from the start."""
    draw: bool = False
    """Run nothing: table and pictures of what results.jsonl holds."""


def run_study(options: StudyOptions) -> int:
    """The exit code: 0 done, 75 stopped by a signal with the state saved."""
    from siri.study.report import progress, show_comparison, show_tasks, study_curves, write_comparison, write_tasks
    from siri.study.runner import Stopped, run_pairs
    from siri.study.study import finished, swept_values, unchosen
    from siri.study.study_file import read_studies

    studies = read_studies(options.study)
    study = studies[0]
    if not options.draw:
        runs = Path(options.runs or f"runs/study-{study.path.resolve().parent.name}")
        try:
            run_pairs(
                studies,
                jobs=options.jobs,
                limit=options.limit,
                runs=runs,
                only=options.only,
                threads=options.threads,
                trusted=options.reward,
                rewind=options.rewind,
            )
        except Stopped:
            print("stopped, state saved; the same command continues")
            return 75
        rows = finished(study)
        if not study.task and unchosen(study, swept_values(study, rows)):
            print("the sweeps are not finished yet; the same command continues")
            return 0
    if study.task:
        show_tasks(write_tasks(studies))
        return 0
    curves = study_curves(study)
    head = f"`{study.path.name}`, {progress(study, curves)}"
    show_comparison(write_comparison(curves, study.path.parent, head=head), curves)
    return 0
