"""Every system call of a run fails once, or is its last: the run then continues as the undisturbed one, or nothing has
changed and one line says what to do."""

import gc
import json
import random
import shutil
from pathlib import Path

import pytest

from siri.errors import InputError
from siri.store.jsonl import MetricsLog
from tests.support.faults import KINDS, Faults, Killed, faults
from tests.support.little_run import contents, run
from tests.support.torture import Long

pytestmark = pytest.mark.torture
SAMPLE = 16
"""Cases of each kind of start in the ordinary suite."""


def disturbed(path: Path, at: int, kind: str) -> tuple[Faults, list[str], str]:
    """A run of which a call fails: the calls, the notes, and the line or the death that ended it."""
    ended, notes, frames = "", [], []
    with faults(path, at, kind) as plan:
        try:
            outcome = run(path)
            ended, notes = outcome.line, outcome.notes
        except Killed as death:
            frames.append(death)  # they hold the lock, until the process is gone
    lease = path / ".lease"
    left = lease.read_bytes() if plan.dead and lease.exists() else None
    ended = "killed" if plan.dead else ended
    frames.clear()
    gc.collect()
    if left is not None:
        lease.write_bytes(left)
    return plan, notes, ended


def cases(count: int, long: Long) -> list[tuple[int, str]]:
    every = [(at, kind) for at in range(count) for kind in KINDS]
    wanted = long(SAMPLE, len(every))
    return every if wanted == len(every) else random.Random(7).sample(every, wanted)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    path = tmp_path_factory.mktemp("calm") / "run"
    assert run(path).done
    return contents(path)


def check(path: Path, calm: dict, at: int, kind: str) -> str:
    """Disturb the run in `path` once, let it go on, and compare it with the one that was left alone."""
    plan, notes, ended = disturbed(path, at, kind)
    hint = f"call {at} ({plan.calls[at] if at < len(plan.calls) else 'none'}) {kind}: {ended or notes}"
    assert "\n" not in ended, hint
    with faults(path):
        again = run(path)
    assert again.done, f"{hint}; then {again.line}"
    held = contents(path)
    if notes:  # a name may be that of the next save
        held["names"] = calm["names"]
        held["state"]["name"] = calm["state"]["name"]
    assert held == calm, hint
    left = [each.name for each in path.rglob("*") if each.name.endswith((".tmp", ".part"))]
    assert not left or not ended, f"{hint}: {left}"
    return "killed" if ended == "killed" else "one line" if ended else "told" if notes else "went on"


def test_every_call_of_a_fresh_run_fails_once(tmp_path, calm, long, fault):
    with faults(tmp_path / "count") as plan:
        assert run(tmp_path / "count").done
    assert len(plan.calls) > 100
    ends = []
    for number, (at, kind) in enumerate(cases(len(plan.calls), long)):
        ends.append(check(tmp_path / f"run_{number}", calm, at, kind))
        shutil.rmtree(tmp_path / f"run_{number}")
    told = ", ".join(f"{ends.count(end)} {end}" for end in sorted(set(ends)))
    fault("every system call of a run fails once", f"{len(ends)}", f"{told}; resumed as the undisturbed one")


def test_every_call_of_a_run_that_continues_fails_once(tmp_path, calm, long, fault):
    """Its newest checkpoint is damaged, and a kill has left halves behind."""
    begun = tmp_path / "begun"
    disturbed(begun, at_call(tmp_path, "rename", "step_000003.part"), "kill")
    state = begun / "checkpoints" / "step_000002" / "state.json"
    (begun / "checkpoints" / "step_000002" / "manifest.json").unlink()
    assert state.exists() and (begun / "checkpoints" / ".step_000003.part").is_dir()
    whole = Path(shutil.copytree(begun, tmp_path / "count", symlinks=True))
    with faults(whole) as plan:
        outcome = run(whole)
    assert outcome.done and any("damaged" in note for note in outcome.notes), outcome
    ends = []
    for number, (at, kind) in enumerate(cases(len(plan.calls), long)):
        path = Path(shutil.copytree(begun, tmp_path / f"run_{number}", symlinks=True))
        ends.append(check(path, calm, at, kind))
        assert list((path / "checkpoints").glob("step_000002.damaged*/state.json")), "deleted"
        shutil.rmtree(path)
    fault("every system call of a run that continues fails once", f"{len(ends)}", "resumed as the undisturbed one")


def at_call(tmp_path: Path, name: str, part: str) -> int:
    """The number of the first call of that name on such a path in a fresh run."""
    with faults(tmp_path / "look") as plan:
        assert run(tmp_path / "look").done
    return next(number for number, call in enumerate(plan.calls) if call.startswith(name) and part in call)


def test_every_call_of_a_studys_results_fails_once(tmp_path):
    """Rows that were finished stay, whatever happens to the next one; the study makes that one again."""
    rows = [{"arm": "siri", "seed": seed} for seed in range(3)]

    def go_on(path: Path) -> None:
        log = MetricsLog(path, fsync=True)
        for row in rows[len(log.rows()) :]:
            log.append(row)

    with faults(tmp_path / "count") as plan:
        (tmp_path / "count").mkdir()
        go_on(tmp_path / "count" / "results.jsonl")
    for at in range(1, len(plan.calls)):  # the first one makes the folder
        for kind in KINDS:
            folder = tmp_path / f"{at}_{kind}"
            folder.mkdir()
            with faults(folder, at - 1, kind):
                try:
                    go_on(folder / "results.jsonl")
                except InputError as error:
                    assert "results.jsonl" in str(error) and "\n" not in str(error)
                except Killed:
                    pass
            go_on(folder / "results.jsonl")
            held = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
            assert held == rows, (at, kind)
