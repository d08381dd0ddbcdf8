"""The run folder: what it holds, when it may be written, and where a run continues."""

import contextlib
import fcntl
import json
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, Literal

from siri.config import Config, free_keys
from siri.data.content import Content, continue_sampler
from siri.data.prompts import PromptSet
from siri.data.sampler import Sampler
from siri.errors import InputError, parse_json
from siri.store.checkpoint import discard_after, newest_good, read_state
from siri.store.jsonl import MetricsLog, write_atomic
from siri.text import encoded

Resume = Literal["never", "must", "auto"]


DATA = "data.json"


class RunFolder:
    """runs/NAME: config.json, data.json, metrics.jsonl, eval.jsonl, plans.jsonl, checkpoints/, report and pictures."""

    def __init__(self, path: Path, config: Config, recipe: str, resume: Resume) -> None:
        """Decide what is to be done with the folder; nothing is written before `create`.

        Raises InputError when the folder holds a run and `resume` is "never", holds another configuration, holds no run
        and `resume` is "must", or holds something else altogether.
        """
        self.path = path
        self.config = config
        self.recipe = recipe
        self.checkpoints = path / "checkpoints"
        # as durable as the checkpoints: a row is on the disk before the checkpoint that says it is there
        self.metrics = MetricsLog(path / "metrics.jsonl", fsync=True)
        self.evals = MetricsLog(path / "eval.jsonl", fsync=True)
        self.plans = MetricsLog(path / "plans.jsonl")
        self.partial = MetricsLog(path / "eval_partial.jsonl", fsync=True)
        """Benchmarks that are done of the evaluation in progress."""
        self.checkpoint: Path | None = None
        """Where to continue; None = at step 0."""
        self.state: dict[str, Any] = {"steps_done": 0, "train_tokens": 0}
        self.threads: int | None = None
        """CPU threads of each rank: `compute_with`."""
        self._threads_before: Any = None
        self._lock: IO[str] | None = None
        self.notes: list[str] = []
        """Lines for the user about damaged checkpoints that were passed over, and about data that changed."""
        self._content: Content | None = None
        held = path / "config.json"
        if not _is_run(held):
            if resume == "must":
                raise InputError(f"{path}: no run there to resume; leave out --resume to start one")
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise InputError(f"{path} exists and is no run folder; choose another --run-dir")
            return
        differing = _differences(held, config)
        if resume == "never":
            other = f" with another configuration ({', '.join(differing)})" if differing else ""
            raise InputError(
                f"{path} already holds a run{other}; continue it with --resume, or choose another --run-dir"
            )
        known = {"data", "prompt_key", "answer_key"} if (path / DATA).exists() else set()  # by content: `sampler`
        if blocking := [key for key in differing if key not in free_keys() | known]:
            raise InputError(
                f"{path} holds a run with another configuration ({', '.join(blocking)}); give the same settings to "
                "resume it, or choose another --run-dir"
            )
        self._threads_before = parse_json(held.read_text()).get("threads_used")
        with contextlib.suppress(PermissionError):  # a finished run may lie in a folder that is read-only
            self._take()  # from here on nobody else changes what is found
        for log in (self.metrics, self.evals):
            if any(type(row.get("step")) is not int for row in log.rows()):
                raise InputError(f"{log.path}: a row has no step; mend or delete it")
        self.checkpoint, self.notes = newest_good(self.checkpoints)
        if self.notes and not self.checkpoint:
            raise InputError(
                f"no good checkpoint to resume from ({'; '.join(self.notes)}); restore one, or choose another --run-dir"
            )
        if self.checkpoint:
            self.state = read_state(self.checkpoint)
            missing = set(range(self.start)) - {row["step"] for row in self.metrics.rows()}
            if missing:
                self.notes.append(f"{self.metrics.path}: {len(missing)} of {self.start} steps have no row")

    @property
    def start(self) -> int:
        """Steps that are done."""
        return self.state["steps_done"]

    def sampler(self, prompts: PromptSet, tokenizer: Any) -> Sampler:
        """Where the run draws its next problems. Raises InputError when the data is not what it was drawn from so far,
        as `siri.data.content` tells it."""
        config = self.config
        self._content = Content.of(config.data, prompts, tokenizer)
        before = Content.read(self.path / DATA) if self.checkpoint else None
        sampler, notes = continue_sampler(
            self.state["sampler"] if self.checkpoint else None,
            self._content,
            before,
            seed=config.seed,
            accept=config.data_changed == "accept",
        )
        self.notes += notes
        return sampler

    def finished(self) -> bool:
        """Nothing is left to do."""
        measured = not self.config.eval_data or any(row["step"] == self.start for row in self.evals.rows())
        return self.trained() and measured

    def trained(self) -> bool:
        """No step is left, though the last evaluation may be."""
        limit = self.config.train_tokens
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
        return row.get("step") == done and row.get("how") == self._how() and "figures" in row

    def compute_with(self, threads: int) -> None:
        """Keep the number of CPU threads of each rank for config.json; a note where the run had another so far."""
        self.threads = threads
        if self.start and self._threads_before not in (None, threads):
            self.notes.append(
                f"CPU threads: {threads}, so far {self._threads_before}; sums are rounded in another order, --threads "
                f"{self._threads_before} continues bit for bit"
            )

    def create(self) -> None:
        """Write config.json and data.json, and drop what will be written again: rows of logs, damaged checkpoints."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be made ({error.strerror}); choose another --run-dir") from None
        try:
            self._take()
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); choose another --run-dir") from None
        about = {"recipe": self.recipe, "versions": _versions(), "threads_used": self.threads}
        text = json.dumps({**about, **self.config.to_json()}, indent=1)
        write_atomic(self.path / "config.json", encoded(text))
        if self._content is not None:
            write_atomic(self.path / DATA, self._content.written())
        self.metrics.truncate(self.start)
        self.evals.truncate(keep=lambda row: row["step"] <= self.start)
        MetricsLog(self.path / "health.jsonl").truncate(self.start)
        self.partial.truncate(keep=lambda row: self._goes_on(row, self.start))
        self.plans.truncate(self.start)
        discard_after(self.checkpoints, self.start)

    def _take(self) -> None:
        """Lock the folder; the lock goes with this object or its process, however that ends."""
        if self._lock is not None:
            return
        lock = (self.path / ".lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise InputError(f"{self.path}: another process is training there; wait for it, or stop it") from None
        self._lock = lock

    def __getstate__(self) -> dict[str, Any]:
        """For the other ranks, which do not hold the lock."""
        return {**self.__dict__, "_lock": None}


def _is_run(held: Path) -> bool:
    """Whether `held` is a run's config.json; one that cannot be read is taken for it, a model's is not."""
    try:
        return "model_type" not in parse_json(held.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError, TypeError):
        return True


def held_settings(path: Path) -> dict[str, Any]:
    """config.json of the run in a folder; {} where none can be read, of which `RunFolder` says what is wrong."""
    try:
        held = parse_json((path / "config.json").read_bytes())
    except (OSError, ValueError, TypeError):
        return {}
    return held if isinstance(held, dict) else {}


def _differences(held: Path, config: Config) -> list[str]:
    try:
        old = parse_json(held.read_bytes())
        return [key for key, value in config.to_json().items() if key not in old or old[key] != value]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{held}: cannot be read ({error}); restore it or choose another --run-dir") from None


def _versions() -> dict[str, str]:
    versions = {}
    for package in ("siri-rl", "siri-kernels", "torch", "triton", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
