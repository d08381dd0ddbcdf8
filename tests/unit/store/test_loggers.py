import json
import sys
import types

import pytest

from siri.errors import InputError
from siri.store.loggers import LOGGERS, make_logger

ROW = {"step": 3, "phase": "compression", "cap": 64, "loss": 0.1, "entropy": float("nan"), "zero_variance_groups": 2}
EVAL = {"step": 30, "name": "siri-low-1", "cap": 96, "accuracy": 0.75, "pass_at_k": {"1": 0.75, "8": 0.9}}


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
