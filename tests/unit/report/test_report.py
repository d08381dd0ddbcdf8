import base64
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import combinations

import pytest
from PIL import Image

from siri.errors import InputError
from siri.report import charts
from siri.report.effects import effect_cells, effects
from siri.report.html import write_report
from siri.store.jsonl import MetricsLog, read_run
from tests.support.synthetic_run import LARGE, make_run

PICTURES = ("report.html", "training.png", "pareto.png", "time.png", "packing.png")
BENCHMARKS = (("aime24", 0.0), ("math500", 0.1))


class Page(HTMLParser):
    """Checks that tags are closed, and gathers what the tests ask for."""

    VOID = ("meta", "img", "source", "link", "br", "hr")

    def __init__(self, text):
        super().__init__()
        self.open, self.cells, self.links, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.links += [value for key, value in attributes if key in ("src", "href", "srcset", "action")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data


def read(folder):
    path = write_report(folder)
    assert path == folder / "report.html"
    names = {entry.name for entry in folder.iterdir()}
    logs = {"config.json", "metrics.jsonl", "eval.jsonl", "plans.jsonl"}
    assert names <= logs | {"report.html", "training.png", "pareto.png", "time.png", "packing.png"}
    return Page(path.read_text())


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def page(demo):
    return read(demo)


def test_page_needs_no_network(page):
    assert len(page.links) == 8, "four pictures, each wide and narrow"
    assert all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    for link in page.links:
        tree = ElementTree.fromstring(base64.b64decode(link.split(",")[1]))
        references = [v for node in tree.iter() for k, v in node.attrib.items() if k.endswith("href")]
        assert references and all(reference.startswith("#") for reference in references)


def test_pictures_follow_light_and_dark(demo, page):
    for link in page.links:
        svg = base64.b64decode(link.split(",")[1]).decode()
        assert "prefers-color-scheme:dark" in svg
        drawing = svg.split("</style>", 1)[1]
        colours = set(re.findall(r"#[0-9a-f]{6}\b", drawing))
        assert not colours, f"{colours} would not change in the dark"
        assert set(re.findall(r"var\(--(\w+)\)", drawing)) <= set(charts.DARK)
    assert "color-scheme:light dark" in (demo / "report.html").read_text()


def contrast(one, other):
    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [charts.LIGHT, charts.DARK], ids=["light", "dark"])
def test_text_colours_are_readable(theme):
    assert contrast(theme["ink"], theme["paper"]) > 12
    assert contrast(theme["muted"], theme["paper"]) >= 4.5
    for name in ("low", "high"):
        assert contrast(theme[name], theme["paper"]) >= 3.5, name
    assert contrast(theme["low"], theme["shade"]) >= 3.5


def test_table_is_the_closing_table(demo, page):
    rows = effects(read_run(demo).evals)
    assert len(rows) == 7
    shown = page.cells[: [cells[0] for cells in page.cells].index("phase")]  # the table of phases comes next
    assert [cells for cells in shown if cells[0] != "checkpoint"] == [list(effect_cells(row)) for row in rows]


def test_page_states_the_run(page):
    for text in (
        "cosine cap between 96 and 20 tokens, cycle of 40 steps",
        "120 steps",
        "siri-low-3",
        "prompts_per_step",
    ):
        assert text in page.text
    assert "Change against the base model, evaluated at cap 96." in page.text
    assert re.search(r"lr\s*0\.0001", page.text)
    assert "rollout 70.0%, training 30.0%" in page.text
    assert "median error 12.5%" in page.text, "0.27 predicted, 0.24 measured"
    assert re.search(r"token budget\s*90.0%", page.text)


def test_pngs(demo, page):
    for name, ratio in (("training", 0.9), ("pareto", 0.56), ("time", 0.6), ("packing", 0.48)):
        with Image.open(demo / f"{name}.png") as image:
            assert image.width >= 1600 and image.height / image.width == pytest.approx(ratio, abs=0.06)
            assert len(image.convert("RGB").getcolors(1 << 24)) > 50


def test_same_run_same_bytes(demo, page):
    before = {name: (demo / name).read_bytes() for name in PICTURES}
    write_report(demo)
    assert before == {name: (demo / name).read_bytes() for name in before}


def test_text_of_the_run_cannot_break_the_page(tmp_path):
    folder = make_run(tmp_path / "run", recipe="<script>alert(1)</script> & co", upto=2)
    evals = MetricsLog(folder / "eval.jsonl")
    evals.append({"step": 2, "name": "<b>final</b>", "cap": 96, "accuracy": 0.5, "tokens_mean": 30.0})
    page = read(folder)
    html = (folder / "report.html").read_text()
    assert "<script" not in html and "<b>final" not in html
    assert "<script>alert(1)</script> & co" in page.text


def test_names_of_all_kinds_are_text_and_no_markup(tmp_path):
    folder = make_run(tmp_path / "run")
    hostile = "\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}</pre>&amp;"
    config = json.loads((folder / "config.json").read_text())
    config |= {"model": hostile, "data": hostile, "reward": hostile, hostile: hostile, "versions": {hostile: hostile}}
    (folder / "config.json").write_text(json.dumps(config))
    evals = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    for row in evals:
        row["benchmarks"] = {hostile: {"accuracy": 0.5, "tokens_mean": 3.0}}
    evals.append(evals[-1] | {"step": 119, "name": hostile})
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evals))
    page = read(folder)
    assert len(page.links) == 8 and "<img src=x" not in (folder / "report.html").read_text()
    assert page.text.count(hostile) >= 6 and any(cells[0] == hostile for cells in page.cells)


