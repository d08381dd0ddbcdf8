"""`siri report` and `siri compare` of run folders from anywhere: a page, or one line that names the file."""

import json
import os
from pathlib import Path

import pytest

from siri.errors import InputError
from siri.report.html import write_report
from siri.store.jsonl import read_run
from siri.store.schema import EVALS, METRICS
from siri.study.compare import curves_of_runs
from tests.support.synthetic_run import make_run

NASTY = ["x", [], {}, True, 10**400, -(10**18), 1e300, [[1]], {"a": 1}]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, str]:
    """The files of a small run."""
    folder = make_run(tmp_path_factory.mktemp("good") / "run", steps=4, cycle=4, eval_every=1)
    return {path.name: path.read_text() for path in folder.iterdir()}


def written(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def changed(text: str, **values) -> str:
    rows = [json.loads(line) for line in text.splitlines()]
    rows[0] |= values
    return "".join(json.dumps(row) + "\n" for row in rows)


def refused(folder: Path, name: str) -> None:
    for look in (read_run, lambda path: curves_of_runs([path])):
        with pytest.raises(InputError, match=name.replace(".", r"\.")) as caught:
            look(folder)
        assert "\n" not in str(caught.value)


def test_every_figure_that_is_drawn_is_a_number(tmp_path, good):
    cases = [("metrics.jsonl", key) for key in sorted(METRICS | {"step", "step_time_s", "micro_steps_predicted_s"})]
    cases += [("eval.jsonl", key) for key in sorted(EVALS | {"step"})]
    cases += [("metrics.jsonl", "phase"), ("eval.jsonl", "name"), ("eval.jsonl", "benchmarks")]
    for number, (name, key) in enumerate(cases):
        for value in NASTY:
            if (key in ("phase", "name") and value == "x") or (key == "benchmarks" and value in ([], {})):
                continue
            folder = written(tmp_path / str(number), good | {name: changed(good[name], **{key: value})})
            refused(folder, name)


@pytest.mark.parametrize("key", ["costs", "lengths", "cap", "lockstep_efficiency", "starts", "seconds", "predicted"])
def test_every_plan_that_is_drawn_is_one(tmp_path, good, key):
    for value in [*NASTY, None, [[]], [[-1]], [["x"]], [[[0]]], [[1e300]]]:
        if (key == "costs" and not value) or (key in ("seconds", "predicted") and value in (None, [])):
            continue  # no plan; no times
        if key == "starts" and isinstance(value, list):
            continue
        refused(
            written(tmp_path / "run", good | {"plans.jsonl": changed(good["plans.jsonl"], **{key: value})}), "plans"
        )


@pytest.mark.parametrize("config", ["[]", '"x"', "3", "null", '{"l_max": "x"}', '{"seed": []}', "[" * 10**5, "\xff"])
def test_a_configuration_of_any_shape(tmp_path, good, config):
    refused(written(tmp_path / "run", good | {"config.json": config}), "config.json")


def test_a_configuration_that_is_nested_deeply_is_shown_or_refused(tmp_path, good):
    for depth in (5, 300, 900):
        text = json.dumps(json.loads(good["config.json"]))[:-1] + ', "deep": ' + "[" * depth + "]" * depth + "}"
        folder = written(tmp_path / "run", good | {"config.json": text})
        try:
            assert read_run(folder).config["deep"] is not None
        except InputError as error:
            assert "config.json" in str(error)


@pytest.mark.parametrize("name", ["eval.jsonl", "plans.jsonl", "config.json"])
def test_a_pipe_or_a_folder_in_the_place_of_a_file_is_refused(tmp_path, good, name):
    for make in (os.mkfifo, os.mkdir):
        folder = written(tmp_path / make.__name__, good)
        (folder / name).unlink()
        make(folder / name)
        refused(folder, name)


def test_a_good_run_is_drawn_all_the_same(tmp_path, good):
    folder = written(tmp_path / "run", good)
    (folder / "report.html").symlink_to(tmp_path / "outside")
    assert write_report(folder).stat().st_size > 10_000 and not (tmp_path / "outside").exists()
