"""What a run that continues does about data that changed meanwhile."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from siri import cli
from siri.data.content import Content, continue_sampler
from siri.data.problems import resolve_path
from siri.data.prompts import PromptSet
from siri.data.sampler import Sampler
from siri.errors import InputError
from tests.support.tiny import word_tokenizer
from tests.support.training import SMALL, rows


def content(values, source="set.json", template=None, words=96) -> Content:
    tokenizer = word_tokenizer(words)
    tokenizer.chat_template = template
    return Content.of(source, PromptSet([[value] for value in values], [str(v) for v in values], 0, 0), tokenizer)


def state(n=10, drawn=4) -> dict:
    sampler = Sampler(n, 7)
    sampler.take(drawn)
    return sampler.state()


def goes_on(now, before, at=None, accept=False) -> tuple[Sampler, list[str]]:
    return continue_sampler(at or state(), now, before, seed=7, accept=accept)


def refused(now, before, at=None) -> str:
    with pytest.raises(InputError) as caught:
        goes_on(now, before, at)
    message = str(caught.value)
    assert "\n" not in message and "--data-changed accept" in message
    assert goes_on(now, before, at, accept=True)[1][0].endswith("accepted")
    return message


TEN = content(range(10))


def test_the_same_data_goes_on_in_silence():
    sampler, notes = goes_on(TEN, TEN)
    assert notes == [] and sampler.state() == state()


def test_the_same_data_in_another_place_is_told():
    sampler, notes = goes_on(content(range(10), "elsewhere.jsonl"), TEN)
    assert notes == ["data: elsewhere.jsonl holds the same 10 problems as set.json"]
    assert sampler.state() == state()


def test_added_problems_follow_in_the_next_epoch():
    sampler, notes = goes_on(content(range(12)), TEN)
    assert notes == ["data: 2 problems were added to set.json; they are drawn from the next epoch on"]
    assert sampler.take(6) == Sampler(10, **state()).take(6) and sorted(sampler.take(12)) == list(range(12))


def test_removed_and_changed_problems_stop_the_run():
    assert "of 10 problems 1 are gone or changed, and 0 are new" in refused(content(range(9)), TEN)
    drawn = Sampler(10, 7).take(4)
    values = [80 if i == drawn[0] else i for i in range(10)]
    assert "of 10 problems 1 are gone or changed, and 1 are new" in refused(content(values), TEN)
    assert "in another order" in refused(content(range(9, -1, -1)), TEN)
    assert "8 are gone" in refused(content([0, 1, *range(30, 50)]), TEN)


def test_problems_that_changed_before_they_were_drawn_are_told():
    left = Sampler(10, 7).take(10)[4:]
    values = [80 if i == left[0] else i for i in range(10)]
    assert goes_on(content(values), TEN)[1] == ["data: 1 problems of set.json changed before they were drawn"]
    assert "1 are gone" in refused(content(values), TEN, state(drawn=14)), "in the second epoch all were drawn"


def test_fewer_problems_that_are_accepted_begin_an_epoch():
    sampler, notes = goes_on(content(range(5)), TEN, accept=True)
    assert (sampler.epoch, sampler.cursor) == (1, 0) and "epoch 1 begins" in notes[1]


def test_tokenizer_and_template_are_known_by_their_content():
    assert "the tokenizer is not the one" in refused(content(range(10), words=97), TEN)
    _, notes = goes_on(content(range(10), template="x"), TEN)
    assert notes == ["data: the chat template changed, but renders every prompt as before"]
    assert "chat template is not the one" in refused(content(range(20, 30), template="x"), TEN)


def test_answers_belong_to_the_content():
    tokenizer = word_tokenizer()
    content_alone, two = (Content.of("a", PromptSet([[1]], [answer], 0, 0), tokenizer) for answer in ("7", "8"))
    assert content_alone.rows != two.rows


def test_it_is_written_and_read(tmp_path):
    path = tmp_path / "data.json"
    assert Content.read(path) is None
    path.write_bytes(TEN.written())
    assert Content.read(path) == TEN
    held = json.loads(path.read_text())
    for damage in ({"rows": held["rows"][:-16]}, {"rows": "zz"}, {"problems": "x"}, {"tokenizer": None, "rows": None}):
        path.write_text(json.dumps(held | damage))
        with pytest.raises(InputError, match=r"data\.json: cannot be read"):
            Content.read(path)


# ---------------------------------------------------------------- a run


def train(folder: Path, *arguments: str, expect: int = 0) -> None:
    with patch("siri.report.view.write_report"):
        assert cli.main(["train", "demo", *SMALL, *arguments, "--run-dir", str(folder)]) == expect


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> SimpleNamespace:
    """A run of two steps on a file of its own."""
    folder = tmp_path_factory.mktemp("begun")
    data = folder / "set.jsonl"
    data.write_text("".join(Path(resolve_path("siri:demo/train.jsonl")).read_text().splitlines(keepends=True)[:64]))
    train(folder / "run", "--data", str(data), "--steps", "2", "--save-every", "1", "--quiet")
    return SimpleNamespace(run=folder / "run", data=data, lines=data.read_text().splitlines(keepends=True))


def resume(begun, tmp_path, lines, *options: str, expect: int = 0, name="other.jsonl") -> Path:
    data = tmp_path / name
    data.write_text("".join(lines))
    run = Path(shutil.copytree(begun.run, tmp_path / "run", symlinks=True))
    train(run, "--data", str(data), "--steps", "3", "--resume", *options, expect=expect)
    return run


def test_a_run_goes_on_with_the_same_problems_elsewhere(begun, tmp_path, capsys):
    run = resume(begun, tmp_path, begun.lines)
    assert "other.jsonl holds the same 64 problems" in capsys.readouterr().out
    assert len(rows(run)) == 3 and json.loads((run / "config.json").read_text())["data"][0].endswith("other.jsonl")


def test_a_run_goes_on_with_more_problems(begun, tmp_path, capsys):
    resume(begun, tmp_path, [*begun.lines, *begun.lines[:3]])
    assert "3 problems were added" in capsys.readouterr().out


def test_a_run_stops_at_fewer_problems_before_it_writes(begun, tmp_path, capsys):
    before = (begun.run / "config.json").read_bytes()
    run = resume(begun, tmp_path, begun.lines[:-1], expect=2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "1 are gone or changed" in error and "--data-changed accept" in error
    assert (run / "config.json").read_bytes() == before
    train(run, "--data", str(tmp_path / "other.jsonl"), "--steps", "3", "--resume", "--data-changed", "accept")
    assert len(rows(run)) == 3
    train(run, "--data", str(tmp_path / "other.jsonl"), "--steps", "4", "--resume")
    assert "data:" not in capsys.readouterr().out.split("report")[-1]


def test_a_dry_run_says_the_same(begun, tmp_path, capsys):
    resume(begun, tmp_path, begun.lines[:-1], "--dry-run", expect=2)
    assert "1 are gone or changed" in capsys.readouterr().err


def test_a_folder_of_an_older_release_goes_on_and_says_nothing(begun, tmp_path, capsys):
    run = Path(shutil.copytree(begun.run, tmp_path / "run", symlinks=True))
    (run / "data.json").unlink()
    train(run, "--data", str(begun.data), "--steps", "3", "--resume")
    assert "data:" not in capsys.readouterr().out and (run / "data.json").exists()
    other = tmp_path / "other.jsonl"
    other.write_text("".join(begun.lines))
    (run / "data.json").unlink()
    train(run, "--data", str(other), "--steps", "4", "--resume", expect=2)
    assert "another configuration (data)" in capsys.readouterr().err
