"""The runs of a study: worker processes that train one pair after another, and the line that each leaves behind."""

import hashlib
import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

from siri.config.recipe import refuse_code
from siri.errors import InputError
from siri.store import files
from siri.store.jsonl import RunRecord, read_run
from siri.store.origin import commit, machine
from siri.study.study import HALVES, Pair, Reasoner, Study, append, find, finished, swept_values
from siri.text import printable, tolerant_streams

STEP_KEYS = ("cap", "response_tokens_mean", "accuracy", "truncation_rate", "entropy", "zero_variance_groups")
STEP_KEYS += ("tokens_right_mean", "tokens_wrong_mean", "backtracking_per_response", "repetition_rate")
"""What a row keeps of every step."""
EVAL_KEYS = ("step", "name", "train_tokens", "accuracy", "tokens_mean", "tokens_right_mean", "tokens_wrong_mean")
EVAL_KEYS += ("truncation_rate", "cap", "problems", "samples")
"""What a row keeps of every evaluation,"""
HALF_KEYS = ("accuracy", "tokens_mean", "tokens_right_mean", "tokens_wrong_mean", "problems")
"""and of each half of its problems."""


_SAFE_PATH = "PYTHONSAFEPATH"


class Stopped(Exception):
    """A signal ended the study early, its state saved."""


def run_pairs(
    studies: Sequence[Study],
    *,
    jobs: int,
    limit: int,
    runs: Path,
    only: Sequence[str],
    threads: int,
    trusted: Sequence[str] = (),
    rewind: bool = False,
) -> None:
    """Run what is missing of the tasks of a study, at most `limit` pairs (0 = all), `jobs` at a time; Stopped after a
    signal. Sweeps come first, then seed by seed all arms of all tasks. only: these arms, and the sweeps that they wait
    for. InputError for an arm whose reward is a function that is not among the `trusted`, and for results that could
    not be written. rewind: as for `siri train`."""
    first = studies[0]
    if first.results.is_symlink():  # hours later, their row would be refused
        raise InputError(f"{first.results}: is a link, and results are written through none; put the file itself there")
    if unknown := set(only) - set(first.arms):
        raise InputError(f"--only {' '.join(sorted(unknown))}: no such arm; there are {', '.join(first.arms)}")
    folders = [reasoner_folder(study.reasoner) if study.reasoner else None for study in studies]
    left = limit or sys.maxsize
    for stage in ("sweeps", "arms"):
        rows = finished(first)
        pairs: list[Pair] = []
        if stage == "sweeps":
            for study, folder in zip(studies, folders, strict=True):
                pairs += study.sweep_pairs(folder, only)
        else:
            for study, folder in zip(studies, folders, strict=True):
                each = study.arm_pairs(folder, swept_values(study, rows))
                pairs += [pair for pair in each if not only or pair.arm in only]
            pairs.sort(key=lambda pair: first.seeds.index(pair.seed))  # stable: a task's arms stay together
        missing: dict[tuple[int, str], Pair] = {}
        for pair in pairs:
            if find(rows, pair) is None:
                refuse_code(pair.config.reward, f"{first.path}, {pair.arm}", trusted)
                missing.setdefault((pair.seed, pair.config_hash), pair)
        batch = list(missing.values())[:left]
        left -= len(batch)
        _run_all(first, batch, jobs=jobs, runs=runs, threads=threads, rewind=rewind)


