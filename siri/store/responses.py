"""The responses of a run, to be read: one parquet file a step or evaluation in RUN/responses."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from siri.errors import InputError, first_line
from siri.store import files
from siri.text import encoded

RESPONSES = "responses"
NAME = re.compile(r"(step|eval)-([0-9]{6,18})(-[\w.-]+)?\.parquet")


@dataclass(frozen=True, slots=True)
class Response:
    """One response, as it was sampled and graded. `text` and `prompt` are text of strangers."""

    prompt_number: int
    """Which prompt of the file it answers, from 0."""
    prompt: str
    text: str
    gold: str
    extracted: str | None
    """What a built-in reward looked at: the last boxes, or the text after the thinking; None where there is none."""
    score: float
    reward: float
    """The score after penalties and rewards for length; of an evaluation the score."""
    tokens: int
    truncated: bool
    logp_mean: float
    """Of its tokens under the sampling distribution, nats."""
    weights: int
    """After how many steps the weights were made that sampled it; the oldest, where they changed in its middle."""
    trained: bool = True
    """False where dynamic sampling dropped its group, or it could not be graded in time."""


class Responses:
    """Writes the files of a run, on one rank. keep: newest steps that are kept besides those with a name; 0 = nothing
    is written at all."""

    def __init__(self, run: Path, keep: int) -> None:
        self.folder, self.keep = run / RESPONSES, keep

    def write_step(self, step: int, rows: Sequence[Response], name: str | None = None) -> None:
        """The responses of a training step (from 0). name: of the end of a phase, whose file stays. OSError when it
        cannot be written; then nothing is."""
        self._write(f"step-{step:06d}{f'-{name}' if name else ''}", rows)
        plain = [path for path in response_files(self.folder.parent) if re.fullmatch(r"step-\d+\.parquet", path.name)]
        for path in plain[: -self.keep]:
            path.unlink()

    def write_evaluation(self, done: int, benchmark: str, rows: Sequence[Response]) -> None:
        """Those of an evaluation after `done` steps. OSError as above."""
        stem = re.sub(r"[^\w.-]+", "-", Path(benchmark).name.removesuffix(".jsonl").removesuffix(".parquet"))
        self._write(f"eval-{done:06d}-{stem.strip('.-') or 'problems'}", rows)

    def _write(self, name: str, rows: Sequence[Response]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        plain = [{key: _valid(value) for key, value in asdict(row).items()} for row in rows]
        buffer = pa.BufferOutputStream()
        parquet.write_table(pa.Table.from_pylist(plain, schema=_schema()), buffer, compression="zstd")
        files.make_folder(self.folder)
        files.write_atomic(self.folder / f"{name}.parquet", buffer.getvalue().to_pybytes())


def response_files(run: Path) -> list[Path]:
    """The files of a run, in the order in which they were sampled; an evaluation comes before the step after it."""
    folder = run / RESPONSES
    named = [(path, NAME.fullmatch(path.name)) for path in folder.iterdir()] if folder.is_dir() else []
    numbered = [(int(match[2]), match[1] == "step", path.name, path) for path, match in named if match]
    return [path for *_, path in sorted(numbered)]


def forget_after(run: Path, done: int) -> None:
    """Remove what a run that continues after `done` steps samples again."""
    for path in response_files(run):
        match = NAME.fullmatch(path.name)
        if match and (int(match[2]) >= done if match[1] == "step" else int(match[2]) > done):
            path.unlink()


def read_responses(path: Path) -> list[Response]:
    """The responses of a file. InputError when it cannot be read."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path, schema=None).to_pylist()
        return [Response(**row) for row in rows]
    except (OSError, pa.ArrowException, TypeError) as error:
        raise InputError(f"{path}: cannot be read as responses ({first_line(error)}); delete it") from None


def of_step(paths: Iterable[Path], step: int) -> list[Path]:
    """The files of a step's number."""
    return [path for path in paths if (match := NAME.fullmatch(path.name)) and int(match[2]) == step]


def _valid(value: object) -> object:
    """Text as UTF-8 has it."""
    return encoded(value).decode() if isinstance(value, str) else value


def _schema():
    import pyarrow as pa

    kinds = {"prompt": pa.string(), "text": pa.string(), "gold": pa.string(), "extracted": pa.string()}
    kinds |= {"score": pa.float64(), "reward": pa.float64(), "logp_mean": pa.float64()}
    kinds |= {"truncated": pa.bool_(), "trained": pa.bool_()}
    return pa.schema([(name, kinds.get(name, pa.int64())) for name in Response.__dataclass_fields__])
