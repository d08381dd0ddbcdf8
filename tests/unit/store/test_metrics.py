import json
import math
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siri.errors import InputError
from siri.store.jsonl import MetricsLog, read_jsonl, read_run

ROW = {"step": 3, "phase": "compression", "cap": 64, "loss": 0.1, "entropy": float("nan"), "zero_variance_groups": 2}
EVAL = {"step": 30, "name": "siri-low-1", "cap": 96, "accuracy": 0.75, "pass_at_k": {"1": 0.75, "8": 0.9}}


@pytest.mark.quiet
def test_imports_are_light():
    """An eighth of what importing torch takes, at most."""
    code = (
        "import sys, time; t = time.process_time();"
        "import siri.store.jsonl, siri.report.terminal, siri.report.html, siri.commands.doctor;"
        "light = time.process_time() - t; heavy = {'torch', 'matplotlib', 'numpy', 'transformers'} & set(sys.modules);"
        "t = time.process_time(); import torch; print(light / (time.process_time() - t), *heavy)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    share, *heavy = min((run.stdout.split() for run in runs), key=lambda words: float(words[0]))
    assert not heavy
    assert float(share) < 0.125


def test_append_writes_one_plain_line_per_row(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", fsync=True)
    log.append(
        {
            "step": np.int64(0),
            "loss": torch.tensor(0.5),
            "lr": 1e-6,
            "nan": math.nan,
            "inf": [math.inf, {"x": -math.inf}],
            "np": np.float32("nan"),
            "float64": np.float64(0.1),
            "flag": np.bool_(True),
            "text": "a\nb é",
            "path": tmp_path,
        }
    )
    log.append({"step": 1})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.count("\n") == 2
    assert "NaN" not in text and "Infinity" not in text
    row = log.rows()[0]
    assert row == {
        "step": 0,
        "loss": 0.5,
        "lr": 1e-6,
        "nan": None,
        "inf": [None, {"x": None}],
        "np": None,
        "float64": 0.1,
        "flag": True,
        "text": "a\nb é",
        "path": str(tmp_path),
    }


@given(st.floats(allow_nan=True, allow_infinity=True))
@settings(max_examples=200, deadline=None)
def test_floats_round_trip_bit_for_bit(tmp_path_factory, value):
    log = MetricsLog(tmp_path_factory.mktemp("m") / "m.jsonl")
    log.append({"step": 0, "x": value})
    back = log.rows()[0]["x"]
    assert (
        back is None
        if not math.isfinite(value)
        else (back == value and math.copysign(1, back) == math.copysign(1, value))
    )


def test_append_refuses_what_json_cannot_hold_and_leaves_the_file_alone(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.append({"step": 0})
    with pytest.raises(TypeError, match="set"):
        log.append({"step": 1, "bad": {1, 2}})
    assert log.rows() == [{"step": 0}]


@pytest.mark.parametrize("tail", ['{"step": 2, "lo', '{"step": 2, "text": "\udcc3', "\0\0\0", '{"step": 2, "lo\n'])
def test_a_torn_last_line_is_ignored_and_mended(tmp_path, tail):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 0}\n{"step": 1}\n' + tail.encode(errors="surrogateescape"))
    assert [row["step"] for row in read_jsonl(path)] == [0, 1]
    MetricsLog(path).append({"step": 2})
    assert path.read_bytes() == b'{"step": 0}\n{"step": 1}\n{"step": 2}\n'


def test_a_whole_last_line_without_newline_is_kept(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}')
    MetricsLog(path).append({"step": 2})
    assert [row["step"] for row in read_jsonl(path)] == [0, 1, 2]


@pytest.mark.parametrize("bad", ['{"step": 1', "[1]", "nonsense", "\x80"])
def test_a_broken_line_in_the_middle_is_named(tmp_path, bad):
    path = tmp_path / "eval.jsonl"
    path.write_bytes(b'{"step": 0}\n\n' + bad.encode("latin-1") + b'\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"eval\.jsonl, line 3: ") as caught:
        read_jsonl(path)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl"):
        read_jsonl(tmp_path / "none.jsonl")
    log = MetricsLog(tmp_path / "none.jsonl")
    assert log.rows() == [] and log.truncate(3) == 0 and not log.path.exists()


def test_truncate_drops_later_steps_and_the_torn_line(tmp_path):
    path = tmp_path / "m.jsonl"
    log = MetricsLog(path)
    for step in range(5):
        log.append({"step": step, "x": 0.1 + step})
    with open(path, "a") as file:
        file.write('{"step": 5, ')
    before = read_jsonl(path)
    assert log.truncate(3) == 2
    assert read_jsonl(path) == before[:3]
    assert path.read_text().endswith("}\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.jsonl"], "a temporary file was left"
    log.append({"step": 3})
    assert [row["step"] for row in log.rows()] == [0, 1, 2, 3]


def test_truncate_by_predicate_for_evaluations(tmp_path):
    log = MetricsLog(tmp_path / "eval.jsonl")
    for step in (0, 30, 60):
        log.append({"step": step})
    assert log.truncate(keep=lambda row: row["step"] <= 30) == 1
    assert [row["step"] for row in log.rows()] == [0, 30]
    with pytest.raises(TypeError):
        log.truncate()


def test_a_kill_while_truncating_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n')

    def killed(source, target):
        assert json.loads(Path(source).read_text()) == {"step": 0}, "the new file must be whole before it is moved"
        raise KeyboardInterrupt

    monkeypatch.setattr("siri.store.jsonl.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricsLog(path).truncate(1)
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.jsonl"]


def test_a_row_that_does_not_fit_is_one_line_and_costs_no_other(tmp_path):
    """A quota stands for a full disk."""
    log = MetricsLog(tmp_path / "m.jsonl", fsync=True)
    log.append({"step": 0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, hard))
    try:
        with pytest.raises(InputError, match=r"m\.jsonl: cannot be written \(File too large\); make room"):
            log.append({"step": 1, "long": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.append({"step": 1})
    assert log.rows() == [{"step": 0}, {"step": 1}]


def test_truncate_with_nothing_to_do_leaves_the_bytes(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step":0,   "x":1e0}\n')
    assert MetricsLog(path).truncate(1) == 0
    assert path.read_text() == '{"step":0,   "x":1e0}\n'


def test_read_run(tmp_path):
    with pytest.raises(InputError, match="no metrics"):
        read_run(tmp_path)
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 0):
        log.append({"step": step})
    run = read_run(tmp_path)
    assert [row["step"] for row in run.metrics] == [0, 1] and run.config == {} and run.evals == []
    MetricsLog(tmp_path / "eval.jsonl").append(EVAL)
    (tmp_path / "config.json").write_text('{"recipe": "demo"}')
    run = read_run(str(tmp_path))
    assert run.config["recipe"] == "demo" and run.evals == [EVAL]
    (tmp_path / "config.json").write_text('{"recipe"')
    with pytest.raises(InputError, match=r"config\.json"):
        read_run(tmp_path)
