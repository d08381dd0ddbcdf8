"""The report of a run: one page that needs no network, with what the run has, whatever it lacks."""

import base64
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from PIL import Image

from siri.cli import main
from siri.errors import InputError
from siri.report import charts, style
from siri.report.effects import effect_cells, effects
from siri.report.html import write_report
from siri.store.jsonl import MetricsLog, read_run
from tests.support.pages import PICTURES, Page, figure, read
from tests.support.synthetic_run import make_run

BENCHMARKS = (("aime24", 0.0), ("math500", 0.1))


def test_page_needs_no_network(page):
    assert len(page.links) == 12, "six pictures, each wide and narrow"
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
        assert set(re.findall(r"var\(--(\w+)\)", drawing)) <= set(style.DARK)
    assert "color-scheme:light dark" in (demo / "report.html").read_text()


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
    for name, ratio in (
        ("training", 0.9),
        ("pareto", 0.56),
        ("front", 0.56),
        ("updates", 0.67),
        ("time", 0.6),
        ("packing", 0.48),
    ):
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
    assert len(page.links) == 12 and "<img src=x" not in (folder / "report.html").read_text()
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
    assert len(page.links) == 6 and not page.cells and "No evaluation yet." in page.text


def test_constant_schedule_has_no_milestones(tmp_path):
    folder = make_run(tmp_path / "run", recipe="fixed-high", schedule="constant", eval_every=30)
    page = read(folder)
    assert "constant cap of 96 tokens" in page.text and "Shaded" not in page.text and "cycle k" not in page.text
    assert [cells[0] for cells in page.cells[:3]] == ["checkpoint", "base", "final"]
    assert "All 5 evaluations" in page.text
    assert len(page.links) == 10


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


def test_another_run_stands_beside_it(tmp_path, capsys):
    """Its curves dotted over the same steps, and its evaluations in a table of their own; nothing is written there."""
    folder, other = make_run(tmp_path / "run", upto=20), make_run(tmp_path / "<other>", upto=30, seed=1)
    before = sorted(other.iterdir())
    assert main(["report", str(folder), "--beside", str(other)]) == 0
    page = Page((folder / "report.html").read_text())
    assert "Beside it: <other>" in page.text and "Dotted: <other>, over the same steps." in page.text
    assert sum(cells[0] == "base" for cells in page.cells) == 2 and sorted(other.iterdir()) == before
    alone = read_run(folder)
    both = replace(alone, beside=("other", read_run(other)))
    charts_of = [style.draw(charts.training_chart, run)["png"] for run in (alone, both)]
    assert charts_of[0] != charts_of[1]
    capsys.readouterr()
    for arguments, line in (
        (["--beside", str(tmp_path / "none")], "is not a run folder"),
        (["--beside", str(other), "--live"], "--beside is for the report that is drawn"),
    ):
        assert main(["report", str(folder), *arguments]) == 2
        error = capsys.readouterr().err
        assert line in error and error.count("\n") == 1


def test_where_a_run_was_made_is_told(tmp_path):
    folder = make_run(tmp_path / "run", upto=2)
    config = json.loads((folder / "config.json").read_text())
    made = {"commit": "1234abc-dirty", "host": "node<7>", "time": "2026-11-26 12:00:00+00:00"}
    (folder / "config.json").write_text(json.dumps(config | {"made": made}))
    page = read(folder)
    assert "Where it ran" in page.text and all(value in page.text for value in made.values())
    (folder / "config.json").write_text(json.dumps(config | {"made": "a text"}))
    assert "Where it ran" not in read(folder).text
