"""Figures of runs with several seeds, against formulas and against cases worked by hand."""

import io
import json

import pytest
from matplotlib import rc_context
from matplotlib.text import Text
from rich.console import Console

from siri.cli import main
from siri.errors import InputError
from siri.report.style import rc_style
from siri.store.jsonl import read_run
from siri.study.compare import (
    Curve,
    accuracy_after,
    accuracy_within,
    compare_arms,
    curves_of_runs,
    estimate,
    front,
    front_area,
    shared_steps,
    tokens_reaching,
)
from siri.study.tables import print_sheets, sheets, tables


def curve(points, arm="a", seed=0, cap=100, names=None, steps=None) -> Curve:
    """points: (tokens, accuracy); one evaluation every ten steps, 1000 training tokens apart."""
    evals = [
        {"step": 10 * i, "name": (names or {}).get(i, f"step-{10 * i}"), "accuracy": accuracy, "tokens_mean": tokens}
        | {"train_tokens": 1000 * i, "cap": cap}
        for i, (tokens, accuracy) in enumerate(points)
    ]
    return Curve(arm, seed, evals, steps or {})


def test_interval_is_students():
    interval = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert interval.mean == 3 and interval.count == 5
    assert interval.half == pytest.approx(2.776 * 2.5**0.5 / 5**0.5)
    assert estimate([1.0, None, 3.0]).half == pytest.approx(12.706 * 2**0.5 / 2**0.5)
    assert estimate([7.0]).half is None and estimate([7.0]).mean == 7
    assert estimate([None]).mean is None and estimate([]).count == 0
    many = [float(i % 2) for i in range(42)]
    assert estimate(many).half == pytest.approx(2.0195 * (0.25 * 42 / 41) ** 0.5 / 42**0.5, rel=1e-3), "t of 41"


def test_best_within_a_length_and_shortest_of_an_accuracy():
    run = curve([(50, 0.5), (20, 0.6), (30, 0.8), (25, 0.55)])
    assert accuracy_within(run, 25) == 0.6 and accuracy_within(run, 30) == 0.8
    assert accuracy_within(run, 10) is None
    assert tokens_reaching(run, 0.6) == 20 and tokens_reaching(run, 0.7) == 30
    assert tokens_reaching(run, 0.9) is None


def test_accuracy_after_training_tokens_is_linear_between_evaluations():
    run = curve([(50, 0.5), (20, 0.6), (30, 0.8)])
    assert accuracy_after(run, 500) == pytest.approx(0.55)
    assert accuracy_after(run, 2000) == 0.8 and accuracy_after(run, 0) == 0.5
    assert accuracy_after(run, 2001) is None


def test_front_and_its_area():
    run = curve([(50, 0.5), (20, 0.4), (30, 0.8), (40, 0.7)])
    assert front(run) == [(20, 0.4), (30, 0.8)]
    assert front_area(run) == pytest.approx((10 * 0.4 + 70 * 0.8) / 100)
    assert front_area(curve([(150, 0.9), (100, 0.5)])) == 0, "nothing is within the cap"


def test_arms_are_compared_at_the_first_ones_level_seed_by_seed():
    curves = [
        curve([(50, 0.5), (20, 0.8)], "siri", 0),
        curve([(50, 0.5), (30, 0.7)], "siri", 1),
        curve([(50, 0.5), (25, 0.6)], "fixed", 0),
        curve([(50, 0.5), (40, 0.9)], "fixed", 1),
    ]
    levels, (siri, fixed) = compare_arms(curves)
    assert (levels.tokens, levels.accuracy, levels.train_tokens) == (25, 0.75, 1000)
    assert siri.accuracy.mean == pytest.approx(0.75) and siri.against.mean is None
    assert fixed.against.mean == pytest.approx(((0.6 - 0.8) + (0.9 - 0.7)) / 2)
    assert fixed.at_equal_tokens.mean == 0.6 and fixed.at_equal_tokens.count == 1
    assert fixed.at_equal_accuracy.mean == 40 and fixed.at_equal_accuracy.count == 1
    assert siri.score.mean == pytest.approx((0.6 / 0.4 + 0.4 / 0.6) / 2)
    assert compare_arms(curves, "fixed")[0].arm == "fixed"
    with pytest.raises(InputError, match="typo"):
        compare_arms(curves, "typo")
    with pytest.raises(InputError, match="no finished run"):
        compare_arms([])


