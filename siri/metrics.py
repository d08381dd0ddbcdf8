"""What a run records: JSON lines that survive a crash, and optional loggers that mirror them.

`metrics.jsonl` holds one object a training step, `eval.jsonl` one object an evaluation. Both are plain appends: a
process killed in the middle of a write leaves at most one torn last line; reading ignores it, the next write drops it.
"""

import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siri.errors import InputError

LOGGERS = ("none", "tensorboard", "wandb", "trackio")
INSTALL_LOGGERS = "pip install -e ./kernels -e '.[loggers]'"


def _plain(value: Any) -> Any:
    """`value` as JSON knows it: NaN and infinities become None, numpy and torch scalars become Python numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if callable(getattr(value, "item", None)):
        return _plain(value.item())
    raise TypeError(f"cannot record a {type(value).__name__}: {value!r}")


def _parse(path: Path) -> tuple[list[dict], bool]:
    """Rows of a JSON lines file and whether its end is whole (last line good and ended by a newline)."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    lines = data.split(b"\n")
    last = max((i for i, line in enumerate(lines) if line.strip()), default=-1)
    rows: list[dict] = []
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=lambda _: None)
            if not isinstance(row, dict):
                raise ValueError(f"expected an object, found {type(row).__name__}")
        except ValueError as error:
            if i == last:
                return rows, False
            reason = getattr(error, "msg", str(error))
            raise InputError(f"{path}, line {i + 1}: not a JSON object ({reason}); mend or delete that line") from None
        rows.append(row)
    return rows, not data or data.endswith(b"\n")


def read_jsonl(path: str | Path) -> list[dict]:
    """The objects of a JSON lines file, in order.

    A last line that does not parse is what a killed process leaves behind, and is ignored.

    Raises:
        InputError: the file cannot be read, or a line before the last is not a JSON object (names file and line).
    """
    return _parse(Path(path))[0]


class MetricsLog:
    """An append-only JSON lines file.

    Args:
        path: the file; its folder must exist, the file need not.
        fsync: also wait until every row is on the disk (survives a power cut, not only a killed process).
    """

    def __init__(self, path: str | Path, *, fsync: bool = False):
        self.path = Path(path)
        self.fsync = fsync
        self._checked = False

    def append(self, row: Mapping[str, Any]) -> None:
        """Write `row` as one line and flush it. NaN and infinities become null; floats round-trip exactly."""
        line = json.dumps(_plain(row), allow_nan=False, ensure_ascii=False) + "\n"
        if not self._checked:
            self.truncate(keep=lambda row: True)  # the new row must start on a line of its own
            self._checked = True
        with open(self.path, "ab") as file:
            # one write call: a kill leaves the line whole, absent or torn at the end, never mixed with another
            file.write(line.encode())
            file.flush()
            if self.fsync:
                os.fsync(file.fileno())

    def truncate(self, step: int | None = None, *, keep: Callable[[dict], bool] | None = None) -> int:
        """Drop the rows that a resumed run will write again, and a torn last line; returns how many rows went.

        Args:
            step: number of completed steps: rows with row["step"] >= step go (`metrics.jsonl`).
            keep: instead of `step`, the rows to keep (`eval.jsonl`: lambda row: row["step"] <= step).

        The file is replaced atomically; a missing file counts as empty.
        """
        if (step is None) == (keep is None):
            raise TypeError("truncate() takes either step or keep")
        if not self.path.exists():
            return 0
        rows, whole = _parse(self.path)
        kept = [row for row in rows if (keep(row) if keep else row["step"] < step)]
        if len(kept) < len(rows) or not whole:
            text = "".join(json.dumps(_plain(row), ensure_ascii=False) + "\n" for row in kept)
            write_atomic(self.path, text.encode())
        return len(rows) - len(kept)

    def rows(self) -> list[dict]:
        """All rows so far; a missing file has none."""
        return read_jsonl(self.path) if self.path.exists() else []


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old content or the new, never a mixture."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class RunRecord:
    """What a run folder holds: config.json ({} when absent), and the rows of metrics.jsonl and eval.jsonl by step."""

    config: dict[str, Any]
    metrics: list[dict]
    evals: list[dict]


def read_run(run_dir: str | Path) -> RunRecord:
    """Read a run folder, finished or not.

    Raises:
        InputError: `run_dir` is no run folder (it has no metrics.jsonl), or a file in it is damaged (names it).
    """
    run_dir = Path(run_dir)
    if not (run_dir / "metrics.jsonl").is_file():
        raise InputError(f"{run_dir} is not a run folder (no metrics.jsonl in it); pass the --run-dir of `siri train`")
    config, path = {}, run_dir / "config.json"
    if path.exists():
        try:
            config = json.loads(path.read_text())
        except ValueError as error:
            raise InputError(f"{path}: not JSON ({error}); restore it or delete it") from None
    evals = run_dir / "eval.jsonl"
    return RunRecord(
        config=config if isinstance(config, dict) else {},
        metrics=sorted(read_jsonl(run_dir / "metrics.jsonl"), key=lambda row: row["step"]),
        evals=sorted(read_jsonl(evals), key=lambda row: row["step"]) if evals.exists() else [],
    )


# --- figures ---


