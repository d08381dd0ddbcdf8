"""The run folder: what it holds, when it may be written, and where a run continues."""

import contextlib
import errno
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from siri.config import Config, free_keys
from siri.data.content import Content, continue_sampler
from siri.data.prompts import PromptSet
from siri.data.sampler import Sampler
from siri.errors import InputError
from siri.model.identity import ModelIdentity
from siri.store import files
from siri.store.bare_weights import BareWeights, hint
from siri.store.checkpoint import discard_after, newest_good, put_back, read_state, remove
from siri.store.held import (
    CONFIG,
    DATA,
    FORMAT,
    LOGGERS,
    LOGS,
    MODEL,
    SAVED,
    check_vacant,
    differences,
    interval,
    is_run,
    refuse_links,
    saved_step,
    versions,
)
from siri.store.jsonl import MetricsLog
from siri.store.lineage import BranchPoint
from siri.store.lock import LEASE, LOCK, FolderLock
from siri.store.origin import origin
from siri.store.responses import forget_after
from siri.store.saver import MAX_FAILURES
from siri.store.schema import is_count, row_fault
from siri.text import encoded

Resume = Literal["never", "must", "auto"]

INHERITED = ("sampler", "laser")
"""What of another run's state one that starts from it goes on with, beside weights and optimizer."""
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