def test_not_a_run_folder(tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        write_report(tmp_path)
    with pytest.raises(InputError, match="not a run folder"):
        write_report(tmp_path / "missing")
    assert not list(tmp_path.iterdir())


def test_no_step_yet(tmp_path):
    folder = make_run(tmp_path / "run", upto=0)
    (folder / "metrics.jsonl").touch()
    page = read(folder)
    assert "No training step is finished yet." in page.text and "0 of 120 steps" in page.text
    assert page.cells[1][0] == "base"
    assert not (folder / "training.png").exists() and not page.links


def test_one_step(tmp_path):
    folder = make_run(tmp_path / "run", upto=1)
    page = read(folder)
    assert (folder / "training.png").exists() and not (folder / "pareto.png").exists()
    assert "No evaluation after training yet." in page.text


def test_no_evaluations(tmp_path):
    page = read(make_run(tmp_path / "run", upto=14, base=False))
    assert len(page.links) == 4 and not page.cells and "No evaluation yet." in page.text


def test_constant_schedule_has_no_milestones(tmp_path):
    folder = make_run(tmp_path / "run", recipe="fixed-high", schedule="constant", eval_every=30)
    page = read(folder)
    assert "constant cap of 96 tokens" in page.text and "Shaded" not in page.text and "cycle k" not in page.text
    assert [cells[0] for cells in page.cells[:3]] == ["checkpoint", "base", "final"]
    assert "All 5 evaluations" in page.text
    assert len(page.links) == 8


def test_without_base(tmp_path):
    page = read(make_run(tmp_path / "run", base=False))
    assert "No base evaluation to compare with." in page.text and "98.8%" in page.text


def test_each_benchmark_is_shown(tmp_path):
    folder = make_run(tmp_path / "run")
    evals = []
    for row in read_run(folder).evals:
        parts = {f"data/{name}.json": {"accuracy": row["accuracy"] - d, "tokens_mean": 100.0} for name, d in BENCHMARKS}
        evals.append(row | {"benchmarks": parts})
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evals))
    cells = read(folder).cells
    assert cells[8] == ["accuracy / tokens", "aime24", "math500"]
    assert cells[9] == ["base", "51.0% / 100.0", "41.0% / 100.0"] and cells[15][0] == "siri-high-3"


def test_without_config(tmp_path):
    folder = make_run(tmp_path / "nameless")
    (folder / "config.json").unlink()
    page = read(folder)
    assert "nameless" in page.text and "Configuration" not in page.text


def test_nulls_everywhere(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    metrics, evals = MetricsLog(folder / "metrics.jsonl"), MetricsLog(folder / "eval.jsonl")
    blank = {"phase": "compression", "cap": 20, "response_tokens_mean": None, "accuracy": None, "entropy": math.nan}
    for step in range(6):
        metrics.append({"step": step, **blank})
    for step, name in ((0, "base"), (3, "siri-low-1"), (6, "siri-high-1")):
        evals.append({"step": step, "name": name, "cap": 20, "accuracy": None, "tokens_mean": None})
    page = read(folder)
    assert len(page.links) == 2
    assert page.cells[2] == ["siri-low-1", "3", "-", "-", "-", "-", "-", "-", "-"]
    metrics.append({"step": 6, **blank, "response_tokens_mean": 9.0, "accuracy": 0.0, "entropy": 0.0})
    metrics.append({"step": 7, **blank, "accuracy": 0.0})
    page = read(folder)
    assert not re.search(r"\bnan\b", page.text, re.IGNORECASE)
    length = figure(charts.training_chart, read_run(folder), False).axes[0]
    mean = next(line for line in length.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 8)
    assert [step for step, y in enumerate(mean.get_ydata()) if not math.isnan(y)] == [6], "a gap must stay a gap"


def test_smoothing_skips_gaps_and_keeps_constants():
    values, window = charts.smoothed([2.0] * 400)
    assert values == [2.0] * 400 and window == 11
    values, window = charts.smoothed([1.0, math.nan, 3.0])
    assert window == 1 and values[0] == 1.0 and math.isnan(values[1])
    ramp, window = charts.smoothed([float(i) for i in range(160)])
    assert window == 5 and ramp[10:150] == [float(i) for i in range(10, 150)]


# --- the pictures themselves ---


def figure(chart, run, narrow):
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context(charts.rc_style()):
        drawn = chart(run, narrow=narrow)
        FigureCanvasAgg(drawn).draw()
    return drawn


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
        monkeypatch.setattr(charts, "FONTS", (font,))
    run = read_run(make_run(tmp_path / "run", **options))
    drawn = figure(charts.pareto_chart, run, narrow)
    axes = drawn.axes[0]
    labels = boxes(axes)
    names = {text.split("\n")[0] for text in labels}
    cycles = round(run.config["steps"] / run.config["cycle"])
    assert {"base", f"low {cycles}", f"high {cycles}"} <= names, "the checkpoints that people take away must be named"
    if cycles == 3 and not narrow:
        assert len(names) == 7, f"only {names} are named"
    for (one, a), (other, b) in combinations(labels.items(), 2):
        assert shared(a, b) == 0, f"{one!r} covers {other!r}"
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
        monkeypatch.setattr(charts, "FONTS", (font,))
    drawn = figure(charts.training_chart, read_run(make_run(tmp_path / "run", **options)), narrow)
    for axes in drawn.axes:
        for (one, a), (other, b) in combinations(boxes(axes).items(), 2):
            assert shared(a, b) == 0, f"{one!r} covers {other!r}"
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
    files = charts.draw(charts.pareto_chart, read_run(demo))
    assert dict(matplotlib.rcParams) == before and matplotlib.get_backend(auto_select=False) == backend
    assert Image.open(io.BytesIO(files["png"])).format == "PNG"