def test_no_arm_chooses_among_more_checkpoints_than_another():
    often = curve([(50, 0.5), (10, 0.9), (30, 0.6)], "often")  # evaluated at 0, 10, 20
    seldom = curve([(50, 0.5), (30, 0.6)], "seldom")
    seldom.evals[1]["step"] = 20
    assert shared_steps([often, seldom]) == [0, 20]
    rows = {row.arm: row for row in compare_arms([seldom, often])[1]}
    assert rows["often"].at_equal_tokens.mean == 0.6 and rows["often"].area.mean == rows["seldom"].area.mean
    apart = curve([(50, 0.5), (30, 0.6)], "apart")
    apart.evals[1]["step"] = 15
    assert shared_steps([seldom, apart]) == [0, 15, 20], "nothing shared but the base: every checkpoint counts"


def test_tables_show_ends_of_phases_and_dynamics():
    names = {1: "siri-low-1", 2: "siri-high-1"}
    phases = ["compression"] * 10 + ["expansion"] * 10
    steps = {"phase": phases, "cap": [20] * 10 + [40] * 10, "entropy": [0.5] * 10 + [None] * 10}
    steps["response_tokens_mean"] = [10.0 + step % 3 for step in range(20)]
    curves = [
        curve([(50, 0.5), (20, 0.7), (30, 0.9)], "siri", 0, names=names, steps=steps),
        curve([(50, 0.5), (45, 0.6), (40, 0.8)], "high", 0),
    ]
    text = tables(curves)
    assert "accuracy at step 10, %" in text and "siri-high-1 minus it" in text
    assert "| high | 60.0 | +10.0 | 45.0 | -25.0 | 80.0 | +10.0 | 40.0 | -10.0 |" in text
    assert "| compression 1 | 0 to 9 | 20 | 10.9 | 0.500 |" in text
    assert "| expansion 1 | 10 to 19 | 40 |" in text and "| - |" in text
    assert "minus it" not in tables([curves[1]]), "no phases, no table of them"


def write_run(folder, seed, points, cap=100, recipe="demo", **config):
    folder.mkdir()
    run = curve(points, seed=seed, cap=cap)
    (folder / "config.json").write_text(json.dumps({"recipe": recipe, "seed": seed, **config}))
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in run.evals))
    rows = [{"step": step, "phase": "expansion", "cap": cap, "response_tokens_mean": 30.0} for step in range(10)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_runs_that_differ_in_their_seed_are_one_arm(tmp_path):
    points = [(50, 0.5), (30, 0.6)]
    runs = [write_run(tmp_path / f"r{seed}", seed, points) for seed in (0, 1)]
    runs.append(write_run(tmp_path / "other", 0, points, recipe="stair"))
    curves = curves_of_runs(runs)
    assert [(run.arm, run.seed) for run in curves] == [("demo", 0), ("demo", 1), ("stair", 0)]
    runs.append(write_run(tmp_path / "longer", 0, points, l_max=3))
    assert [run.arm for run in curves_of_runs(runs)] == ["r0", "r0", "stair", "longer"]


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    run = write_run(tmp_path / "one", 0, [(50, 0.5), (30, 0.6)])
    with pytest.raises(InputError, match=r"different caps.*--eval-cap"):
        curves_of_runs([run, write_run(tmp_path / "two", 0, [(50, 0.5), (30, 0.6)], cap=60)])
    with pytest.raises(InputError, match=r"three.*evaluation of the base"):
        curves_of_runs([run, write_run(tmp_path / "three", 0, [(50, 0.5)])])
    with pytest.raises(InputError, match="not a run folder"):
        curves_of_runs([tmp_path])


def test_compare_on_the_command_line(tmp_path, capsys):
    from siri.cli import main

    runs = [str(write_run(tmp_path / f"r{seed}", seed, [(50, 0.5), (30, 0.6)])) for seed in (0, 1)]
    assert main(["compare", *runs, "--out", str(tmp_path / "out")]) == 0
    assert "| demo | 2 | 60.0" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "table.md",
        "pareto.png",
        "steps.png",
        "training_tokens.png",
    }
    assert main(["compare", runs[0]]) == 2
    assert main(["compare", *runs, "--out", str(tmp_path / "no" / "where")]) == 2
    assert main(["compare", *runs, "--reference", "typo"]) == 2


