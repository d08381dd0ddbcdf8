"""A model that does not think in tags is told so, once."""

from unittest.mock import patch

import pytest

from siri import cli
from siri.rollout import Completion
from siri.train.thinking import ThinkingCheck
from tests.support.training import SMALL
from tests.unit.train.test_batch import config, prompt_set
from tests.unit.train.test_batch import run as collected

ENDED, CUT = Completion([1], [-1.0], False), Completion([1], [-1.0], True)


def told(texts, completions=None, reward="math", think=True) -> str | None:
    check = ThinkingCheck(reward, think)
    check.see(texts, completions or [ENDED] * len(texts))
    return check.line()


def test_it_is_told_when_nearly_no_finished_response_holds_the_tag():
    assert "none of 9 finished" in told(["7"] * 9) and "--no-think" in told(["7"] * 9)
    assert "1 of 100 finished" in told(["x </think> 7"] + ["7"] * 99)
    assert told(["x </think> 7"] + ["7"] * 9) is None


def test_nothing_is_told_where_the_tag_does_not_matter():
    assert told(["7"], think=False) is None and told(["7"], reward="module:function") is None
    assert told(["7"], [CUT]) is None, "thinking that the cap cut has no end"


def test_it_waits_for_finished_responses_and_speaks_once():
    check = ThinkingCheck("exact", True)
    check.see(["7"], [CUT])
    assert check.line() is None
    check.see(["7", "7"], [CUT, ENDED])
    assert "none of 1" in check.line()
    check.see(["7"], [ENDED])
    assert check.line() is None


def test_collect_shows_it_what_was_sampled():
    check = ThinkingCheck("math", True)
    collected(config(), prompt_set(*[(5, "6")] * 4), thinking=check)
    assert check.finished == 8, "of three responses to each of four prompts one is cut"


@pytest.fixture
def other_tag():
    with patch("siri.train.thinking.END_OF_THINKING", "</other>"):
        yield


@pytest.mark.parametrize("held_out", [[], ["siri:demo/heldout.jsonl"]])
def test_train_tells_it(other_tag, held_out, tmp_path, capsys):
    options = ["--steps", "2", "--eval-data", *held_out, "--run-dir", str(tmp_path / "run")]
    with patch("siri.report.view.write_report"):
        assert cli.main(["train", "demo", *SMALL, *options]) == 0
    text = capsys.readouterr().out
    assert text.count("give --no-think") == 1
    if held_out:
        assert text.index("give --no-think") < text.index("step 0 base")


def test_eval_tells_it_and_tells_files_of_one_name_apart(other_tag, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    for folder, answer in (("a", 2), ("b", 3)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.jsonl").write_text(f'{{"problem": "1 + 1", "answer": {answer}}}\n')
    options = ["--cap", "64", "--samples", "4", "--template", "plain"]
    assert cli.main(["eval", "siri:demo/model", "--data", "a/test.jsonl", "b/test.jsonl", *options]) == 0
    text = capsys.readouterr().out
    assert text.count("give --no-think") == 1 and "a/test.jsonl" in text and "b/test.jsonl" in text