def reasoner_folder(reasoner: Reasoner) -> Path:
    """Folder with model/, train.jsonl and heldout.jsonl, made on first use (minutes) and kept in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "siri" / "reasoners"
    folder = cache / reasoner.key
    if not folder.is_dir():
        import torch

        from siri.demo.warmup import make, taken_from_package

        print(printable(f"making the base model of task {reasoner.task}, once: {folder}"), flush=True)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the same bytes each time
        unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
        try:
            if not taken_from_package(unfinished, reasoner.task, reasoner.steps, reasoner.seed):
                make(unfinished, reasoner.steps, reasoner.seed, reasoner.task, reasoner.device)
            for path in [*unfinished.rglob("*"), unfinished]:
                files.sync(path)  # a name that outlives a power cut has all its files
            unfinished.rename(folder)
            files.sync(cache)
        except OSError as error:
            if not folder.is_dir():  # another process was first: the same bytes
                raise InputError(f"{folder}: cannot be made ({files.reason(error)}); set XDG_CACHE_HOME") from None
        finally:
            torch.set_num_threads(threads)
            shutil.rmtree(unfinished, ignore_errors=True)
    _cut_in_halves(folder)
    return folder


def _cut_in_halves(folder: Path) -> None:
    """Write the held-out problems as two files, six by six in turn: kinds come in turn, and there are two or three."""
    lines = (folder / "heldout.jsonl").read_text().splitlines(keepends=True)
    for place, name in enumerate(HALVES):
        if not (folder / name).exists():
            half = [line for number, line in enumerate(lines) if number // 6 % 2 == place]
            files.write_atomic(folder / name, "".join(half).encode())


# --- workers ---


def _run_all(study: Study, pairs: Sequence[Pair], *, jobs: int, runs: Path, threads: int, rewind: bool) -> None:
    """Train `pairs` in their order, and append a row for each as it ends."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if not pairs:
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads
    waiting = list(pairs)
    busy: dict[Connection, tuple[Any, Pair]] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    # a thread of rich draws the bar; the rest of this process sleeps until a worker speaks
    timing = {"refresh_per_second": 1, "auto_refresh": console.is_terminal}
    bar = Progress(*columns, TimeRemainingColumn(), console=console, **timing)
    with bar, _forwarded(lambda: [worker for worker, _ in busy.values()]) as signals:
        task = bar.add_task("runs", total=len(pairs))
        try:
            while waiting or busy:
                while waiting and len(busy) < jobs:
                    here, there = cast("tuple[Connection, Connection]", context.Pipe())
                    worker = context.Process(target=_work, args=(there, runs, threads, rewind), daemon=True)
                    with _safe_path():
                        worker.start()
                    there.close()
                    busy[here] = (worker, waiting[0])
                    here.send(waiting.pop(0))
                bar.update(task, description=", ".join(pair.name for _, pair in busy.values()))
                for connection in cast("list[Connection]", wait(list(busy))):
                    worker, pair = busy.pop(connection)
                    try:
                        row = _received(connection, pair)
                    except (EOFError, ConnectionResetError):
                        worker.join()
                        if not signals:
                            died = f"its process ended with code {worker.exitcode}"
                            raise InputError(f"{pair.name}: {died}; the same command continues it") from None
                        raise Stopped from None
                    if row is not None:
                        append(study, row)
                        bar.advance(task)
                    if row is None or signals:
                        raise Stopped
                    if waiting:
                        busy[connection] = (worker, waiting[0])
                        connection.send(waiting.pop(0))
                    else:
                        connection.close()  # the worker ends when there is nothing to read
        finally:
            for worker, _ in busy.values():
                if not signals:  # a second one would kill what is being saved
                    worker.terminate()
            for worker, _ in busy.values():
                worker.join()


@contextmanager
def _safe_path() -> Iterator[None]:
    """For a process that starts meanwhile: no module comes from the current folder, which Python would put first."""
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = before or "1"
    try:
        yield
    finally:
        os.environ.pop(_SAFE_PATH)
        if before is not None:
            os.environ[_SAFE_PATH] = before


@contextmanager
def _forwarded(workers: Any) -> Iterator[list[int]]:
    """The signals that came, each passed on to the running workers: they finish their step and save it."""
    came: list[int] = []

    def forward(number: int, _frame: Any) -> None:
        came.append(number)
        for worker in workers():
            worker.terminate()

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _received(connection: Connection, pair: Pair) -> dict | None:
    """The row that a worker sent, None if a signal stopped it; what failed in it is raised here, and EOFError if it
    died."""
    kind, value = connection.recv()
    if kind == "input":
        raise InputError(f"{pair.name}: {value}")
    if kind == "error":
        raise RuntimeError(f"{pair.name} failed:\n{value}")
    return value


