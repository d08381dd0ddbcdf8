"""Who waits for whom: a person who knows nothing of the run can tell what to add."""

import pytest

from siri.report.html import render
from siri.report.page import page_of
from siri.report.progress import TrainProgress
from siri.report.timeline import advice, timeline_chart, timeline_note, waits
from siri.store.jsonl import RunRecord


def row(step: int, **changes) -> dict:
    begun = 1.7e9 + 10 * step
    times = {"rollout_began_time": begun, "rollout_ended_time": begun + 18, "train_began_time": begun + 19}
    figures = {"staleness_mean": 1.5, "staleness_max": 2, "batches_in_flight": 2, "batches_ready": 1}
    waiting = {"rollout_wait_s": 1.0, "step_time_s": 10.0, "rollout_idle_time_share": 0.05}
    return {"step": step, "train_ended_time": begun + 28, **times, **figures, **waiting, **changes}


def record(rows: list[dict]) -> RunRecord:
    return RunRecord(config={"steps": len(rows), "staleness": 2}, metrics=rows, evals=[], plans=[])


@pytest.mark.parametrize(
    ("trainer", "servers", "words"),
    [
        (0.4, 0.02, "servers are what is short; add servers"),
        (0.02, 0.4, "the trainer is what is short; add GPUs to it"),
        (0.3, 0.3, "both wait, so a higher --staleness"),
        (0.05, 0.06, "servers and trainers fit each other"),
        (0.9, None, "the embedded engine samples in turn with it"),
    ],
)
def test_the_advice_is_by_who_waits(trainer, servers, words):
    assert words in advice(trainer, servers)


def test_shares_are_of_all_time():
    rows = [row(0), row(1, rollout_wait_s=5.0, step_time_s=20.0, rollout_idle_time_share=0.15)]
    assert waits(rows) == (pytest.approx(6 / 30), pytest.approx(0.1)) and waits([]) == (0.0, None)


def test_the_beginning_and_the_end_of_a_run_give_no_advice():
    """The first step waits for a whole rollout, and in the last ones servers have less and less to do."""
    rows = [row(step, batches_in_flight=3) for step in range(6)]
    rows[0] |= {"rollout_wait_s": 90.0, "step_time_s": 100.0}
    rows += [row(6 + left, batches_in_flight=2 - left, rollout_idle_time_share=0.8) for left in range(3)]
    assert "servers and trainers fit each other" in timeline_note(record(rows))
    busy = [each | {"rollout_idle_time_share": 0.5} for each in rows[:4]]
    assert "the trainer is what is short" in timeline_note(record(busy))
    assert "servers are what is short" in timeline_note(record([row(0, rollout_wait_s=5.0)])), "all there is"


def test_the_picture_has_a_bar_for_each_rollout_and_update():
    run = record([row(step) for step in range(5)])
    figure = timeline_chart(run)
    assert figure is not None
    (axes,) = figure.axes
    assert len(axes.collections) == 10 and {text.get_text() for text in axes.texts} == set("01234")
    lanes = {round(bar.get_paths()[0].vertices[:, 1].mean()) for bar in axes.collections[0::2]}
    assert len(lanes) >= 2, "rollouts overlap, so that they lie in several lanes"
    assert timeline_chart(record([{"step": 0}])) is None, "a run in turn has none"


def test_report_and_progress_line_say_it():
    run = record([row(step) for step in range(3)])
    assert "1.50 steps old in the mean, 2 at most" in timeline_note(run)
    text = render(page_of(run, {"timeline": (b"<svg/>", b"<svg/>")}, title="run"))
    assert "servers and trainers fit each other" in text and "Rollouts above, training below" in text
    progress = TrainProgress(3, quiet=True)
    progress.update(row(0, rollout_wait_s=4.0))
    said = progress._numbers().plain
    assert "stale 1.5" in said and "queue 1 of 2" in said and "waits: trainer 40.0%, servers 5.0%" in said
