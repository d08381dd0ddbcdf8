"""The pictures of a report: what they show, and that nothing on them stands over another."""

import io
import json
import math
from dataclasses import replace
from itertools import combinations

import pytest
from PIL import Image

from siri.report import charts, style
from siri.report.effects import effects
from siri.store.jsonl import read_run
from tests.support.pages import figure
from tests.support.synthetic_run import LARGE, make_run


def contrast(colour, other):
    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(colour), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [style.LIGHT, style.DARK], ids=["light", "dark"])
def test_text_colours_are_readable(theme):
    assert contrast(theme["ink"], theme["paper"]) > 12
    assert contrast(theme["muted"], theme["paper"]) >= 4.5
    for name in ("low", "high"):
        assert contrast(theme[name], theme["paper"]) >= 4.5, name
        assert contrast(theme[name], theme["shade"]) >= 4.5, name


def test_smoothing_skips_gaps_and_keeps_constants():
    values, window = charts.smoothed([2.0] * 400)
    assert values == [2.0] * 400 and window == 11
    values, window = charts.smoothed([1.0, math.nan, 3.0])
    assert window == 1 and values[0] == 1.0 and math.isnan(values[1])
    ramp, window = charts.smoothed([float(i) for i in range(160)])
    assert window == 5 and ramp[10:150] == [float(i) for i in range(10, 150)]


def boxes(axes):
    renderer = axes.figure.canvas.get_renderer()
    return {text.get_text(): text.get_window_extent(renderer) for text in axes.texts if text.get_text()}


def shared(a, b):
    return max(0, min(a.x1, b.x1) - max(a.x0, b.x0)) * max(0, min(a.y1, b.y1) - max(a.y0, b.y0))


@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
@pytest.mark.parametrize("font", ["first", "DejaVu Sans"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tokens": (45.0, 40.0)},
        {"steps": 320},
        {"accuracy": (0.97, 0.985), "lag": 0.0},
        {"schedule": "stair"},
        LARGE,
    ],
    ids=["demo", "short-way", "eight-cycles", "ceiling", "stair", "large"],
)
def test_labels_of_the_pareto_chart_never_overlap(tmp_path, monkeypatch, options, font, narrow):
    if font != "first":  # what matplotlib brings along, wider than the others
        monkeypatch.setattr(style, "FONTS", (font,))
    run = read_run(make_run(tmp_path / "run", **options))
    drawn = figure(charts.pareto_chart, run, narrow)
    axes = drawn.axes[0]
    labels = boxes(axes)
    names = {text.split("\n")[0] for text in labels}
    cycles = round(run.config["steps"] / run.config["cycle"])
    assert {"base", f"low {cycles}", f"high {cycles}"} <= names, "the checkpoints that people take away must be named"
    if cycles == 3 and not narrow:
        assert len(names) == 7, f"only {names} are named"
    for (label, a), (other_label, b) in combinations(labels.items(), 2):
        assert shared(a, b) == 0, f"{label!r} covers {other_label!r}"
    spots = [axes.transData.transform((row.tokens, 100 * row.accuracy)) for row in effects(run.evals)]
    for text, box in labels.items():
        for x, y in spots:
            inside = box.x0 < x < box.x1 and box.y0 < y < box.y1
            assert not inside, f"{text!r} covers a point"
        whole = box.x0 >= 0 and box.x1 <= drawn.bbox.width and box.y0 >= 0 and box.y1 <= drawn.bbox.height
        assert whole, f"{text!r} is cut"


@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
@pytest.mark.parametrize("font", ["first", "DejaVu Sans"])
@pytest.mark.parametrize(
    "options", [{}, LARGE, {"schedule": "constant"}, {"upto": 20}, {"schedule": "stair", "upto": 30}]
)
def test_names_of_the_curves_never_overlap(tmp_path, monkeypatch, options, font, narrow):
    if font != "first":  # what matplotlib brings along, wider than the others
        monkeypatch.setattr(style, "FONTS", (font,))
    drawn = figure(charts.training_chart, read_run(make_run(tmp_path / "run", **options)), narrow)
    for axes in drawn.axes:
        for (label, a), (other_label, b) in combinations(boxes(axes).items(), 2):
            assert shared(a, b) == 0, f"{label!r} covers {other_label!r}"
        for text, box in boxes(axes).items():
            assert box.x1 <= drawn.bbox.width + 1, f"{text!r} is cut"


def test_training_chart_shows_the_rows(demo):
    run = read_run(demo)
    drawn = figure(charts.training_chart, run, False)
    length, accuracy, truncated, entropy = drawn.axes
    cap = next(line for line in length.lines if line.get_linestyle() == "--")
    assert list(cap.get_ydata()) == [row["cap"] for row in run.metrics]
    raw = accuracy.lines[0].get_ydata()
    assert list(raw) == pytest.approx([100 * row["accuracy"] for row in run.metrics])
    assert list(entropy.lines[0].get_ydata()) == pytest.approx([row["entropy"] for row in run.metrics])
    assert max(truncated.lines[0].get_ydata()) <= 100
    shades = [patch.get_extents().transformed(length.transData.inverted()) for patch in length.patches]
    assert [(round(shade.x0), round(shade.x1)) for shade in shades] == [(0, 20), (40, 60), (80, 100)]
    points = [line for line in accuracy.lines if len(line.get_xdata()) == 1]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in points] == [
        (row.step, pytest.approx(100 * row.accuracy)) for row in effects(run.evals)
    ]
    assert length.get_ylim()[0] == 0 and length.get_ylim()[1] > 96


def test_a_shaped_reward_has_a_panel_of_its_own(tmp_path):
    folder = make_run(tmp_path / "run", upto=5)
    rows = [json.loads(line) | {"reward_mean": 0.1} for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    titles = [axes.get_title(loc="left") for axes in figure(charts.training_chart, read_run(folder), False).axes]
    assert titles[2] == "Reward" and len(titles) == 5


def test_draw_leaves_matplotlib_as_it_was(demo):
    import matplotlib

    before = dict(matplotlib.rcParams)
    backend = matplotlib.get_backend(auto_select=False)
    files = style.draw(charts.pareto_chart, read_run(demo))
    assert dict(matplotlib.rcParams) == before and matplotlib.get_backend(auto_select=False) == backend
    assert Image.open(io.BytesIO(files["png"])).format == "PNG"


def test_the_updates_are_drawn_where_there_are_figures(tmp_path):
    from siri.report.update_chart import clipped, update_chart

    folder = make_run(tmp_path / "run", upto=30)
    for narrow in (False, True):
        figure = update_chart(read_run(folder), narrow=narrow)
        assert figure.axes[0].get_title() == "Loss"
        assert len(figure.axes) == 4
    assert clipped({"clip_low_fraction": 0.1, "clip_high_fraction": 0.2}) == pytest.approx(0.3)
    assert clipped({"clip_low_fraction": 0.1}) is None
    run = read_run(folder)
    bare = [{key: row[key] for key in ("step", "phase", "loss")} for row in run.metrics]
    assert len(update_chart(replace(run, metrics=bare)).axes) == 1
    assert update_chart(replace(run, metrics=[{"step": 0}])) is None


@pytest.mark.parametrize("narrow", [False, True])
def test_on_a_phone_nothing_stands_over_a_title(tmp_path, narrow):
    """A first compression that is too short for its name: the words go beside the title where there is room."""
    run = read_run(make_run(tmp_path / "run", steps=200, cycle=10, upto=200))
    axes = charts.training_chart(run, narrow=narrow).axes[0]
    assert bool(axes.get_title(loc="right")) != narrow
