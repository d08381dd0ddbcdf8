"""What is seen of a run that takes days: the time that is left, lines without a terminal, log.txt, the report anew."""

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from siri.config import Config
from siri.errors import InputError
from siri.report.eta import Forecast
from siri.report.progress import TrainProgress
from siri.schedule import LengthSchedule
from siri.train.shown import ReportDrawer, evaluations_left
from siri.train.view import unseen
from tests.support.training import rows, train

SCHEDULE = LengthSchedule("cosine", 16384, 8192, 640)


def seconds(step):
    return 60 + 0.02 * SCHEDULE.cap(step)


@pytest.mark.parametrize(("done", "error"), [(5, 0.25), (160, 0.01), (320, 0.01), (640, 0.01), (1900, 0.01)])
def test_the_time_that_is_left_knows_the_caps_to_come(done, error):
    forecast = Forecast(SCHEDULE.cap)
    for step in range(done):
        forecast.step(step, 500.0 if step == 0 else seconds(step))  # the first one compiles
    left = sum(map(seconds, range(done, 1920)))
    assert forecast.left(done, 1920) == pytest.approx(left, rel=error)
    newest = [seconds(step) for step in range(max(0, done - 20), done)]
    naive = (1920 - done) * sum(newest) / len(newest)
    if done in (320, 640):  # the mean of the last steps, taken at an end of a phase, is far off
        assert abs(naive / left - 1) > 0.2


def test_seconds_that_do_not_follow_the_cap_are_taken_as_they_are():
    forecast = Forecast(SCHEDULE.cap)
    assert forecast.left(0, 10) is None
    for step in range(320):
        forecast.step(step, 5.0 + (step - 160) / 1000)  # longer as the cap falls: a line would leave the data
    assert forecast.left(320, 420) == pytest.approx(500, rel=0.03)


def test_a_run_of_a_million_steps_is_no_more_work():
    cap = LengthSchedule("cosine", 16384, 8192, 640).cap
    calls = []
    forecast = Forecast(lambda step: calls.append(step) or cap(step))
    for step in range(3000):
        forecast.step(step, 1 + cap(step) / 1000)
    left = sum(1 + cap(step) / 1000 for step in range(3000, 10**6))
    calls.clear()
    assert forecast.left(3000, 10**6) == pytest.approx(left, rel=0.02) and len(calls) < 25_000
    assert forecast.left(10**6, 10**6) == 0


def test_no_step_is_thought_to_take_less_than_nothing():
    forecast = Forecast(lambda step: (10, 20, 20, 40)[step % 4])
    for step, cost in enumerate((0.0, 1.0, 1.0, 9.0)):
        forecast.step(step, cost)
    assert forecast.left(0, 1) > 0


def test_evaluations_count_once_one_was_measured():
    forecast = Forecast(None, lambda done: 3 - done)
    forecast.step(0, 2.0)
    assert forecast.left(1, 3) == 4.0
    forecast.evaluation(100.0)
    assert forecast.left(1, 3) == 204.0


