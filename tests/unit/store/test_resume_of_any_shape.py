"""A run that continues over files that were changed by their structure, hashes made to fit: tensors, manifests, states,
settings and logs. It goes on or says in one line why not, and deletes nothing because it could not be read.
`resumed.jsonl` holds one change for each thing that came of it."""

import gc
import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from siri.store.checkpoint import verify
from tests.support.little_run import run
from tests.support.structured import mutants, rehash
from tests.unit.store.test_faults import at_call, disturbed

pytestmark = pytest.mark.torture
CORPUS = [json.loads(line) for line in Path(__file__).with_name("resumed.jsonl").read_text().splitlines()]
CHECKPOINT = Path("checkpoints/step_000002")
TENSORS = ("weights", "optimizer")
FILES = {
    **{kind: CHECKPOINT / kind / "shard-00001-model-00001-of-00001.safetensors" for kind in TENSORS},
    "manifest": CHECKPOINT / "manifest.json",
    "state": CHECKPOINT / "state.json",
    **{name.partition(".")[0]: Path(name) for name in ("config.json", "data.json", "saved.json")},
    **{name.partition(".")[0]: Path(name) for name in ("metrics.jsonl", "eval.jsonl")},
}
"""What is changed, by what it is called here."""


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A run that was killed after two steps of three."""
    folder = tmp_path_factory.mktemp("begun")
    disturbed(folder / "run", at_call(folder, "rename", "step_000003.part"), "kill")
    assert all((folder / "run" / path).exists() for path in FILES.values())
    return folder / "run"


def read(path: Path) -> Any:
    """The structure of a file: JSON, rows of JSON, or [header, bytes after it] of safetensors."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        (size,) = struct.unpack("<Q", data[:8])
        return json.loads(data[8 : 8 + size])
    return [json.loads(line) for line in data.splitlines()] if path.suffix == ".jsonl" else json.loads(data)


def write(path: Path, structure: Any) -> None:
    """Put a changed structure in the place of a file's."""
    if path.suffix == ".safetensors":
        data = path.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        header = json.dumps(structure).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + size :])
    elif path.suffix == ".jsonl":
        rows = structure if isinstance(structure, list) else [structure]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(structure))


def outcome(begun: Path, folder: Path, kind: str, structure: Any) -> str:
    """What came of it: "went on", or the line. AssertionError for anything else."""
    path = Path(shutil.copytree(begun, folder / "run", symlinks=True))
    write(path / FILES[kind], structure)
    checkpoint = path / CHECKPOINT
    if kind in (*TENSORS, "state"):
        rehash(checkpoint)
    damaged = verify(checkpoint)
    assert damaged is None or "\n" not in damaged
    before = {each.name for each in checkpoint.iterdir()}
    try:
        told = run(path)
    finally:
        kept = [each for each in (path / "checkpoints").glob("step_000002*") if each.is_dir()]
        names = [{each.name for each in folder.iterdir()} for folder in kept]
        gc.collect()  # a run that ended in an error renews its lease as long as its frames live
        shutil.rmtree(path)
    assert "\n" not in told.line and (told.done or told.line)
    assert before in names or (told.done and not damaged), f"deleted, {damaged}: {told}"
    return "went on" if told.done else told.line


@pytest.mark.parametrize("case", CORPUS, ids=[f"{case['kind']} {number}" for number, case in enumerate(CORPUS)])
def test_what_is_known(begun, tmp_path, case):
    end = outcome(begun, tmp_path, case["kind"], case["structure"])
    assert case["end"] in end


def changes(begun: Path, kind: str, count: int) -> Iterator[tuple[str, Any]]:
    return mutants(read(begun / FILES[kind]), count, seed=sorted(FILES).index(kind))


@pytest.mark.parametrize("kind", FILES)
def test_changed_files_end_in_one_line_or_go_on(begun, tmp_path, kind, long, fault):
    count, ends = long(8, 400), []
    for what, structure in changes(begun, kind, count):
        try:
            ends.append(outcome(begun, tmp_path, kind, structure))
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}: {json.dumps(structure)[:2000]}") from error
    fault(f"resumed over a changed {kind}", f"{count}", f"{ends.count('went on')} went on, the others in one line")
