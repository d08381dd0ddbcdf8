import json
import math
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siri.errors import InputError
from siri.metrics import LOGGERS, MetricsLog, make_logger, read_jsonl, read_run

ROW = {"step": 3, "phase": "compression", "cap": 64, "loss": 0.1, "entropy": float("nan"), "zero_variance_groups": 2}
EVAL = {"step": 30, "name": "siri-low-1", "cap": 96, "accuracy": 0.75, "pass_at_k": {"1": 0.75, "8": 0.9}}


def test_imports_are_light():
    code = (
        "import sys, time; t = time.process_time(); import siri.metrics, siri.progress, siri.report, siri.doctor;"
        "print(time.process_time() - t, *{'torch', 'matplotlib', 'numpy', 'transformers'} & set(sys.modules))"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    seconds, *heavy = min((run.stdout.split() for run in runs), key=lambda words: float(words[0]))
    assert not heavy
    assert float(seconds) < 0.2


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

    monkeypatch.setattr("siri.metrics.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricsLog(path).truncate(1)
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.jsonl"]


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


# --- loggers ---


def test_none_and_unknown(tmp_path):
    logger = make_logger("none", tmp_path, {})
    logger.log(ROW, 3)
    logger.close()
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="tensorboard, wandb, trackio"):
        make_logger("tensorbord", tmp_path, {})


@pytest.mark.parametrize("kind", LOGGERS[1:])
def test_missing_package_says_how_to_install_from_the_checkout(tmp_path, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, {"tensorboard": "torch.utils.tensorboard"}.get(kind, kind), None)
    with pytest.raises(InputError, match=rf"{kind} needs .*pip install -e \./kernels -e '\.\[loggers\]'") as caught:
        make_logger(kind, tmp_path, {})
    assert "pip install siri" not in str(caught.value)


def test_tensorboard_writes_what_it_reads_back_and_purges_on_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def run(steps, eval_steps, loss):
        logger = make_logger("tensorboard", tmp_path, {"recipe": "demo", "lr": 1e-4})
        for step in steps:
            logger.log({**ROW, "step": step, "loss": loss}, step)
            if step + 1 in eval_steps:
                logger.log({**EVAL, "step": step + 1, "accuracy": loss}, step + 1)
        logger.close()

    def read(section):
        events = EventAccumulator(str(tmp_path / "tensorboard" / section))
        events.Reload()
        return events

    run(range(6), (2, 4), loss=0.5)
    run(range(4, 8), (6,), loss=0.25)  # resumed after four completed steps
    train, evals = read("train"), read("eval")
    assert [(e.step, e.value) for e in train.Scalars("loss")] == [(s, 0.5 if s < 4 else 0.25) for s in range(8)]
    assert [(e.step, e.value) for e in evals.Scalars("accuracy")] == [(2, 0.5), (4, 0.5), (6, 0.25)]
    assert {"cap", "expansion", "zero_variance_groups"} <= set(train.Tags()["scalars"])
    assert "entropy" not in train.Tags()["scalars"], "a null was logged as a number"
    assert {"accuracy", "pass_at_k/1", "pass_at_k/8"} <= set(evals.Tags()["scalars"])
    assert b"demo" in train.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


class FakeWandb(types.ModuleType):
    """wandb 0.31: init(...) -> Run with define_metric(name, step_metric=), log(data, step=, commit=), finish()."""

    class Error(Exception):
        pass

    class Run:
        def __init__(self):
            self.logged, self.defined, self.finished = [], [], False

        def define_metric(self, name, step_metric=None):
            self.defined.append((name, step_metric))

        def log(self, data, step=None, commit=None):
            self.logged.append((data, step))

        def finish(self, exit_code=None):
            self.finished = True

    def __init__(self, error=None):
        super().__init__("wandb")
        self.error, self.runs, self.calls = error, [], []

    def init(self, entity=None, project=None, dir=None, id=None, name=None, config=None, resume=None):
        if self.error:
            raise self.Error(self.error)
        self.calls.append({"project": project, "dir": dir, "id": id, "name": name, "config": config, "resume": resume})
        self.runs.append(self.Run())
        return self.runs[-1]


def test_wandb(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.delenv("WANDB_NAME", raising=False)
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        logger = make_logger("wandb", tmp_path, {"recipe": "demo", "data": tmp_path})
        logger.log(ROW, 3)
        logger.log(EVAL, 30)
        logger.close()
    first, again = fake.calls
    assert first == again, "a resumed run must continue under the same id"
    assert first["resume"] == "allow" and first["id"] and first["project"] == "siri" and first["name"] == tmp_path.name
    assert json.dumps(first["config"])
    assert ("*", "step") in fake.runs[0].defined
    train, evaluation = fake.runs[0].logged
    assert train == (
        {"train/cap": 64, "train/loss": 0.1, "train/zero_variance_groups": 2, "train/expansion": 0, "step": 3},
        None,
    )
    assert evaluation[0]["eval/pass_at_k/8"] == 0.9 and evaluation[0]["step"] == 30
    assert fake.runs[0].finished
    make_logger("wandb", tmp_path / "other", {})
    assert fake.calls[-1]["id"] != first["id"]


def test_wandb_without_a_key_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb("No API key configured.\nUse `wandb login` to log in."))
    with pytest.raises(InputError, match=r"wandb login.*WANDB_MODE=offline") as caught:
        make_logger("wandb", tmp_path / "runs" / "demo", {})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs" / "demo").exists(), "a half-written run folder was left"
    with pytest.raises(InputError):
        make_logger("wandb", tmp_path, {})
    assert tmp_path.exists(), "an existing folder must stay"


class FakeTrackio(types.ModuleType):
    """trackio 0.43: init(project, name=, config=, resume=, embed=) -> Run with log(metrics, step=) and finish()."""

    class Run:
        def __init__(self):
            self.logged, self.finished = [], False

        def log(self, metrics, step=None):
            self.logged.append((metrics, step))

        def finish(self):
            self.finished = True

    def __init__(self):
        super().__init__("trackio")
        self.runs, self.calls = [], []

    def init(self, project, name=None, group=None, config=None, resume="never", embed=True):
        self.calls.append((project, name, resume, embed))
        self.runs.append(self.Run())
        return self.runs[-1]


def test_trackio(tmp_path, monkeypatch):
    monkeypatch.delenv("TRACKIO_PROJECT", raising=False)
    fake = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    for _ in range(2):
        logger = make_logger("trackio", tmp_path, {"recipe": "demo"})
        logger.log(ROW, 3)
        logger.close()
    assert fake.calls[0] == fake.calls[1]
    project, name, resume, embed = fake.calls[0]
    assert (project, resume, embed) == ("siri", "allow", False) and name.startswith(tmp_path.name)
    assert fake.runs[0].logged == [
        ({"train/cap": 64, "train/loss": 0.1, "train/zero_variance_groups": 2, "train/expansion": 0}, 3)
    ]
    assert fake.runs[0].finished
