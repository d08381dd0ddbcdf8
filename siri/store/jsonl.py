"""What a run records: JSON lines that survive a crash; `siri.store.loggers` mirrors them elsewhere.

`metrics.jsonl` holds one object a training step, `eval.jsonl` one object an evaluation. Both are plain appends: a
process killed in the middle of a write leaves at most one torn last line; reading ignores it, the next write drops it.
"""

import errno
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siri.errors import InputError, first_line, parse_json
from siri.store import files
from siri.store.files import write_atomic
from siri.store.schema import config_fault, is_count, row_fault
from siri.text import encoded


def plain(value: Any) -> Any:
    """`value` as JSON knows it: NaN and infinities become None, numpy and torch scalars become Python numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if callable(getattr(value, "item", None)):
        return plain(value.item())
    raise TypeError(f"cannot record a {type(value).__name__}: {value!r}")


def _parse(path: Path, *, absent: bytes | None = None) -> tuple[list[dict], bool]:
    """Rows of a JSON lines file and whether its end is whole (last line good and ended by a newline). absent: what a
    missing file counts as, if it may be missing."""
    try:
        data = files.read(path)
    except OSError as error:
        if absent is not None and isinstance(error, FileNotFoundError):
            return _parse_lines(path, absent)
        raise InputError(
            f"{path}: cannot be read ({files.reason(error)}); nothing was changed, try again when it can"
        ) from None
    return _parse_lines(path, data)


def _parse_lines(path: Path, data: bytes) -> tuple[list[dict], bool]:
    lines = data.split(b"\n")
    last = max((i for i, line in enumerate(lines) if line.strip()), default=-1)
    rows: list[dict] = []
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = parse_json(line, parse_constant=lambda _: None)
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
        """Write `row` as one line and flush it. NaN and infinities become null; floats round-trip exactly. InputError
        where it cannot be written, as on a full disk."""
        line = json.dumps(plain(row), allow_nan=False, ensure_ascii=False) + "\n"
        try:
            if not self._checked:
                if self.path.is_symlink():
                    raise OSError(errno.ELOOP, "it is a link")
                self.truncate(keep=lambda row: True)  # the new row must start on a line of its own
                self._checked = True
            files.append(self.path, encoded(line), fsync=self.fsync)
        except OSError as error:
            self._checked = False  # it may have left a torn line
            raise self._unwritten(error) from None

    def truncate(self, step: int | None = None, *, keep: Callable[[dict], bool] | None = None) -> int:
        """Drop the rows that a resumed run will write again, and a torn last line; returns how many rows went.

        Args:
            step: number of completed steps: rows with row["step"] >= step go (`metrics.jsonl`).
            keep: instead of `step`, the rows to keep (`eval.jsonl`: lambda row: row["step"] <= step).

        The file is replaced atomically; a missing file counts as empty.
        """
        if (step is None) == (keep is None):
            raise TypeError("truncate() takes either step or keep")
        rows, whole = _parse(self.path, absent=b"")
        if step is not None and not all(is_count(row.get("step")) for row in rows):
            raise InputError(f"{self.path}: a row has no step; mend or delete it")
        kept = [row for row in rows if (keep(row) if keep else row["step"] < step)]
        if len(kept) < len(rows) or not whole:
            text = "".join(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in kept)
            try:
                write_atomic(self.path, encoded(text))
            except OSError as error:
                raise self._unwritten(error) from None
        return len(rows) - len(kept)

    def rows(self) -> list[dict]:
        """All rows so far; a missing file has none."""
        return _parse(self.path, absent=b"")[0]

    def _unwritten(self, error: OSError) -> InputError:
        way_out = "make room or make it writable, then continue (a run with --resume)"
        return InputError(f"{self.path}: cannot be written ({files.reason(error)}); {way_out}")


@dataclass(frozen=True)
class RunRecord:
    """What a run folder holds: config.json ({} when absent), and the rows of its JSON lines files by step."""

    config: dict[str, Any]
    metrics: list[dict]
    evals: list[dict]
    plans: list[dict]
    """Packing plans of the first step and of the last of each phase; none in runs of older versions."""
    beside: "tuple[str, RunRecord] | None" = None
    """Another run, by its name, that is shown beside it."""


def _by_step(path: Path) -> list[dict]:
    rows = _parse(path, absent=b"")[0]
    for number, row in enumerate(rows, 1):
        if fault := row_fault(path.stem, row):
            raise InputError(f"{path}: row {number} {fault}; mend or delete it")
    return sorted(rows, key=lambda row: row["step"])


def read_run(run_dir: str | Path, *, begun: bool = False) -> RunRecord:
    """Read a run folder, finished or not. It may come from anywhere: what is not of the form of a run is refused.
    begun: a run that has finished no step yet will do.

    Raises:
        InputError: `run_dir` is no run folder (it has no metrics.jsonl), or a file in it is damaged (names it).
    """
    run_dir = Path(run_dir)
    if not (run_dir / "metrics.jsonl").is_file() and not (begun and (run_dir / "config.json").is_file()):
        raise InputError(f"{run_dir} is not a run folder (no metrics.jsonl in it); pass the --run-dir of `siri train`")
    metrics, evals, plans = (_by_step(run_dir / f"{name}.jsonl") for name in ("metrics", "eval", "plans"))
    return RunRecord(_config(run_dir / "config.json"), metrics, evals, plans)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = parse_json(files.read(path))
        fault = config_fault(config)
        json.dumps(config, indent=1)  # as a report shows it
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({files.reason(error)})") from None
    except (ValueError, RecursionError) as error:
        fault = f"not JSON ({first_line(error)})"
    if fault:
        raise InputError(f"{path}: {fault}; restore it or delete it")
    return config


# --- figures ---


def efficiency_score(
    figures: Mapping[str, tuple[float, float]], base: Mapping[str, tuple[float, float]]
) -> float | None:
    """Efficiency score of SIRI's tables: mean over benchmarks of the relative gain in accuracy (not below 0), divided
    by the mean of the relative tokens. The paper does not say it: inferred, and from its own figures within .01 of the
    column that it prints (.389 for .38).

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