def efficiency_score(
    figures: Mapping[str, tuple[float, float]], base: Mapping[str, tuple[float, float]]
) -> float | None:
    """Efficiency score of SIRI's tables: mean over benchmarks of the relative gain in accuracy (not below 0), divided
    by the mean of the relative tokens.

    figures and base: benchmark -> (accuracy, mean tokens). None when there is no relative figure: the base got nothing
    right somewhere, or there are no tokens. Raises InputError unless both have the same benchmarks.
    """
    if figures.keys() != base.keys() or not figures:
        raise InputError(f"efficiency score: benchmarks {sorted(figures)} and {sorted(base)} differ or are none")
    if not all(accuracy and tokens for accuracy, tokens in base.values()):
        return None
    gains = [max(accuracy / base[name][0] - 1, 0) for name, (accuracy, _) in figures.items()]
    costs = [tokens / base[name][1] for name, (_, tokens) in figures.items()]
    return sum(gains) / sum(costs) if sum(costs) else None


# --- loggers ---


def _scalars(row: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    """The section ("train" or "eval") of a row and its finite numbers, nested ones as "pass_at_k/8"."""
    row = _plain(row)
    numbers: dict[str, float] = {}

    def walk(prefix: str, items: dict) -> None:
        for key, value in items.items():
            if isinstance(value, dict):
                walk(f"{prefix}{key}/", value)
            elif isinstance(value, (int, float)) and key != "step":
                numbers[f"{prefix}{key}"] = float(value)

    walk("", row)
    if "phase" in row:
        numbers["expansion"] = float(row["phase"] == "expansion")
    # an evaluation has a name ("base", "siri-low-1", ...), a training step has not
    return ("eval" if "name" in row else "train"), numbers


class Logger:
    """Mirrors rows of `metrics.jsonl` and `eval.jsonl` elsewhere; this one goes nowhere (`--logger none`)."""

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """Log the numbers of `row` at `step` under train/ or, for a row that has a `name`, under eval/."""

    def close(self) -> None:
        """Flush and finish."""


class TensorBoardLogger(Logger):
    """Event files in RUN/tensorboard/train and RUN/tensorboard/eval."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any]):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _missing("tensorboard") from None
        self._writer_class = SummaryWriter
        self._folder = run_dir / "tensorboard"
        self._writers: dict[str, Any] = {}
        self._config = config

    def log(self, row: Mapping[str, Any], step: int) -> None:
        section, numbers = _scalars(row)
        if section not in self._writers:
            # purge_step hides what a killed run logged after the checkpoint that this one resumed from. That is why the
            # two sections have a writer each: an evaluation must not be purged by the first training step after it
            self._writers[section] = self._writer_class(str(self._folder / section), purge_step=step)
            if section == "train":
                text = json.dumps(_plain(self._config), indent=2)
                self._writers[section].add_text("config", f"```json\n{text}\n```", step)
        for key, value in numbers.items():
            self._writers[section].add_scalar(key, value, step)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class WandbLogger(Logger):
    """A Weights & Biases run in project `siri` (WANDB_PROJECT, WANDB_MODE and the like are honoured)."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any]):
        try:
            import wandb
        except ImportError:
            raise _missing("wandb") from None
        fresh = not run_dir.exists()
        run_id = _run_id(run_dir)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "siri"),
                dir=str(run_dir),
                id=run_id,
                name=os.environ.get("WANDB_NAME", run_dir.resolve().name),
                config=_plain(config),
                resume="allow",
            )
        except wandb.Error as error:
            if fresh:
                shutil.rmtree(run_dir)  # bad input leaves no half-written run folder behind
            reason = " ".join(str(error).split())
            raise InputError(f"--logger wandb: {reason}; or set WANDB_MODE=offline") from None
        # a step axis of our own: wandb's may only grow, and a resumed run goes back to its last checkpoint
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, row: Mapping[str, Any], step: int) -> None:
        section, numbers = _scalars(row)
        self._run.log({f"{section}/{key}": value for key, value in numbers.items()} | {"step": step})

    def close(self) -> None:
        self._run.finish()


class TrackioLogger(Logger):
    """A trackio run in project `siri` (TRACKIO_PROJECT names another)."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any]):
        try:
            import trackio
        except ImportError:
            raise _missing("trackio") from None
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "siri"),
            # trackio resumes by name
            name=f"{run_dir.resolve().name}-{_run_id(run_dir)}",
            config=_plain(config),
            resume="allow",
            embed=False,
        )

    def log(self, row: Mapping[str, Any], step: int) -> None:
        section, numbers = _scalars(row)
        self._run.log({f"{section}/{key}": value for key, value in numbers.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


def make_logger(kind: str, run_dir: str | Path, config: Mapping[str, Any]) -> Logger:
    """The logger called `kind` ("none", "tensorboard", "wandb", "trackio"). Make it on rank 0 only.

    The folder of the run need not exist yet, and after an error it still does not.

    Raises:
        InputError: unknown kind, or its package is missing (says how to install it).
    """
    classes = {"tensorboard": TensorBoardLogger, "wandb": WandbLogger, "trackio": TrackioLogger}
    if kind == "none":
        return Logger()
    if kind not in classes:
        raise InputError(f"logger = {kind!r} is unknown; choose one of {', '.join(LOGGERS)}")
    return classes[kind](Path(run_dir), config)


def _missing(package: str) -> InputError:
    return InputError(f"--logger {package} needs the package {package}; in the checkout run: {INSTALL_LOGGERS}")


def _run_id(run_dir: Path) -> str:
    """An id that lives in the run folder: a resumed run continues its curve, a new one never does."""
    path = run_dir / "logger_id"
    if not path.exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (uuid.uuid4().hex[:8] + "\n").encode())
    return path.read_text().strip()
