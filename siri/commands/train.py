"""`siri train RECIPE`: train, or say what would be trained."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from siri.config.recipe import RecipeOptions
from siri.config.settings import setting
from siri.errors import InputError

STOPPED_FILE = "SIRI_STOPPED"
"""Environment variable: a file that a run which was stopped writes its exit code to (launch/node.sh)."""


@dataclass(frozen=True)
class TrainOptions(RecipeOptions):
    """The run: where it goes, and how it starts."""

    run_dir: str = setting("", everyday=True)
    """Folder of the run; default runs/RECIPE."""
    resume: bool = setting(False, everyday=True)
    """Continue the run in --run-dir from its newest good checkpoint."""
    auto_resume: bool = False
    """Start the run, or continue it if the folder holds one."""
    rewind: bool = False
    """With --resume or --auto-resume: continue although checkpoints are gone that were there, from the newest that is
    left; the logs as they are now are kept beside."""
    quiet: bool = False
    """Show nothing but errors."""
    dry_run: bool = setting(False, everyday=True)
    """Resolve everything, print what the run would be, and stop before anything is allocated or written."""


@dataclass(frozen=True)
class BranchOptions(TrainOptions):
    """The run that starts: its settings are those of the other one, but for what is given here."""

    recipe: str = setting("", positional=True)
    """RUN@STEP: a run folder, and the step or the name of one of its checkpoints."""

    @staticmethod
    def check_recipe(recipe: str) -> None:
        if "@" not in recipe:
            raise InputError(f"{recipe!r} names no checkpoint; write siri branch RUN@STEP, as in runs/demo@80")


def run_train(options: TrainOptions) -> int:
    """The exit code: 0 done, 75 stopped by a signal with the state saved."""
    config = options.config("model", "data")  # what is wrong with it is said before anything heavy is read
    from siri.report.paper import expand
    from siri.report.view import TerminalView
    from siri.runtime.ranks import leave_ranks, recorded
    from siri.store.held import held_settings
    from siri.train.loop import train

    recipe = Path(options.recipe).stem if options.recipe.endswith(".toml") else options.recipe
    resume = "auto" if options.auto_resume else "must" if options.resume else "never"
    run_dir = Path(options.run_dir or (recipe if "@" in recipe else f"runs/{recipe}"))
    if resume != "never":
        config = options.config(held=held_settings(run_dir))
    config = replace(config, eval_data=expand(config.eval_data))
    if options.dry_run:
        from siri.commands.dry_run import dry_run

        return dry_run(config, run_dir, recipe=recipe, resume=resume, rewind=options.rewind)
    how = {"recipe": recipe, "view": TerminalView(), "resume": resume, "rewind": options.rewind}
    code = recorded(lambda: train(config, run_dir, **how, quiet=options.quiet))
    leave_ranks()
    if code and (told := os.environ.get(STOPPED_FILE)):  # torchrun's own exit code is 1 whatever this one is
        Path(told).write_text(f"{code}\n")
    return code
