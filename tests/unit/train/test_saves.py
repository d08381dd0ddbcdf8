"""Which checkpoint bears which name, where saves fail."""

from types import SimpleNamespace

import pytest

from siri.commands.train import TrainOptions
from siri.config.recipe import resolve
from siri.errors import InputError
from siri.store.saver import Saver
from siri.train.saves import Agreed, Saves

FAILED = Agreed((), "", fault="disk full", failures=1)
FINE = Agreed((), "", fault="", failures=0)


@pytest.fixture
def saves(tmp_path, monkeypatch):
    """With a saver that only notes what it is asked for."""
    config = resolve("demo", TrainOptions, ["--cycle", "4", "--steps", "8"]).config()
    saver = Saver(tmp_path, keep=2)
    saver.asked = []
    monkeypatch.setattr(saver, "save", lambda done, *_, name=None, pending=None: saver.asked.append((done, name)))
    return Saves(saver, config, SimpleNamespace(), SimpleNamespace(), 0)


def milestones(saves) -> list[tuple[int, str]]:
    return [(done, name) for done in range(1, 9) if (name := saves.schedule.milestone(done))]


def test_the_next_save_bears_the_name_that_was_lost(saves):
    (done, name), *_ = milestones(saves)
    saves.save(done, {}, FINE)
    saves.save(done + 1, {}, FAILED)
    saves.save(done + 2, {}, FAILED) if not saves.schedule.milestone(done + 2) else None
    assert saves.saver.asked[:2] == [(done, name), (done + 1, name)] and not saves.saver.warning()


def test_a_name_that_no_checkpoint_gets_is_told(saves):
    (first, lost), (second, name), *_ = milestones(saves)
    saves.save(first, {}, FINE)
    saves.save(second, {}, FAILED)
    assert saves.saver.asked[-1] == (second, name)
    assert saves.saver.warning() == f"no checkpoint is called {lost}: its save failed, and the next one is {name}"
    assert saves.saver.warning() == ""


def test_warnings_do_not_hide_one_another(saves):
    saves.saver.warn("one")
    saves.saver.warn("two")
    assert saves.saver.warning() == "one; two"


def test_a_save_that_fails_while_the_next_one_waits_for_it_is_told_and_owes_its_name(saves):
    """No step has asked for it in between, as where a save takes longer than the steps between two."""
    (done, name), *_ = milestones(saves)
    saves.save(done, {}, FINE)
    saves.saver._error, saves.saver.failures = "disk full", 1
    saves.save(done + 1, {}, FINE)
    assert saves.saver.asked == [(done, name), (done + 1, name)]
    assert saves.saver.warning() == "a checkpoint could not be saved (disk full); the next one is being written"
    saves.saver.failures = 3
    with pytest.raises(InputError, match="3 saves in a row failed"):
        saves.save(done + 2, {}, FINE)
