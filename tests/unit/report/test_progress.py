import io
import re

import pytest
from rich.console import Console

from siri.errors import InputError
from siri.report.effects import effect_cells, effects, verdict
from siri.report.format import compact, duration, percent, tokens
from siri.report.progress import TrainProgress
from siri.report.terminal import closing_table, print_closing
from siri.store.jsonl import read_run
from tests.support.synthetic_run import make_run


def console(width=80, terminal=False):
    return Console(
        file=io.StringIO(), width=width, force_terminal=terminal, color_system="truecolor" if terminal else None
    )


def evaluation(step, name, accuracy=0.5, tokens_mean=40.0, cap=96, **more):
    return {"step": step, "name": name, "cap": cap, "accuracy": accuracy, "tokens_mean": tokens_mean, **more}


CYCLE = [
    evaluation(0, "base", 0.5, 40.0),
    evaluation(20, "siri-low-1", 0.75, 20.0),
    evaluation(40, "siri-high-1", 0.8, 30.0),
]


def test_numbers_as_text():
    assert [percent(0.5113), percent(0.9334, signed=True), percent(-0.5, signed=True), percent(None)] == [
        "51.1%",
        "+93.3%",
        "-50.0%",
        "-",
    ]
    assert [tokens(19.44), tokens(7093.2), tokens(None)] == ["19.4", "7,093", "-"]
    assert [compact(n) for n in (0, 812, 999.7, 45_200, 999_600, 1_040_000, 782_150_000, 3.1e9, None)] == [
        "0",
        "812",
        "1.00 K",
        "45.2 K",
        "1.00 M",
        "1.04 M",
        "782 M",
        "3.10 B",
        "-",
    ]
    assert [duration(0), duration(62.4), duration(3723), duration(None)] == ["0:00", "1:02", "1:02:03", "-"]


# --- the bar ---


def train(out, steps=120, start=0, quiet=False, **fields):
    with TrainProgress(steps, start, quiet, console=out) as progress:
        for step in range(start, steps):
            progress.update(
                {
                    "step": step,
                    "phase": "compression" if step % 40 < 20 else "expansion",
                    "cap": 96,
                    "reward_mean": 0.5,
                    "response_tokens_mean": 25.64,
                    "truncation_rate": 0.125,
                    "tokens_per_s": 1234.0,
                    "step_time_s": 2.0,
                    **fields,
                }
            )
    return out.file.getvalue()


def test_plain_lines_every_tenth_without_control_codes():
    text = train(console(width=40))
    lines = text.splitlines()
    assert [int(re.match(r"step +(\d+)/120  ", line)[1]) for line in lines] == [1, *range(12, 121, 12)]
    assert "\x1b" not in text and "\r" not in text
    assert re.search(r"compression +cap 96 .*0\.500 .*25\.6 .*12\.5% .*1\.23 K tok/s +eta 3:58$", lines[0]), lines[0]
    assert lines[-1].endswith("eta 0:00")


def test_plain_lines_of_short_and_resumed_runs():
    assert len(train(console(), steps=2).splitlines()) == 2
    assert len(train(console(), steps=1).splitlines()) == 1
    resumed = train(console(), steps=100, start=55).splitlines()
    assert [int(line.split("/")[0].split()[1]) for line in resumed] == [56, 60, 70, 80, 90, 100]


def test_null_numbers_are_left_out():
    line = train(console(), steps=1, reward_mean=None, tokens_per_s=None, truncation_rate=None)
    assert "reward" not in line and "tok/s" not in line and "truncated" not in line and "tokens 25.6" in line


def test_quiet_shows_nothing():
    out = console()
    with TrainProgress(10, quiet=True, console=out) as progress:
        progress.note("nothing")
    assert train(out, quiet=True) == ""
    assert train(console(terminal=True), quiet=True) == ""


def test_note_is_one_line_whatever_it_holds():
    out = console(width=20)
    with TrainProgress(10, console=out) as progress:
        progress.note("saved checkpoints/[step_000020] as siri-low-1, a long line")
    assert out.file.getvalue() == "saved checkpoints/[step_000020] as siri-low-1, a long line\n"


def test_a_terminal_gets_a_live_display_that_ends_whole():
    out = console(terminal=True)
    text = train(out, steps=30)
    assert "\x1b[" in text
    # the codes that go back up one line separate the frames
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.split("\x1b[1A")[-1]).replace("\r", "").splitlines()
    assert last[0].startswith("step 30/30") and "eta 0:00" in last[0], last
    assert last[1].startswith("expansion") and "tokens 25.6" in last[1], last
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor must come back"
    assert all(len(line) <= 80 for line in last)


def test_the_cursor_comes_back_after_an_error():
    out = console(terminal=True)
    with pytest.raises(RuntimeError), TrainProgress(10, console=out):
        raise RuntimeError
    assert out.file.getvalue().rstrip().endswith("\x1b[?25h")


# --- the closing table ---


def test_changes_against_base():
    base, low, high = effects(CYCLE)
    assert (base.accuracy_change, base.tokens_change, base.score) == (None, None, None)
    assert low.accuracy_change == pytest.approx(0.5) and low.tokens_change == pytest.approx(-0.5)
    assert low.score == pytest.approx(0.5 / 0.5)
    assert high.score == pytest.approx(0.6 / 0.75)


