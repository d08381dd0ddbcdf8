import json
import sys
import types

import pytest

from siri.cli import main
from siri.config import Config
from siri.errors import InputError
from siri.store.held import differences
from siri.store.loggers import LOGGERS, LONGEST, TABLE, Logger, make_logger, table_rows
from siri.store.responses import Response
from siri.train.mirror import Mirror, spread
from tests.support.training import train

ROW = {"step": 3, "phase": "compression", "cap": 64, "loss": 0.1, "entropy": float("nan"), "zero_variance_groups": 2}
EVAL = {"step": 30, "name": "siri-low-1", "cap": 96, "accuracy": 0.75, "pass_at_k": {"1": 0.75, "8": 0.9}}


def test_none_and_unknown(tmp_path):
    logger = make_logger("none", tmp_path, {})
    logger.log(ROW, 3)
    logger.close()
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="tensorboard, wandb, mlflow, trackio"):
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


# --- several at once, and tables of responses ---


def response(number=0, text="it is 7", **more):
    usual = {"prompt": f"what is {number}?", "gold": "7", "extracted": "7", "score": 1.0, "reward": 1.0}
    usual |= {"tokens": 5, "truncated": False, "logp_mean": -0.25, "weights": 3}
    return Response(prompt_number=number, text=text, **{**usual, **more})


def test_cells_of_a_table_are_short_and_can_be_sent():
    (row,) = table_rows([response(2, "a" * 10_000 + "\ud800", extracted=None)])
    assert row[:6] == [2, 1.0, 5, False, "7", None] and len(row) == len(TABLE)
    assert len(row[-1]) < LONGEST + 20 and row[-1].endswith("\\ud800") and json.dumps(row).encode()


def test_wandb_and_trackio_get_tables(tmp_path, monkeypatch):
    wandb, trackio = FakeWandb(), FakeTrackio()
    wandb.Table = lambda columns, data: ("table", columns, data)
    trackio.Table = lambda data: ("table", data)
    for name, fake in (("wandb", wandb), ("trackio", trackio)):
        monkeypatch.setitem(sys.modules, name, fake)
        make_logger(name, tmp_path, {}).table("siri-low-1", [response(4)], 19)
    ((data, _),) = wandb.runs[0].logged
    assert data["step"] == 19 and data["responses/siri-low-1"][1] == list(TABLE)
    assert data["responses/siri-low-1"][2][0][0] == 4
    ((data, step),) = trackio.runs[0].logged
    assert step == 19 and data["responses/siri-low-1"][1][0]["text"] == "it is 7"


def test_tensorboard_shows_responses_word_for_word(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = make_logger("tensorboard", tmp_path, {})
    logger.table("siri-low-1", [response(4, "# no heading\n```\n<script>")], 19)
    logger.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "responses"))
    events.Reload()
    (tensor,) = events.Tensors("siri-low-1/text_summary")
    text = tensor.tensor_proto.string_val[0].decode()
    assert "#### prompt_number 4, score 1.0" in text and "    # no heading\n    ```\n    <script>" in text


class FakeMlflow(types.ModuleType):
    """mlflow 3.18: MlflowClient(tracking_uri=) with the methods below; entities.Metric(key, value, timestamp, step)."""

    def __init__(self):
        super().__init__("mlflow")
        self.clients, self.known = [], []
        self.entities = types.SimpleNamespace(Metric=lambda *fields: fields)
        self.exceptions = types.ModuleType("mlflow.exceptions")
        self.exceptions.MlflowException = type("MlflowException", (Exception,), {})
        self.fault = None

    def MlflowClient(self, tracking_uri):
        if self.fault:
            raise self.exceptions.MlflowException(self.fault)
        client = FakeMlflowClient(self, tracking_uri)
        self.clients.append(client)
        return client


class FakeMlflowClient:
    def __init__(self, module, uri):
        self.module, self.uri, self.metrics, self.tables, self.ended = module, uri, [], [], False

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name, artifact_location=None):
        self.experiment, self.place = name, artifact_location
        return "1"

    def search_runs(self, experiments, filter_string):
        return [run for tag, run in self.module.known if tag in filter_string]

    def create_run(self, experiment, tags, run_name):
        run = types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"run-{len(self.module.known)}"))
        self.module.known.append((tags["siri_run"], run))
        return run

    def log_dict(self, run, data, path):
        assert json.dumps(data) and path == "config.json"

    def log_batch(self, run, metrics):
        self.metrics += metrics

    def log_table(self, run, data, artifact_file):
        self.tables.append((data, artifact_file))

    def set_terminated(self, run):
        self.ended = True


@pytest.fixture
def mlflow(monkeypatch):
    fake = FakeMlflow()
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", fake.exceptions)
    return fake


