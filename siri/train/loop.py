"""`train()`: the whole loop. What its steps are made of is in `siri.train.run`."""

from pathlib import Path

from siri.config import Config
from siri.errors import InputError
from siri.runtime.ranks import join_ranks
from siri.runtime.signals import Interrupted
from siri.store.run_folder import Resume, RunFolder
from siri.train.device import choose_device
from siri.train.edges import compile_kernels, show_finished
from siri.train.run import DONE, Run
from siri.train.view import View


def train(
    config: Config,
    run_dir: Path,
    *,
    recipe: str,
    view: View,
    resume: Resume = "never",
    rewind: bool = False,
    quiet: bool = False,
) -> int:
    """Train `config` in the folder `run_dir`; returns the exit code. view: how it is shown. Bad input
    is an InputError, before any writing; what ends a run that has begun has its state saved first.

    Under torchrun every process calls it with the same arguments.
    """
    chosen, note = choose_device(config)
    ranks, device = join_ranks(chosen, across_nodes=config.shard_across_nodes)
    folder = ranks.on_main(lambda: RunFolder(run_dir, config, recipe, resume, rewind=rewind))
    folder.notes += [note] if note else []
    config = folder.config  # rank 0's: what nobody gave is read from the folder, which a rank may not see
    try:
        if folder.finished():
            show_finished(folder, ranks, view, quiet=quiet)
            return DONE
        with Run(config, folder, ranks, device, view, quiet=quiet) as run:
            try:
                run.begin()  # nothing is written before all that may be bad input was tried
                compile_kernels(run.learner, run.progress.note)
                run.evaluate_if_due()
                while not run.over:
                    step = run.next_step()
                    with run.timed(step):
                        groups = run.collect(step)
                        update = run.learn(step, groups)
                        lost = run.sync()
                    agreed = run.agree()
                    run.record(step, groups, update)
                    if lost is not None:
                        raise lost
                    run.save_if_due(agreed)
                    run.evaluate_if_due()
            except Interrupted:  # nothing of what was under way has happened; a resumed run makes up for it
                run.stopped = True
            except InputError as error:
                run.rescue(error)
                raise
            run.leave()
        return run.closing_words()
    finally:
        folder.release()