class RunFolder:
    """runs/NAME: config.json, data.json, model.json, saved.json, metrics.jsonl, eval.jsonl, plans.jsonl, health.jsonl,
    checkpoints/, responses/, report and pictures."""

    def __init__(self, path: Path, config: Config, recipe: str, resume: Resume, *, rewind: bool = False) -> None:
        """Decide what is to be done with the folder; nothing but its lock is written before `create`.

        Raises InputError when the folder holds a run and `resume` is "never", holds another configuration, holds no run
        and `resume` is "must", holds something else altogether, or cannot be read. rewind: go on where checkpoints are
        gone that a kill does not explain.
        """
        self.path = path
        self.config = config
        self.recipe = recipe
        self.checkpoints = path / "checkpoints"
        self.saved = path / SAVED
        """After how many steps the newest save was made: beside the checkpoints, which may be purged or unmounted."""
        # as durable as the checkpoints: a row is on the disk before the checkpoint that says it is there
        self.metrics = MetricsLog(path / "metrics.jsonl", fsync=True)
        self.evals = MetricsLog(path / "eval.jsonl", fsync=True)
        self.plans = MetricsLog(path / "plans.jsonl")
        self.partial = MetricsLog(path / "eval_partial.jsonl", fsync=True)
        """Benchmarks that are done of the evaluation in progress."""
        self.checkpoint: Path | None = None
        """Where to continue; None = at step 0."""
        self.state: dict[str, Any] = {"steps_done": 0, "train_tokens": 0}
        self.origin: BranchPoint | None = None
        """The checkpoint of another run that this one starts from, as long as it has none itself."""
        self.weights: BareWeights | None = None
        """What it goes on from instead, without optimizer state, as long as it has no checkpoint itself."""
        self.first = 0
        """The step that it began with."""
        self.lineage: dict[str, Any] | None = None
        self.threads: int | None = None
        """CPU threads of each rank: `compute_with`."""
        self._threads_before: Any = None
        self._steps_known = False
        """Of a run whose length is given in epochs: whether the data was counted before."""
        self._lock: FolderLock | None = None
        self.notes: list[str] = []
        """Lines for the user about damaged checkpoints that were passed over, and about what changed."""
        self._content: Content | None = None
        self._model: ModelIdentity | None = None
        self._rewound = self._made = self._wrote = False
        self._made_above: list[Path] = []
        try:
            self._open(resume, rewind=rewind)
        except InputError:
            self.release()
            raise
        except OSError as error:
            self.release()
            raise InputError(
                f"{path}: cannot be read ({files.reason(error)}); nothing was changed, try again when it can"
            ) from None

    def _open(self, resume: Resume, *, rewind: bool) -> None:
        path, config = self.path, self.config
        refuse_links(self.path)
        self.fresh = not is_run(path / CONFIG)
        """Whether it holds no run yet."""
        if self.fresh:
            if resume == "must":
                raise InputError(f"{path}: {hint(path) or 'no run there to resume; leave out --resume to start one'}")
            check_vacant(self.path)
            self._branch_off()
            return
        if resume == "never":
            differing, _ = differences(path / CONFIG, config)
            other = f" with another configuration ({', '.join(differing)})" if differing else ""
            resumable = "continue it with --resume, or " if set(differing) <= set(free_keys()) else ""
            raise InputError(f"{path} already holds a run{other}; {resumable}choose another --run-dir")
        try:
            self._take()  # from here on nobody else changes what is found
        except OSError as error:
            if error.errno not in READ_ONLY:  # a finished run may lie in a folder that is read-only
                raise
        differing, old = differences(path / CONFIG, config)
        by_content = {"data", "duplicates", "prompt_key", "answer_key"}  # `sampler` looks at it
        known = by_content if files.there(path / DATA) else set()
        if blocking := [key for key in differing if key not in free_keys() | known]:
            raise InputError(
                f"{path} holds a run with another configuration ({', '.join(blocking)}); give the same settings to "
                "resume it, or choose another --run-dir"
            )
        self._threads_before = old.get("threads_used")
        if config.epochs and old.get("epochs") == config.epochs and is_count(old.get("steps")):
            self.config, self._steps_known = replace(config, steps=old["steps"]), True
        self.lineage = old.get("lineage")
        if config.resume_weights and isinstance(self.lineage, dict) and is_count(self.lineage.get("step")):
            self.first = self.lineage["step"]
        for log in (self.metrics, self.evals):
            if not all(is_count(row.get("step")) for row in log.rows()):
                raise InputError(f"{log.path}: a row has no step; mend or delete it")
        restored = [] if self._lock is None else put_back(self.checkpoints)
        self.checkpoint, self.notes = newest_good(self.checkpoints)
        if self.notes and not self.checkpoint:
            raise InputError(
                f"no good checkpoint to resume from ({'; '.join(self.notes)}); restore one, or choose another "
                "--run-dir (with --resume-weights CHECKPOINT where its weights are whole)"
            )
        self.notes += restored
        if self.checkpoint:
            self.state = read_state(self.checkpoint)
            if "sampler" not in self.state:
                raise InputError(f"{self.checkpoint}: no checkpoint of a training run; choose another --run-dir")
        else:
            self._branch_off()
        steps = {row["step"] for row in self.metrics.rows()}
        done = self.start - self.first
        if missing := done - sum(step < self.start for step in steps):
            self.notes.append(f"{self.metrics.path}: {missing} of {done} steps have no row")
        self._look_back(len(steps), old, rewind=rewind)

    def _branch_off(self) -> None:
        """Start where another run was, with the problems that it would have drawn next."""
        if self.config.resume_weights:
            self._take_over(self.config.resume_weights)
        if not self.config.branch_of:
            return
        self.origin = BranchPoint.of(self.config.branch_of)
        self.origin.check(self.lineage)
        self.lineage = self.origin.lineage()
        self.state |= {key: self.origin.state[key] for key in INHERITED if key in self.origin.state}

    def _take_over(self, text: str) -> None:
        """Start at a later step with weights that bring nothing else."""
        weights = BareWeights.of(text, self.config.model)
        weights.check(self.lineage, math.inf if self.config.epochs else self.config.steps)
        self.weights, self.lineage, self.first = weights, weights.lineage(), weights.steps
        self.state |= {"steps_done": weights.steps, "train_tokens": weights.train_tokens}
        steady = not (self.config.dynamic_sampling or self.config.hard_responses)
        self.notes.append(weights.note(self.config.prompts_per_step, exact=steady))

    @property
    def source(self) -> Path | None:
        """The checkpoint that fills model and optimizer: the newest of its own, or that of another run."""
        return self.checkpoint or (self.origin.checkpoint if self.origin else None)

    def _look_back(self, rows: int, old: Mapping[str, Any], *, rewind: bool) -> None:
        """Stop where checkpoints are gone that were there: a kill costs what came after the last save, but a folder
        that was purged, or is not mounted, would cost the run and its logs without a word."""
        saved = saved_step(self.saved)
        if saved is None:  # a folder of an older release
            every = [interval(settings) for settings in (old, self.config.to_json())]
            gone = not self.notes and rows > self.start + 2 * max(every) + MAX_FAILURES
        else:
            gone = saved > self.start and not files.there(self.checkpoints / f"step_{saved:06d}")
        self._rewound = gone and rewind
        if gone and not rewind:
            last = f"the checkpoint after step {saved}" if saved else f"the checkpoints of {rows} steps"
            raise InputError(
                f"{self.checkpoints}: {last} cannot be found, and what is there goes back to step {self.start}; "
                "restore or mount them, or give --rewind to go on from there"
            )

    @property
    def start(self) -> int:
        """Steps that are done."""
        return self.state["steps_done"]

    def sampler(self, prompts: PromptSet, tokenizer: Any, held_out: Mapping[str, PromptSet] | None = None) -> Sampler:
        """Where the run draws its next problems. Raises InputError when the data is not what it was drawn from so far,
        as `siri.data.content` tells it. held_out: the problems of the evaluations."""
        config = self.config
        self._content = Content.of(", ".join(config.data), prompts, tokenizer, held_out)
        before = Content.read(self.path / DATA) if not self.fresh else None
        if self.fresh and self.origin:
            before = Content.read(self.origin.run / DATA)
        sampler, notes = continue_sampler(
            self.state["sampler"] if self.source else None,
            self._content,
            before,
            seed=config.seed,
            accept=config.data_changed == "accept",
        )
        self.notes += notes
        if self.weights:
            sampler.take(self.first * config.prompts_per_step)
        return sampler

    def know_model(self) -> None:
        """Raise InputError when the model is not the one that the run began with, unless that is accepted."""
        self._model = ModelIdentity.of(self.config.model)
        before = None if self.fresh else ModelIdentity.read(self.path / MODEL)
        if before is None or not (change := self._model.change(before)):
            return
        if self.config.model_changed != "accept":
            raise InputError(f"{change}; restore it, or go on with --model-changed accept")
        self.notes.append(f"{change}; accepted")

    def finished(self) -> bool:
        """Nothing is left to do."""
        measured = not self.config.eval_data or any(row["step"] == self.start for row in self.evals.rows())
        return self.trained() and measured

    def trained(self) -> bool:
        """No step is left, though the last evaluation may be."""
        limit = self.config.train_tokens
        if self.config.epochs and not self._steps_known:
            return False
        return self.start >= self.config.steps or bool(limit and self.state["train_tokens"] >= limit)

    def measured(self, done: int) -> list[dict[str, Any]]:
        """The figures of the benchmarks that an evaluation after `done` steps had finished when it was cut short."""
        return [row["figures"] for row in self.partial.rows() if self._goes_on(row, done)]

    def keep_measured(self, done: int, figures: Any) -> None:
        """Note the figures of one more benchmark of the evaluation after `done` steps."""
        self.partial.append({"step": done, "how": self._how(), "figures": asdict(figures)})

    def _how(self) -> dict[str, Any]:
        """What is measured, and how: a run that continues may measure something else (`free_keys`)."""
        return {key: value for key, value in self.config.to_json().items() if key.startswith("eval_")}

    def _goes_on(self, row: dict[str, Any], done: int) -> bool:
        """Whether a row of eval_partial.jsonl is a part of the evaluation after `done` steps."""
        figures = row.get("figures")
        if not isinstance(figures, dict) or row_fault("eval", {"name": "", **figures, "step": done}):
            return False  # nothing of ours: it is measured again
        return row.get("step") == done and row.get("how") == self._how()

    def compute_with(self, threads: int, *, steps: int | None = None) -> None:
        """Keep what was settled for config.json: the number of CPU threads of each rank, with a note where the run had
        another so far, and the steps that its epochs come to."""
        self.threads, self.config = threads, replace(self.config, steps=steps or self.config.steps)
        if self.weights:
            self.weights.check(self.lineage, self.config.steps)
        if self.start and self._threads_before not in (None, threads):
            self.notes.append(
                f"CPU threads: {threads}, so far {self._threads_before}; sums are rounded in another order, --threads "
                f"{self._threads_before} continues bit for bit"
            )

    def create(self) -> str:
        """Write the files that make it a run's, and drop what will be written again: rows of logs, damaged checkpoints.
        Returns what its holder is known by. InputError, with a new folder left as it was, where it cannot be
        written, or where another process has come first."""
        try:
            self._made = not files.there(self.path)
            # nearest first: what a run that cannot begin takes away again
            self._made_above = [folder for folder in self.path.absolute().parents if not folder.exists()]
            files.make_folder(self.path)
            self._take()
            self._look_again()
            self._wrote = True
            self._write()
        except OSError as error:
            self.withdraw()
            raise InputError(
                f"{self.path}: cannot be written ({files.reason(error)}); make room or make it writable, or choose "
                "another --run-dir"
            ) from None
        assert self._lock is not None
        self.notes += self._lock.notes
        return self._lock.token

    def _look_again(self) -> None:
        """What was found without the lock, of a folder that held no run, is looked at once more with it."""
        assert self._lock is not None
        self._lock.check()
        if not self.fresh:
            return
        if is_run(self.path / CONFIG):
            raise InputError(
                f"{self.path}: another process began a run there meanwhile; continue it with --resume, or choose "
                "another --run-dir"
            )
        refuse_links(self.path)
        check_vacant(self.path)

    def _write(self) -> None:
        for path in self.path.iterdir():
            if files.TEMPORARY.fullmatch(path.name) and not path.name.startswith(f".{LEASE}."):
                remove(path)  # what a kill left half-written
        files.make_folder(self.checkpoints)
        if self._content is not None:
            files.write_atomic(self.path / DATA, self._content.written())
        if self._model is not None:
            files.write_atomic(self.path / MODEL, self._model.written())
        about = {"format": FORMAT, "recipe": self.recipe, "versions": versions(), "made": origin()}
        about["threads_used"] = self.threads
        about |= {"lineage": self.lineage} if self.lineage else {}
        # last: with it, it is a run
        files.write_atomic(self.path / CONFIG, encoded(json.dumps({**about, **self.config.to_json()}, indent=1)))
        if self._rewound:
            self._keep_logs()
        if (saved_step(self.saved) or 0) > self.start:  # before that checkpoint, a damaged one, gets another name
            files.write_atomic(self.saved, json.dumps({"step": self.start}).encode())
        self.metrics.truncate(self.start)
        self.evals.truncate(keep=lambda row: row["step"] <= self.start)
        MetricsLog(self.path / "health.jsonl").truncate(self.start)
        self.partial.truncate(keep=lambda row: self._goes_on(row, self.start))
        self.plans.truncate(self.start)
        forget_after(self.path, self.start)
        self.notes += discard_after(self.checkpoints, self.start)

    def _keep_logs(self) -> None:
        """Copies of the logs as they are, before more of their rows go than a kill explains."""
        for name in LOGS:
            path = self.path / name
            if files.there(path):
                kept = files.free_name(path, f"before-step-{self.start}")
                files.write_atomic(kept, files.read(path))
                self.notes.append(f"{path} as it was is kept as {kept.name}")

    def withdraw(self) -> None:
        """Take back what `create` has written of a run that did not begin, and the folder that it made. What was there
        before, it leaves."""
        if not self.fresh or self._lock is None:
            return
        if self._wrote:
            for name in (CONFIG, DATA, MODEL, *LOGGERS):
                _remove_if_possible(lambda name=name: remove(self.path / name))
            _remove_if_possible(self.checkpoints.rmdir)
        if self._wrote or self._made:
            _remove_if_possible((self.path / LOCK).unlink)
        self.release()
        for folder in [self.path, *self._made_above] if self._made else ():
            _remove_if_possible(folder.rmdir)

    def check_lease(self) -> None:
        """InputError where another process has taken the folder over."""
        if self._lock is not None:
            self._lock.check()

    def release(self) -> None:
        """Give the folder back to whoever comes next, on the rank that holds it."""
        if self._lock is not None:
            lock, self._lock = self._lock, None
            lock.release()

    def _take(self) -> None:
        """Lock the folder; the lock goes with this object or its process, however that ends."""
        if self._lock is None:
            self._lock = FolderLock(self.path)

    def __getstate__(self) -> dict[str, Any]:
        """For the other ranks, which do not hold the lock."""
        return {**self.__dict__, "_lock": None}


def _remove_if_possible(remove_it: Any) -> None:
    """Remove something, if that can be."""
    with contextlib.suppress(OSError):
        remove_it()
