"""Two `--auto-resume` starts in one folder, step by step in every order: one of them goes on, and nothing is lost."""

import gc
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from siri.errors import InputError
from siri.store.checkpoint import newest_good
from siri.store.run_folder import RunFolder
from tests.support import faults as support
from tests.support.little_run import CONFIG, run
from tests.unit.train.test_trainer import rows

pytestmark = pytest.mark.torture
STEPS = ("open config.json", "mkdir run", "flock .lock", "replace config.json", "unlink .lease")
"""What one start can see of the other: these calls are the steps between which they are switched."""
SAMPLE, MOST = 40, 20_000
"""Orders in the ordinary suite, and more than there are."""
PATIENCE_S = 120


class Starts:
    """Two starts as threads of which one runs at a time, up to its next step."""

    def __init__(self, start: Callable[[int], None]) -> None:
        self.turns = [threading.Semaphore(0), threading.Semaphore(0)]
        self.back = threading.Semaphore(0)
        self.over = [False, False]
        self.threads = [threading.Thread(target=self._run, args=(start, who)) for who in (0, 1)]

    def _run(self, start: Callable[[int], None], who: int) -> None:
        assert self.turns[who].acquire(timeout=PATIENCE_S)
        start(who)
        self.over[who] = True
        self.back.release()

    def pause(self, call: str) -> None:
        """A call that a thread is about to make."""
        name, path = call.split(" ", 1)
        if f"{name} {Path(path).name}" in STEPS and threading.current_thread() in self.threads:
            who = self.threads.index(threading.current_thread())
            self.back.release()
            assert self.turns[who].acquire(timeout=PATIENCE_S)

    def play(self, order: list[int]) -> list[int]:
        """Run both to their ends: who goes on at each step, as `order` says and then the first that can. Returns the
        whole order."""
        for thread in self.threads:
            thread.start()
        played: list[int] = []
        while not all(self.over):
            wanted = order[len(played)] if len(played) < len(order) else 0
            who = wanted if not self.over[wanted] else 1 - wanted
            played.append(who)
            self.turns[who].release()
            assert self.back.acquire(timeout=PATIENCE_S)
        for thread in self.threads:
            thread.join()
        return played


def orders() -> Iterator[list[int]]:
    """Depth first through all orders: each is the one before, changed at its last step that can still be changed."""
    order: list[int] = []
    while True:
        played = yield order
        last = max((at for at, who in enumerate(played) if who == 0 and 1 in played[at:]), default=None)
        if last is None:
            return
        order = [*played[:last], 1]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A checkpoint after one step."""
    path = tmp_path_factory.mktemp("saved") / "run"
    assert run(path).done
    return next((path / "checkpoints").glob("step_000001"))


@pytest.mark.parametrize("held", [False, True], ids=["no run yet", "a run that was killed"])
def test_one_of_two_starts_goes_on_in_every_order(tmp_path, saved, held, torture, long, fault):
    draw, tried = random.Random(3), 0
    every = orders()
    order = next(every)
    while True:
        path = tmp_path / f"{tried}" / "run"
        path.parent.mkdir()
        if held:
            RunFolder(path, CONFIG, "demo", "never").create()
            gc.collect()
        played = play(path, saved, order)
        assert played[1].count("went on") >= 1, played
        kept = rows(path)
        assert kept and kept[0]["who"] == played[2][0], f"{played}: what the first one did is lost"
        assert newest_good(path / "checkpoints")[0] == path / "checkpoints" / "step_000001", played
        shutil.rmtree(path.parent)
        tried += 1
        if tried == long(SAMPLE, MOST):
            break
        if torture:
            try:
                order = every.send(played[0])
            except StopIteration:
                break
        else:
            order = [draw.randrange(2) for _ in range(24)]
    fault(f"two starts at once, {'held' if held else 'fresh'}", f"{tried} orders", "one goes on, nothing is lost")


def play(path: Path, saved: Path, order: list[int]) -> tuple[list[int], list[str], list[int]]:
    """Two starts that do a step and end: the order, how each ended, and who did a step."""
    ended, worked = ["", ""], []

    def start(who: int) -> None:
        try:
            folder = RunFolder(path, CONFIG, "demo", "auto")
            folder.create()
            if folder.start == 0:
                assert folder.metrics.rows() == []
                folder.metrics.append({"step": 0, "who": who})
                shutil.copytree(saved, folder.checkpoints / saved.name)
                worked.append(who)
            ended[who] = "went on"
        except InputError as error:
            assert "\n" not in str(error)
            ended[who] = str(error)
        folder = None  # its lock goes

    starts = Starts(start)
    with support.faults(path.parent) as plan:
        plan.before = starts.pause
        played = starts.play(order)
    return played, ended, worked