def test_what_makes_columns_mean_different_things_is_told(tmp_path, capsys):
    points = [(50, 0.5), (30, 0.6), (20, 0.9)]
    longer = write_run(tmp_path / "longer", 0, points, reward="exact")
    shorter = write_run(tmp_path / "shorter", 0, points[:2], reward="rewards:brief")
    last = {folder: read_run(folder).evals[-1]["step"] for folder in (longer, shorter)}
    assert main(["compare", str(longer), str(shorter)]) == 0
    out = capsys.readouterr().out
    assert f"{longer} by exact, {shorter} by rewards:brief" in out
    assert f"longer after {last[longer]}, shorter after {last[shorter]}" in out and f"--until {last[shorter]} " in out
    assert main(["compare", str(longer), str(shorter), "--until", str(last[shorter])]) == 0
    out = capsys.readouterr().out
    assert "different rewards" in out and "different steps" not in out
    assert out.count("60.0") >= 2 and "90.0" not in out, "both at the shorter one's end"
    assert main(["compare", str(longer), str(shorter), "--until", "1"]) == 2
    assert "longer was not evaluated by then" in capsys.readouterr().err
    assert main(["compare", str(longer), str(longer)]) == 0 and "note:" not in capsys.readouterr().out


def terminal(width):
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)


def test_a_terminal_gets_tables_that_fit_and_a_pipe_gets_markdown(tmp_path, capsys, monkeypatch):
    names = {1: "siri-low-1", 2: "siri-high-1"}
    curves = [curve([(50, 0.5), (20, 0.7), (30, 0.9)], arm, 0, names=names) for arm in ("[red]siri", "fixed-high")]
    for width in (80, 400):
        out = terminal(width)
        print_sheets(sheets(curves), out)
        text = out.file.getvalue()
        lines = text.splitlines()
        assert all(len(line) <= width for line in lines) and "…" not in text and "|---" not in text
        assert any(line[2:].startswith("accuracy, %") and "90.0" in line for line in lines) == (width == 80), (
            "figures down, arms across"
        )
        assert "[red]siri" in text
    runs = [write_run(tmp_path / f"s{seed}", seed, [(50, 0.5), (40, 0.6)]) for seed in (0, 1)]
    assert main(["compare", *map(str, runs)]) == 0
    assert "|---|" in capsys.readouterr().out
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    assert main(["compare", *map(str, runs)]) == 0
    assert "|---" not in capsys.readouterr().out


def test_runs_of_one_arm_may_come_from_several_hosts(tmp_path):
    made = [{"host": "a", "time": "1", "commit": "x"}, {"host": "b", "time": "2"}]
    runs = [write_run(tmp_path / f"s{n}", n, [(50, 0.5), (40, 0.6)], made=made[n]) for n in (0, 1)]
    assert {run_curve.arm for run_curve in curves_of_runs(runs)} == {"demo"}


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def test_the_picture_counts_seeds_by_arm_and_has_no_more_than_all_right():
    from siri.study.charts import pareto_chart

    def drawn(seeds):
        curves = [
            curve([(50, 0.5), (20, 0.99)], arm, seed) for arm, seeds_of_arm in seeds.items() for seed in seeds_of_arm
        ]
        with rc_context(rc_style()):
            return pareto_chart(curves)

    figure = drawn({"a": (0, 1, 2), "b": (3, 4, 5)})
    assert any("interval of 3 seeds" in text for text in texts(figure)), "not the six that there are in all"
    assert any("interval of 2 to 3 seeds" in text for text in texts(drawn({"a": (0, 1, 2), "b": (0, 1)})))
    assert any("interval of 1 seed" in text for text in texts(drawn({"a": (0,), "b": (0,)})))
    assert max(figure.axes[0].get_yticks()) <= 100


def test_a_cosine_that_stopped_early_oscillates():
    from siri.study.charts import oscillates

    falling = {"phase": ["compression"] * 3, "cap": [90, 80, 70]}
    assert oscillates([curve([(50, 0.5), (20, 0.7)], steps=falling)])
    stairs = {"phase": ["expansion"] * 3, "cap": [90, 80, 70]}
    assert not oscillates([curve([(50, 0.5), (20, 0.7)], steps=stairs)])
