"""`siri study STUDY.toml`: run what is missing of a study, then its table and pictures."""

from dataclasses import dataclass
from pathlib import Path

from siri.config.settings import Settings, setting
from siri.text import say


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
    """Only these arms (and the sweeps)."""
    runs: str = ""
    """Folder of the run folders; default runs/study-NAME."""
    draw: bool = False
    """Run nothing: table and pictures of what results.jsonl holds."""


def run_study(options: StudyOptions) -> int:
    """The exit code: 0 done, 75 stopped by a signal with the state saved."""
    from siri.study.report import progress, study_curves, write_comparison
    from siri.study.runner import Stopped, run_pairs
    from siri.study.study import finished, read_study, swept_values

    study = read_study(options.study)
    if not options.draw:
        runs = Path(options.runs or f"runs/study-{study.path.resolve().parent.name}")
        try:
            run_pairs(
                study,
                jobs=options.jobs,
                limit=options.limit,
                runs=runs,
                only=options.only,
                threads=options.threads,
                trusted=options.reward,
            )
        except Stopped:
            print("stopped, state saved; the same command continues")
            return 75
        if swept_values(study, finished(study)) is None:
            print("the sweeps are not finished yet; the same command continues")
            return 0
    curves = study_curves(study)
    say(write_comparison(curves, study.path.parent, head=f"`{study.path.name}`, {progress(study, curves)}"))
    return 0