PAPER = {  # table 1, 1.5B: AIME24, AIME25, AMC, MATH500
    "base": [(28.2, 12333), (21.5, 12264), (61.8, 8449), (82.4, 4745)],
    "siri-low-3": [(40.4, 7093), (29.6, 6509), (74.6, 4700), (87.7, 2881)],
    "siri-high-3": [(43.6, 10049), (32.2, 9739), (75.9, 7396), (88.4, 4633)],
}


def several(step, name, figures):
    names = ("aime24", "aime25", "amc", "math500")
    parts = {name: {"accuracy": a / 100, "tokens_mean": t} for name, (a, t) in zip(names, figures, strict=True)}
    means = [sum(part[key] for part in parts.values()) / 4 for key in ("accuracy", "tokens_mean")]
    return evaluation(step, name, *means, cap=16384, benchmarks=parts)


def test_score_over_benchmarks_is_that_of_the_paper():
    evals = [several(step, name, figures) for step, (name, figures) in enumerate(PAPER.items())]
    base, low, high = effects(evals)
    assert base.score is None
    assert low.score == pytest.approx(0.476, abs=5e-4) and high.score == pytest.approx(0.3886, abs=5e-5)  # 0.47, 0.38
    from siri.store.jsonl import efficiency_score

    figures = {name: dict(enumerate(values)) for name, values in PAPER.items()}
    for effect in (low, high):
        assert effect.score == pytest.approx(efficiency_score(figures[effect.name], figures["base"]), rel=1e-12)


def test_no_score_without_a_base_figure_for_every_benchmark():
    evals = [several(step, name, figures) for step, (name, figures) in enumerate(PAPER.items())]
    evals[0]["benchmarks"]["amc"]["accuracy"] = 0.0
    del evals[2]["benchmarks"]["amc"]
    _, low, high = effects(evals)
    assert low.score is None and low.accuracy_change is not None
    assert high.score is None and high.accuracy_change is not None


def test_a_loss_of_accuracy_scores_zero():
    assert effects([CYCLE[0], evaluation(20, "siri-low-1", 0.4, 20.0)])[1].score == 0


def test_order_milestones_and_repeated_evaluations():
    evals = [
        *CYCLE[::-1],
        evaluation(30, "step-30"),
        evaluation(40, "siri-high-1", 0.9, 30.0),  # evaluated again after a resume: the later one counts
        evaluation(45, "final", 0.95, 31.0),
    ]
    rows = effects(evals)
    assert [row.name for row in rows] == ["base", "siri-low-1", "siri-high-1", "final"]
    assert rows[2].accuracy == 0.9
    assert [row.name for row in effects(evals, every=True)] == ["base", "siri-low-1", "step-30", "siri-high-1", "final"]


def test_final_that_repeats_a_milestone_is_shown_once():
    assert [row.name for row in effects([*CYCLE, {**CYCLE[-1], "name": "final"}])][-1] == "siri-high-1"
    assert [row.name for row in effects([*CYCLE, {**CYCLE[-1], "name": "final", "accuracy": 0.81}])][-1] == "final"


def test_no_change_is_claimed_across_caps_or_from_nothing():
    for base in (
        evaluation(0, "base", 0.5, 40.0, cap=48),
        evaluation(0, "base", 0.0, 0.0),
        evaluation(0, "base", None, None),
    ):
        row = effects([base, CYCLE[1]])[1]
        assert (row.accuracy_change, row.tokens_change, row.score) == (None, None, None)
    row = effects([CYCLE[0], evaluation(20, "siri-low-1", None, None)])[1]
    assert effect_cells(row)[2:] == ("-", "-", "-", "-", "-", "-", "-")


def test_verdict_states_the_figures():
    assert verdict(effects(CYCLE)) == (
        "Against base at cap 96: siri-low-1 (step 20): accuracy +25.0 points, tokens -50.0%; "
        "siri-high-1 (step 40): accuracy +30.0 points, tokens -25.0%."
    )
    assert verdict(effects(CYCLE[1:])) == (
        "No base evaluation to compare with. siri-low-1 (step 20): accuracy 75.0% at 20.0 tokens; "
        "siri-high-1 (step 40): accuracy 80.0% at 30.0 tokens."
    )
    assert verdict(effects([CYCLE[0], evaluation(30, "step-30", 0.6, 30.0), evaluation(60, "final", 0.7, 20.0)])) == (
        "Against base at cap 96: final (step 60): accuracy +20.0 points, tokens -50.0%."
    )
    assert verdict(effects([CYCLE[0]])) == "No evaluation after training yet."
    assert verdict(effects([])) == "No evaluation yet."


def test_table_fits_eighty_columns_and_holds_every_figure(tmp_path):
    run = read_run(make_run(tmp_path, recipe="siri-1.5b", l_max=16384, l_min=8192, tokens=(19500, 16800)))
    out = console()
    out.print(closing_table(run.evals, run.config))
    text = out.file.getvalue()
    assert "…" not in text
    for row in effects(run.evals):
        line = next(line for line in text.splitlines() if line.startswith(row.name))
        assert line.split() == " ".join(effect_cells(row)).split()
    assert "siri-1.5b, evaluated at cap 16,384" in text
    assert verdict(effects(run.evals)) in " ".join(text.split())


def test_print_closing(tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        print_closing(tmp_path)
    make_run(tmp_path / "run", upto=30, base=False)
    out = console()
    print_closing(tmp_path / "run", out)
    assert "siri-low-1" in out.file.getvalue() and "No base evaluation" in out.file.getvalue()
    (tmp_path / "run" / "eval.jsonl").unlink()
    out = console()
    print_closing(tmp_path / "run", out)
    assert "no evaluation recorded" in out.file.getvalue()
