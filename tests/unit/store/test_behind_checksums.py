"""Files whose hashes fit and whose content is changed by its structure: one line each, whoever reads them."""

import json
import shutil
from pathlib import Path

import pytest

from siri.errors import InputError
from siri.store.checkpoint import read_state, verify
from siri.store.jsonl import read_run
from siri.study.report import study_curves
from siri.study.study import finished, swept_values
from siri.study.study_file import read_study
from tests.support.structured import mutants, rewrite

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "run_0.1.0"
CORPUS = Path(__file__).with_name("behind_checksums.jsonl")

pytestmark = pytest.mark.torture


@pytest.fixture
def tries(long) -> int:
    return long(150, 3000)


def in_one_line(read, what: str) -> bool:
    """Whether it was refused; anything but an InputError of one line is a fault."""
    try:
        read()
    except InputError as error:
        assert "\n" not in str(error), what
        return True
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    return False


def test_states_of_checkpoints(tmp_path, tries, fault):
    checkpoint = tmp_path / "step_000004"
    shutil.copytree(GOLDEN / "checkpoints" / "step_000004", checkpoint)
    for big in checkpoint.glob("*/*.safetensors"):  # their hashes are most of the time, and say nothing here
        big.unlink()
    state = json.loads((checkpoint / "state.json").read_text())
    committed = [json.loads(line) for line in CORPUS.read_text().splitlines()]
    refused = 0
    for what, mutant in [*((str(each)[:60], each) for each in committed), *mutants(state, tries, seed=2)]:
        rewrite(checkpoint, "state.json", mutant)

        def read() -> None:
            words = verify(checkpoint)
            assert words is None or "\n" not in words

        in_one_line(read, what)
        words = verify(checkpoint) or ""
        refused += words.startswith("state.json")
        if not words:
            assert read_state(checkpoint)["steps_done"] == 4, what
    fault("states of checkpoints behind their checksums", f"{tries} mutants", "told in words, or read")


@pytest.mark.parametrize("name", ["metrics", "eval", "health", "plans"])
def test_rows_of_logs(tmp_path, tries, fault, name):
    run = tmp_path / "run"
    run.mkdir()
    for path in GOLDEN.glob("*.json*"):
        shutil.copyfile(path, run / path.name)
    rows = [json.loads(line) for line in (GOLDEN / f"{name}.jsonl").read_text().splitlines()]
    refused = 0
    for what, mutant in mutants(rows, tries // 3, seed=3):
        lines = mutant if isinstance(mutant, list) else [mutant]
        (run / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
        refused += in_one_line(lambda: read_run(run), f"{name}: {what}")
    fault(f"rows of {name}.jsonl", f"{tries // 3} mutants", f"{refused} refused in one line, the others read")


def test_results_of_a_study(tmp_path, tries, torture, fault):
    source = ROOT / "studies" / "settle"
    shutil.copyfile(source / "study.toml", tmp_path / "study.toml")
    rows = [json.loads(line) for line in (source / "results.jsonl").read_text().splitlines()[:6]]
    study = read_study(str(tmp_path / "study.toml"))
    refused = 0
    count = tries // 30 if torture else tries
    for what, mutant in mutants(rows, count, seed=4):
        lines = mutant if isinstance(mutant, list) else [mutant]
        (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))

        def read() -> None:
            swept_values(study, finished(study))
            if torture:  # seconds each
                study_curves(study)

        refused += in_one_line(read, what)
    fault("rows of a study's results.jsonl", f"{count} mutants", f"{refused} refused in one line, the others read")
