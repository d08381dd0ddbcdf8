"""Optional loggers that mirror `metrics.jsonl`, `eval.jsonl` and some responses: TensorBoard, Weights & Biases, MLflow,
trackio."""

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from siri.errors import InputError
from siri.store.files import write_atomic
from siri.store.jsonl import plain
from siri.store.responses import Response
from siri.text import printable

LOGGERS = ("none", "tensorboard", "wandb", "mlflow", "trackio")
INSTALL_LOGGERS = "pip install -e ./kernels -e '.[loggers]'"


def _scalars(row: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    """The section ("train" or "eval") of a row and its finite numbers, nested ones as "pass_at_k/8"."""
    row = plain(row)
    numbers: dict[str, float] = {}

    def walk(prefix: str, items: Mapping[str, Any]) -> None:
        for key, value in items.items():
            if isinstance(value, dict):
                walk(f"{prefix}{key}/", value)
            elif isinstance(value, (int, float)) and key != "step":
                numbers[printable(f"{prefix}{key}")] = float(value)

    walk("", row)
    if "phase" in row:
        numbers["expansion"] = float(row["phase"] == "expansion")
    # an evaluation has a name ("base", "siri-low-1", ...), a training step has not
    return ("eval" if "name" in row else "train"), numbers


TABLE = ("prompt_number", "score", "tokens", "truncated", "gold", "extracted", "prompt", "text")
"""Columns of a table of responses."""
LONGEST = 4000
"""Characters of a text in a table: half from each end."""


def table_rows(responses: Sequence[Response]) -> list[list[Any]]:
    """The cells of a table of responses, by TABLE."""
    rows = [asdict(response) for response in responses]
    return [[_cell(row[key]) for key in TABLE] for row in rows]


def _cell(value: Any) -> Any:
    """A value that any library can send; of a text no more than LONGEST, in its lines."""
    if not isinstance(value, str):
        return plain(value)
    if len(value) > LONGEST:
        value = f"{value[: LONGEST // 2]} [...] {value[-LONGEST // 2 :]}"
    return "\n".join(map(printable, value.split("\n")))


def _shown(value: Any) -> Any:
    """JSON data whose texts any library can send: without halves of characters."""
    if isinstance(value, dict):
        return {printable(key): _shown(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shown(item) for item in value]
    return printable(value) if isinstance(value, str) else value


class Logger:
    """Mirrors rows of `metrics.jsonl` and `eval.jsonl` elsewhere; this one goes nowhere (`--logger none`)."""

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """Log the numbers of `row` at `step` under train/ or, for a row that has a `name`, under eval/."""

    def table(self, name: str, responses: Sequence[Response], step: int) -> None:
        """Log some responses, as a table called `name`."""

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
                text = json.dumps(plain(self._config), indent=2)
                self._writers[section].add_text("config", f"```json\n{text}\n```", step)
        for key, value in numbers.items():
            self._writers[section].add_scalar(key, value, step)

    def table(self, name: str, responses: Sequence[Response], step: int) -> None:
        if "responses" not in self._writers:
            self._writers["responses"] = self._writer_class(str(self._folder / "responses"), purge_step=step)
        parts = []
        for *facts, prompt, text in table_rows(responses):
            about = ", ".join(f"{key} {value}" for key, value in zip(TABLE, facts, strict=False))
            parts.append("\n\n".join((f"#### {about}", _code(prompt), _code(text))))
        self._writers["responses"].add_text(name, "\n\n".join(parts), step)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


def _code(text: str) -> str:
    """Text as Markdown shows it word for word: indented, so that nothing in it can end the block."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])


class WandbLogger(Logger):
    """A Weights & Biases run in project `siri` (WANDB_PROJECT, WANDB_MODE and the like are honoured)."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any]):
        try:
            import wandb  # pyright: ignore[reportMissingImports]  # an extra
        except ImportError:
            raise _missing("wandb") from None
        self._wandb = wandb
        fresh = not run_dir.exists()
        run_id = _run_id(run_dir)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "siri"),
                dir=str(run_dir),
                id=run_id,
                name=os.environ.get("WANDB_NAME", printable(run_dir.resolve().name)),
                config=_shown(plain(config)),
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

    def table(self, name: str, responses: Sequence[Response], step: int) -> None:
        table = self._wandb.Table(columns=list(TABLE), data=table_rows(responses))
        self._run.log({f"responses/{name}": table, "step": step})

    def close(self) -> None:
        self._run.finish()


class TrackioLogger(Logger):
    """A trackio run in project `siri` (TRACKIO_PROJECT names another)."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any]):
        try:
            import trackio  # pyright: ignore[reportMissingImports]  # an extra
        except ImportError:
            raise _missing("trackio") from None
        self._trackio = trackio
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "siri"),
            # trackio resumes by name
            name=f"{printable(run_dir.resolve().name)}-{_run_id(run_dir)}",
            config=_shown(plain(config)),
            resume="allow",
            embed=False,
        )

    def log(self, row: Mapping[str, Any], step: int) -> None:
        section, numbers = _scalars(row)
        self._run.log({f"{section}/{key}": value for key, value in numbers.items()}, step=step)

    def table(self, name: str, responses: Sequence[Response], step: int) -> None:
        rows = [dict(zip(TABLE, row, strict=True)) for row in table_rows(responses)]
        self._run.log({f"responses/{name}": self._trackio.Table(data=rows)}, step=step)

    def close(self) -> None:
        self._run.finish()


class MlflowLogger(Logger):
    """An MLflow run in the experiment `siri` (MLFLOW_EXPERIMENT_NAME, MLFLOW_TRACKING_URI and the like are honoured).
    Without a server it is in RUN/mlflow.db, tables in RUN/mlflow."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any]):
        try:
            import mlflow  # pyright: ignore[reportMissingImports]  # an extra
            from mlflow.exceptions import MlflowException  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise _missing("mlflow") from None
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "siri")
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run_dir.resolve() / 'mlflow.db'}"
        run_id = _run_id(run_dir)
        try:
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            held = self._client.get_experiment_by_name(experiment)
            place = None if os.environ.get("MLFLOW_TRACKING_URI") else (run_dir.resolve() / "mlflow").as_uri()
            number = held.experiment_id if held else self._client.create_experiment(experiment, artifact_location=place)
            known = self._client.search_runs([number], filter_string=f"tags.siri_run = '{run_id}'")
            name = printable(run_dir.resolve().name)
            run = known[0] if known else self._client.create_run(number, tags={"siri_run": run_id}, run_name=name)
            self._run = run.info.run_id
            self._client.log_dict(self._run, _shown(plain(config)), "config.json")
        except MlflowException as error:
            raise InputError(f"--logger mlflow: {' '.join(str(error).split())}; see MLFLOW_TRACKING_URI") from None
        self._metric = mlflow.entities.Metric

    def log(self, row: Mapping[str, Any], step: int) -> None:
        section, numbers = _scalars(row)
        now = int(time.time() * 1000)
        metrics = [self._metric(f"{section}/{_spelt(key)}", value, now, step) for key, value in numbers.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def table(self, name: str, responses: Sequence[Response], step: int) -> None:
        columns = zip(*table_rows(responses), strict=True)
        data = {key: list(values) for key, values in zip(TABLE, columns, strict=True)}
        self._client.log_table(self._run, data=data, artifact_file=f"responses/{_spelt(name)}.json")

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _spelt(name: str) -> str:
    """A name with nothing in it that MLflow would refuse."""
    return re.sub(r"[^\w/. -]", "_", name)


def check_loggers(kinds: Sequence[str]) -> None:
    """InputError when the package of a logger cannot be imported here; nothing is written."""
    for kind in kinds:
        if kind == "none":
            continue
        try:
            import_module({"tensorboard": "torch.utils.tensorboard"}.get(kind, kind))
        except ImportError:
            raise _missing(kind) from None


def make_logger(kind: str, run_dir: str | Path, config: Mapping[str, Any]) -> Logger:
    """The logger called `kind` (one of LOGGERS). Make it on rank 0 only.

    The folder of the run need not exist yet, and after an error it still does not.

    Raises:
        InputError: unknown kind, or its package is missing (says how to install it).
    """
    classes = {"tensorboard": TensorBoardLogger, "wandb": WandbLogger, "mlflow": MlflowLogger}
    classes |= {"trackio": TrackioLogger}
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