def _work(connection: Connection, runs: Path, threads: int, rewind: bool) -> None:
    """Train the pairs that arrive, until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent passes on what concerns us
    os.environ.pop(_SAFE_PATH, None)  # not for the programs that a reward of the user's starts
    tolerant_streams()
    while True:
        try:
            pair = connection.recv()
        except EOFError:
            return
        pair = replace(pair, config=replace(pair.config, threads=threads))
        try:
            connection.send(("row", run_pair(pair, runs, rewind=rewind)))
        except InputError as error:
            connection.send(("input", str(error)))
        except Exception:
            connection.send(("error", traceback.format_exc()))


def run_pair(pair: Pair, runs: Path, *, rewind: bool = False) -> dict[str, Any] | None:
    """Train one pair in its folder under `runs`, after the run that it branches off where that is not there, and return
    its row of results.jsonl; None if a signal stopped it."""
    from siri.data.problems import resolve_path
    from siri.report.view import UndrawnView
    from siri.train.loop import train
    from siri.train.run import STOPPED

    run_dir = runs / pair.folder
    config, trunk = pair.config, None
    how = {"view": UndrawnView(), "resume": "auto", "rewind": rewind, "quiet": True}
    if pair.trunk:
        below = runs / pair.trunk.folder
        settings = replace(pair.trunk.config, threads=config.threads)
        if train(settings, below, recipe=pair.trunk.arm, **how) == STOPPED:
            return None
        trunk = read_run(below)
        config = replace(config, branch_of=f"{below}@{pair.at}")
    continued = run_dir.exists()
    started, used = time.perf_counter(), _cpu_seconds()
    if train(config, run_dir, recipe=pair.arm, **how) == STOPPED:
        return None
    wall_s, cpu_s = time.perf_counter() - started, _cpu_seconds() - used
    run = read_run(run_dir)
    weights = Path(resolve_path(config.model)) / "model.safetensors"
    evals, metrics = run.evals, run.metrics
    if trunk:
        evals, metrics = grafted(trunk, run, pair.at)
    kept = [key for key in STEP_KEYS if any(key in row for row in metrics)]
    return {
        **({"task": pair.task} if pair.task else {}),
        "arm": pair.arm,
        "seed": pair.seed,
        "accuracy": evals[-1]["accuracy"],
        "tokens_mean": evals[-1]["tokens_mean"],
        "train_tokens": evals[-1]["train_tokens"],
        "config_hash": pair.config_hash,
        "commit": commit(),
        "machine": machine(),
        "versions": run.config.get("versions"),
        "model_sha256": hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None,
        "cpu_s": None if continued else round(cpu_s, 1),
        "wall_s": None if continued else round(wall_s, 1),
        **({"trunk": {"config_hash": pair.trunk.config_hash, "at": pair.at}} if pair.trunk else {}),
        "settings": pair.settings,
        "evals": [_eval_row(row) for row in evals],
        "steps": {key: [_short(row.get(key)) for row in metrics] for key in kept},
    }


def grafted(trunk: RunRecord, branch: RunRecord, at: int) -> tuple[list[dict], list[dict]]:
    """Evaluations and steps of a run and its branch as those of a single one: the trunk's up to the branch, then the
    branch's, whose steps and training tokens go on from there."""
    before = [row for row in trunk.evals if row["step"] <= at]
    spent = branch.config["lineage"]["train_tokens"]
    after = [
        {**row, "step": row["step"] + at, "train_tokens": row["train_tokens"] + spent}
        for row in branch.evals
        if row["step"] > 0
    ]
    steps = [row for row in trunk.metrics if row["step"] < at]
    return before + after, steps + [{**row, "step": row["step"] + at} for row in branch.metrics]


def _eval_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row of results.jsonl keeps of an evaluation; `halves`: that of each benchmark, where there are several."""
    kept = {key: _short(row[key]) for key in EVAL_KEYS if key in row}
    if "benchmarks" in row:
        kept["halves"] = [{key: _short(half[key]) for key in HALF_KEYS} for half in row["benchmarks"].values()]
    return kept


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _cpu_seconds() -> float:
    """Processor time of this process and of the children that ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