def test_evaluations_that_are_left():
    config = Config(model="m", data="d", steps=10, cycle=4, eval_every=3, eval_data=("a", "b"), l_max=8, l_min=4)
    left = evaluations_left(config, config.length_schedule())
    assert [left(done) // 2 for done in (0, 2, 3, 9, 10)] == [7, 6, 5, 1, 0]  # after 2, 3, 4, 6, 8, 9 and 10 steps
    assert evaluations_left(Config(model="m", data="d", steps=10), config.length_schedule())(0) == 0


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def display(clock, terminal=False, **options):
    out = Console(file=io.StringIO(), width=100, force_terminal=terminal)
    return TrainProgress(1000, console=out, clock=clock, **options), out.file


def row(step, **more):
    return {"step": step, "cap": 96, "step_time_s": 40.0, **more}


def test_slow_steps_have_a_line_each_and_quick_ones_one_a_minute():
    for step_s, expected in ((70.0, 12), (40.0, 6), (4.0, 1)):
        clock = Clock()
        progress, out = display(clock)
        with progress:
            for step in range(12):
                clock.now += step_s
                progress.update(row(step))
        lines = out.getvalue().splitlines()
        assert len(lines) == expected, lines  # the first, and every second of those of 40 s


def test_a_long_rollout_is_seen_without_a_terminal():
    clock = Clock()
    progress, out = display(clock)
    with progress:
        progress.update(row(0))
        with progress.stage("rollout", 2048) as advance:
            for _ in range(4):
                clock.now += 100
                advance(256)
    first, *lines = out.getvalue().splitlines()
    assert [line.split("  ")[3] for line in lines] == [
        "rollout 512/2,048 responses, 3:20",
        "rollout 1,024/2,048 responses, 6:40",
    ]
    assert first.endswith("eta 11:06:00") and lines[-1].endswith("eta 10:59:20"), "it counts down within a step"


def test_a_terminal_shows_what_happens_within_a_step_and_the_memory():
    clock = Clock()
    progress, out = display(clock, terminal=True)
    with progress:
        progress.update(row(0, gpu_memory=71_240_000_000))
        with progress.stage("evaluation, aime24.json", 960) as advance:
            advance(32)
            clock.now += 7
            progress._live.refresh()
        progress._live.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "evaluation, aime24.json 32/960 responses, 0:07" in text and "GPU 71.2 GB" in text
    assert progress.forecast._measured == [7.0]


def test_every_line_is_in_the_log_with_its_time_and_a_log_that_cannot_be_written_ends_nothing(tmp_path):
    progress, out = display(Clock(), log=tmp_path / "run", quiet=True)
    progress.note("before there is a folder")
    (tmp_path / "run").mkdir()
    progress.note("a\nb")
    progress.update(row(0))
    first, second = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d  a\\nb", first)
    assert "  step    1/1000  cap 96  eta " in second and out.getvalue() == ""
    (tmp_path / "other" / "log.txt").mkdir(parents=True)
    progress, out = display(Clock(), log=tmp_path / "other")
    progress.note("one")
    progress.note("two")
    assert out.getvalue().count("log.txt cannot be written") == 1 and "two" in out.getvalue()


def test_the_report_is_drawn_at_milestones_unless_that_takes_a_large_part_of_the_time():
    clock, drawn, notes = Clock(), [], []

    def write_report(folder):
        drawn.append(clock.now)
        clock.now += 6

    drawer = ReportDrawer(SimpleNamespace(write_report=write_report), None, notes.append, clock)
    for now in (20, 60, 140, 200, 3600):
        clock.now = max(clock.now, now)
        drawer.milestone()
    assert drawn == [20, 200, 3600]
    drawer.draw()
    assert len(drawn) == 4 and not notes

    def fails(folder):
        raise OSError(28, "No space left on device")

    ReportDrawer(SimpleNamespace(write_report=fails), None, notes.append, clock).milestone()
    assert len(notes) == 1 and "the report could not be written" in notes[0]


def test_nobody_needs_to_watch():
    with unseen("rollout", 3) as advance:
        assert advance(1) is None


def test_a_run_writes_its_log_and_draws_at_its_milestones(tmp_path, monkeypatch, capsys):
    drawn, stages = [], []
    stage = TrainProgress.stage
    monkeypatch.setattr("siri.report.view.write_report", lambda folder: drawn.append(len(rows(folder))))
    monkeypatch.setattr(TrainProgress, "stage", lambda self, *what: stages.append(what) or stage(self, *what))
    train(tmp_path / "run", "--steps", "3", "--cycle", "4", report=True)
    assert drawn == [2, 3], "at the end of the compression, and at that of the run"
    log = (tmp_path / "run" / "log.txt").read_text()
    assert [f"step {step}/3  " in log for step in (1, 2, 3)] == [True] * 3
    assert "step 0 base: accuracy" in log and "step 2 siri-low-1: accuracy" in log
    shown = capsys.readouterr().out
    assert "step 1/3" in shown and "step 2 siri-low-1" in shown
    assert stages[:5] == [
        *(("evaluation, heldout.jsonl", 16), ("rollout", 32), ("grading",), ("update",), ("weights to the engine",))
    ]


def test_a_log_that_is_a_link_is_refused(tmp_path):
    train(tmp_path / "run", "--steps", "1", "--quiet")
    (tmp_path / "run" / "log.txt").unlink()
    (tmp_path / "run" / "log.txt").symlink_to(tmp_path / "elsewhere")
    from siri.store.held import refuse_links

    with pytest.raises(InputError, match="is a link"):
        refuse_links(tmp_path / "run")