def test_mlflow(tmp_path, mlflow):
    for _ in range(2):
        logger = make_logger("mlflow", tmp_path, {"recipe": "demo"})
        logger.log(ROW, 3)
        logger.log({**EVAL, "odd name: %": 1}, 30)
        logger.table("a b%.jsonl", [response(4), response(5)], 30)
        logger.close()
    assert len(mlflow.known) == 1, "a resumed run goes on with its run"
    client = mlflow.clients[0]
    assert client.uri == f"sqlite:///{tmp_path}/mlflow.db" and client.place == (tmp_path / "mlflow").as_uri()
    assert client.experiment == "siri" and client.ended
    named = {name: (value, step) for name, value, _, step in client.metrics}
    assert named["train/loss"] == (0.1, 3) and named["eval/pass_at_k/8"] == (0.9, 30)
    assert named["eval/odd name_ _"] == (1, 30)
    ((data, path),) = client.tables
    assert path == "responses/a b_.jsonl.json" and data["prompt_number"] == [4, 5]


def test_an_mlflow_server_that_does_not_answer_is_one_line(tmp_path, mlflow):
    mlflow.fault = "API request failed\nafter 5 tries"
    with pytest.raises(InputError, match=r"^--logger mlflow: API request failed after 5 tries; see MLFLOW_TRACKING"):
        make_logger("mlflow", tmp_path, {})


class Recorder(Logger):
    def __init__(self, fails=False):
        self.seen, self.fails = [], fails

    def log(self, row, step):
        if self.fails:
            raise ConnectionError("away")
        self.seen.append(step)

    def table(self, name, responses, step):
        self.seen.append((name, len(responses)))

    def close(self):
        self.seen.append("closed")


def test_several_at_once_and_the_failure_of_one_is_not_that_of_the_others(tmp_path, monkeypatch):
    made = {"tensorboard": Recorder(), "wandb": Recorder(fails=True), "trackio": Recorder()}
    monkeypatch.setattr("siri.train.mirror.make_logger", lambda kind, *_: made[kind])
    notes = []
    mirror = Mirror(tuple(made), tmp_path, Config(), notes.append)
    mirror.start()
    mirror.log({}, 1)
    mirror.table("base", [response(number) for number in range(100)], 0)
    mirror.close()
    assert made["tensorboard"].seen == made["trackio"].seen == [1, ("base", 32), "closed"]
    assert made["wandb"].seen == [] and notes == ["warning: --logger wandb failed (away); the run goes on without it"]
    assert [response_shown.prompt_number for response_shown in spread([response(n) for n in range(3)])] == [0, 1, 2]


def test_when_one_cannot_be_had_the_others_are_closed(tmp_path, monkeypatch):
    first = Recorder()

    def make(kind, *_):
        if kind == "wandb":
            raise InputError("--logger wandb: no key")
        return first

    monkeypatch.setattr("siri.train.mirror.make_logger", make)
    with pytest.raises(InputError, match="no key"):
        Mirror(("tensorboard", "wandb"), tmp_path, Config(), print).start()
    assert first.seen == ["closed"]


@pytest.mark.parametrize(
    ("kinds", "line"),
    [(("wandb", "wandb"), "logger names wandb twice"), (("none", "wandb"), "logger is none and others")],
)
def test_loggers_that_make_no_sense_together(kinds, line):
    with pytest.raises(InputError, match=line):
        Config(logger=kinds)


def test_a_run_mirrors_its_rows_and_some_responses_in_all_of_them(tmp_path, monkeypatch):
    made = {"wandb": Recorder(), "trackio": Recorder()}
    monkeypatch.setattr("siri.train.mirror.make_logger", lambda kind, *_: made[kind])
    train(tmp_path / "run", "--steps", "2", "--logger", "wandb", "trackio", "--quiet")
    assert made["wandb"].seen == made["trackio"].seen
    assert made["wandb"].seen == [
        *(("heldout.jsonl-after-0", 16), 0, 0, 1, ("siri-low-1", 32), ("heldout.jsonl-after-2", 16), 2, "closed")
    ]
    held = json.loads((tmp_path / "run" / "config.json").read_text())
    assert held["logger"] == ["wandb", "trackio"]
    assert differences(tmp_path / "run" / "config.json", Config())[1]["logger"] == ["wandb", "trackio"]
    (tmp_path / "run" / "config.json").write_text(json.dumps({**held, "logger": "none"}))
    assert "logger" not in differences(tmp_path / "run" / "config.json", Config())[0], "as an older version wrote it"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--logger", "wandbb"], "wandbb"),
        (["--logger", "wandb", "wandb"], "logger names wandb twice; name each once"),
        (["--logger", "none", "tensorboard"], "leave none out, or the others"),
        (["--keep-responses", "-1"], "keep_responses is -1; it must be 0 or more"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_writes_nothing(tmp_path, capsys, arguments, line):
    assert main(["train", "demo", *arguments, "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1 and not (tmp_path / "run").exists()
