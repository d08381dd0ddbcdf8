"""`siri bench`: comparisons that mark what got worse, pictures, and one line for a file that is no result."""

import json

import pytest

from siri.cli import main
from siri.commands.bench import Record, plot, ratio_chart, read_record, regressions
from siri.errors import InputError


def row(op="forward_backward", impl="siri", size="1.5b", **figures):
    base = {"ms": 60.0, "ratio_to_gemm": 1.1, "extra_bytes": 4_000_000_000, "max_error": 1e-6}
    return {"op": op, "impl": impl, "size": size, **base, **figures}


def record(**changes):
    rows = [row(impl="gemms", ratio_to_gemm=1.0), row(), row(impl="eager", ratio_to_gemm=2.0, max_error=None)]
    goal = {"id": "G2.1.5b", "value": 1.1, "threshold": 1.15, "better": "lower", "met": True}
    unknown = {"id": "G3.cce.1.5b", "value": None, "threshold": 2.0, "better": "higher", "met": None}
    base = {"device": "some-gpu", "versions": {"torch": "2.13.0"}, "commit": "0123456789", "rows": rows}
    return {**base, "goals": [goal, unknown], **changes}


@pytest.fixture
def save(tmp_path):
    def write(name, content) -> str:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def compared(capsys, monkeypatch, a, b) -> str:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["bench", "--compare", a, b]) == 0
    return capsys.readouterr().out


def line_of(text: str, *parts: str) -> str:
    (line,) = [line for line in text.splitlines() if all(part in line for part in parts)]
    return line


def test_the_same_result_twice_has_no_regression(save, capsys, monkeypatch):
    a = save("a.json", record())
    text = compared(capsys, monkeypatch, a, a)
    assert "0 regressions in 3 rows" in text and "goals met: 1 of 1 measured in A, 1 of 1 in B" in text
    assert "Different devices" not in text and "G3.cce" not in text
    assert text.count("some-gpu, torch 2.13.0, commit 01234567") == 2


@pytest.mark.parametrize(
    ("figures", "worse"),
    [
        ({"ratio_to_gemm": 1.16}, {"ratio_to_gemm"}),
        ({"ratio_to_gemm": 1.15}, set()),
        ({"ratio_to_gemm": 0.9, "ms": 600.0}, set()),  # a slower clock is no slower kernel
        ({"extra_bytes": 4_300_000_000}, {"extra_bytes"}),
        ({"max_error": 1e-4}, {"max_error"}),
        ({"max_error": None}, set()),
    ],
)
def test_what_counts_as_a_regression(figures, worse, save, capsys, monkeypatch):
    assert regressions(row(), row(**figures)) == worse
    changed = record(rows=[row(impl="gemms", ratio_to_gemm=1.0), row(**figures)])
    text = compared(capsys, monkeypatch, save("a.json", record()), save("b.json", changed))
    assert ("regression" in line_of(text, " siri ")) == bool(worse)
    assert "only in A" in line_of(text, "eager")
    assert f"{len(worse)} regression{'s' * (not worse)} in 2 rows" in text


def test_goals_that_are_lost_and_devices_that_differ(save, capsys, monkeypatch):
    goal = {"id": "G2.1.5b", "value": 1.3, "threshold": 1.15, "better": "lower", "met": False}
    other = record(device="other-gpu", goals=[goal])
    text = compared(capsys, monkeypatch, save("a.json", record()), save("b.json", other))
    assert "Different devices" in text
    line = line_of(text, "G2.1.5b")
    assert "1.1 met" in line and "1.3 missed" in line and "lost" in line and "\N{LESS-THAN OR EQUAL TO} 1.15" in line


WRONG = {
    "missing": (None, "cannot be read"),
    "not JSON": ('{"device": ', "is damaged"),
    "NaN": (json.dumps(record(rows=[row(ms=float("nan"))])), "NaN is no number of JSON"),
    "another file": ([1, 2], "names no device"),
    "no rows": ({k: v for k, v in record().items() if k != "rows"}, "rows is not a list"),
    "a row without impl": (record(rows=[{"op": "forward"}]), "row 0 has no impl"),
    "a text for a number": (record(rows=[row(), row(ms="fast")]), "row 1 has 'fast' for ms"),
    "a goal that is neither": (record(goals=[{"id": "G", "better": "more", "met": None}]), "goal 0"),
    "no picture": (record(rows=[]), "no ratios to draw"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_gets_one_line(case, save, tmp_path, capsys):
    content, said = WRONG[case]
    path = str(tmp_path / "wrong.json") if content is None else save("wrong.json", content)
    commands = [["bench", "--plot", path]]
    if case != "no picture":
        commands.append(["bench", "--compare", save("good.json", record()), path])
    for command in commands:
        assert main(command) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        assert captured.err.startswith("siri: ") and "wrong.json" in captured.err and said in captured.err
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--compare", "a.json"], "takes two results, got 1"),
        (["--compare", "a", "b", "--plot", "c"], "exclude each other"),
        (["--out", "x.png"], "out goes with plot"),
        (["--plot", "a.json", "--out", "x.pdf"], "has to end in .png"),
        (["--compre", "a", "b"], "did you mean --compare?"),
    ],
)
def test_wrong_options(arguments, said, capsys):
    assert main(["bench", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_without_options_it_says_where_the_benchmarks_are(capsys):
    assert main(["bench"]) == 0
    text = capsys.readouterr().out
    assert "make bench" in text and "bench/gpu.sh kernels" in text and "--compare" in text and "--plot" in text


def test_the_bars_are_the_ratios(save, tmp_path):
    source = read_record(save("a.json", record()))
    assert isinstance(source, Record)
    (axes,) = ratio_chart(source).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["eager", "siri"]  # the fastest on top
    assert [bar.get_width() for bar in axes.patches] == [2.0, 1.1]
    assert {text.get_text() for text in axes.texts} == {"2.00", "1.10"}
    path = plot(save("a.json", record()), tmp_path / "out.png")
    assert path.read_bytes().startswith(b"\x89PNG") and path == tmp_path / "out.png"
    with pytest.raises(InputError, match="cannot be written"):
        plot(save("a.json", record()), tmp_path / "nowhere" / "out.png")
