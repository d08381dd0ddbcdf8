"""Words, repetition, phases of a run."""

from types import SimpleNamespace

import numpy as np
import pytest

from siri.report.phases import by_phase, phase_cells
from siri.rollout import Completion
from siri.train.dynamics import Dynamics, WordCounter, repetition_rate

VOCAB = {
    "Wait": 0,
    "\u0120wait": 1,
    "\u2581WAIT": 2,
    "waiting": 3,
    "\u0120hold": 4,
    "Hold": 5,
    "\u0120on": 6,
    "so": 7,
    "x": 8,
}
TOKENIZER = SimpleNamespace(get_vocab=lambda: VOCAB)


def test_words_are_counted_in_any_case_and_phrases_in_order():
    counter = WordCounter(TOKENIZER, ("wait", "hold on"))
    assert counter.count(np.array([0, 1, 2, 3, 8])) == 3, "waiting is another word"
    assert counter.count(np.array([4, 6, 8, 5, 6])) == 2
    assert counter.count(np.array([6, 4])) == counter.count(np.array([4])) == counter.count(np.array([], int)) == 0
    assert WordCounter(TOKENIZER, ("alternatively",)).count(np.array([0, 1])) == 0


def test_the_demo_says_wait():
    from transformers import AutoTokenizer

    from siri.demo import MODEL

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ids = np.array(tokenizer("a3 3 wait a3 3 wait a3 3 </think> 3")["input_ids"])
    assert WordCounter(tokenizer, ("wait",)).count(ids) == 2


def test_words_of_a_byte_level_tokenizer():
    from tests.support.tiny import bpe_tokenizer

    tokenizer = bpe_tokenizer(["wait, so I wait. Wait! hold on, so hold on. alternatively wait"] * 50)
    ids = np.array(tokenizer("Wait, so I wait. hold on")["input_ids"])
    assert WordCounter(tokenizer, ("wait", "hold on")).count(ids) == 3
    assert WordCounter(tokenizer, ("so", "alternatively")).count(ids) == 1


def test_repetition_is_the_share_of_ngrams_seen_before():
    assert repetition_rate(np.array([1, 2, 3, 4, 5, 6])) == 0
    assert repetition_rate(np.array([1, 2, 3, 4, 1, 2, 3, 4])) == pytest.approx(1 / 5)
    assert repetition_rate(np.array([7] * 10)) == pytest.approx(6 / 7)
    assert repetition_rate(np.array([7, 7])) == 0
    ids = np.random.default_rng(0).integers(0, 6, 3000)
    grams = {tuple(ids[i : i + 4]) for i in range(2997)}
    assert repetition_rate(ids) == pytest.approx(1 - len(grams) / 2997)
    assert repetition_rate(np.array([1, 1, 2]), n=1) == pytest.approx(1 / 3)


def test_metrics_are_means_over_all_responses():
    # the second ends in "hold", the third begins with "on": two responses, no phrase
    answers = [Completion([0, 8, 8, 8], [], False), Completion([1, 1, 7, 4], [], True), Completion([6], [], False)]
    groups = [SimpleNamespace(wording=None, completions=some) for some in (answers[:2], answers[2:])]
    assert Dynamics(TOKENIZER).metrics(groups) == pytest.approx(
        {"backtracking_per_response": 1.0, "forward_words_per_response": 1 / 3, "repetition_rate": 0.0}
    )


def test_what_a_rank_has_counted_is_not_counted_again():
    dynamics = Dynamics(TOKENIZER)
    answers = [Completion(np.array([0, 8, 8, 8], np.int32), [], False), Completion([1, 1, 7, 4], [], True)]
    counted = SimpleNamespace(wording=dynamics.of(answers), completions=None)
    fresh = SimpleNamespace(wording=None, completions=answers)
    assert counted.wording == ((1, 0, 0.0), (2, 1, 0.0))
    assert dynamics.metrics([counted]) == dynamics.metrics([fresh])


def test_phases_are_counted_by_cycle_and_missing_figures_stay_missing():
    phases = ["compression"] * 2 + ["expansion"] * 2 + ["compression"]
    rows = [
        {"step": step, "phase": phase, "entropy": step, "tokens_wrong_mean": None} for step, phase in enumerate(phases)
    ]
    spans = by_phase(rows)
    assert [(span["phase"], span["cycle"], span["start"], span["end"]) for span in spans] == [
        ("compression", 1, 0, 2),
        ("expansion", 1, 2, 4),
        ("compression", 2, 4, 5),
    ]
    assert [span["entropy"] for span in spans] == [0.5, 2.5, 4.0]
    assert spans[0]["tokens_wrong_mean"] is None and spans[0]["cap"] is None


def test_the_report_shows_phases_and_swing(tmp_path):
    from siri.report.html import write_report
    from tests.support.synthetic_run import make_run

    text = write_report(make_run(tmp_path / "run")).read_text()
    assert "Dynamics by phase" in text and "compression 3" in text and "expansion 3" in text
    assert "Swing of" not in text, "two cycles after the first are too few for a test"
    longer = write_report(make_run(tmp_path / "longer", steps=320)).read_text()
    assert "Swing of the response length with the cap" in longer and "steps behind (p = " in longer
    constant = write_report(make_run(tmp_path / "constant", schedule="constant")).read_text()
    assert "Dynamics by phase" not in constant


def test_cells_of_phases():
    rows = [{"step": 0, "phase": "compression", "cap": 1000, "truncation_rate": 0.5}, {"step": 1, "phase": "expansion"}]
    headings, lines = phase_cells([*rows, {"step": 2}])
    assert headings == ["phase", "steps", "cap", "truncated, %"]
    assert lines == [["compression 1", "0 to 0", "1,000", "50.0"], ["expansion 1", "1 to 1", "-", "-"]]
