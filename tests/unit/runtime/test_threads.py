"""How many CPU threads a process has, how they wait, and that a run says what it used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from siri.cli import main
from siri.config import Config
from siri.errors import InputError
from siri.report.html import write_report
from siri.runtime import threads
from siri.runtime.ranks import Ranks
from siri.runtime.threads import MOST, SMALL, choose_threads, helper_environment, use_threads, wait_passively
from siri.store.run_folder import RunFolder
from tests.support.tiny import tiny_model

TINY = ["--prompts-per-step", "2", "--group-size", "2", "--l-max", "16", "--l-min", "8", "--cycle", "2", "--eval-data"]


@pytest.fixture(autouse=True)
def as_it_was():
    """torch's number of threads is the process's: other tests need their own."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def unset(monkeypatch):
    """Nothing is said about threads from outside."""
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("setting", "parameters", "device", "environment", "expected"),
    [
        ("auto", 281_184, "cpu", {}, 1),
        ("auto", SMALL, "cpu", {}, 1),
        ("auto", SMALL + 1, "cpu", {}, 8),
        ("auto", 10**10, "cuda", {}, 1),
        ("auto", 10**10, "cpu", {"LOCAL_WORLD_SIZE": "2"}, 4),
        ("auto", 10**10, "cpu", {"LOCAL_WORLD_SIZE": "20"}, 1),
        ("auto", 10**10, "cpu", {"OMP_NUM_THREADS": "3", "LOCAL_WORLD_SIZE": "2"}, 3),
        ("auto", 281_184, "cpu", {"OMP_NUM_THREADS": " 2,4"}, 2),
        ("auto", 10**10, "cuda", {"OMP_NUM_THREADS": "2"}, 2),
        ("auto", 10**10, "cpu", {"OMP_NUM_THREADS": ""}, 8),
        (5, 281_184, "cpu", {"OMP_NUM_THREADS": "3"}, 5),
        (5, 10**10, "cuda", {}, 5),
    ],
)
def test_the_rule(monkeypatch, setting, parameters, device, environment, expected):
    monkeypatch.setattr(threads, "cores", lambda: 8)
    assert choose_threads(setting, parameters=parameters, device=device, environment=environment) == expected


@pytest.mark.parametrize("said", ["two", "0", "-1", "1.5", str(MOST + 1), "\u00b2"])
def test_a_variable_that_is_no_number_is_one_line(said):
    with pytest.raises(InputError, match=r"OMP_NUM_THREADS is .*; set it to a number from 1 to 1024, or unset it"):
        choose_threads("auto", parameters=1, device="cpu", environment={"OMP_NUM_THREADS": said})


@pytest.mark.parametrize("number", [0, -2, MOST + 1])
def test_a_number_that_cannot_be_is_refused(number):
    with pytest.raises(InputError, match=rf"threads is {number}; it must be 'auto' or from 1 to 1024"):
        Config(threads=number)


def test_all_ranks_take_the_number_of_the_one_with_the_fewest(unset):
    class Two(Ranks):
        def gather(self, value):
            return [value, 2]

    assert use_threads(3, tiny_model(), torch.device("cpu"), Two()) == 2 == torch.get_num_threads()


def test_the_users_own_way_of_waiting_stays():
    given, none = {"OMP_WAIT_POLICY": "active"}, {}
    wait_passively(given)
    wait_passively(none)
    assert (given, none) == ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "PASSIVE"})


def test_a_helper_has_one_thread_unless_told_otherwise(unset):
    assert helper_environment() == {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    unset.setenv("OMP_NUM_THREADS", "4")
    assert helper_environment()["OMP_NUM_THREADS"] == "4"


def test_graders_are_helpers(unset, tmp_path):
    """What a reward function sees in its process."""
    from siri.rewards.pool import RewardPool

    (tmp_path / "telling.py").write_text(
        "import os\ndef tell(response, answer):\n"
        "    return float((os.environ['OMP_NUM_THREADS'], os.environ['OMP_WAIT_POLICY']) == ('1', 'PASSIVE'))\n"
    )
    unset.chdir(tmp_path)
    with RewardPool("telling:tell", workers=1) as pool:
        assert pool.score(["a"], ["b"]).rewards == [1.0]


def test_the_policy_is_set_before_torch_is_imported():
    """The first import of torch under `siri` already finds it: OpenMP reads it then, and never again."""
    code = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("policy", os.environ.get("OMP_WAIT_POLICY"), flush=True)
sys.meta_path.insert(0, Finder())
from siri.cli import main
assert "torch" not in sys.modules
main(["doctor"])
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[0] == "policy PASSIVE"


def test_openmp_does_as_it_is_told():
    """torch's runtime for Linux prints what it took over: a wait policy that came too late would not be there."""
    code = "from siri.cli import main; main(['doctor', '--json'])"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
    environment["PYTHONPATH"] = str(Path(threads.__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-c", code], env={**environment, "OMP_DISPLAY_ENV": "TRUE"}, capture_output=True, text=True
    )
    if "OPENMP DISPLAY ENVIRONMENT" not in run.stderr:
        pytest.skip("this build of torch has no OpenMP that shows its settings")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in run.stderr


# --- a run


def test_a_run_says_in_config_and_report_what_it_used(unset, tmp_path):
    folder = tmp_path / "run"
    assert main(["train", "demo", *TINY, "--steps", "1", "--run-dir", str(folder), "--quiet"]) == 0
    config = json.loads((folder / "config.json").read_text())
    assert (config["threads"], config["threads_used"]) == ("auto", 1) and torch.get_num_threads() == 1
    assert "<dt>CPU threads of a process</dt><dd>1 (chosen)</dd>" in (folder / "report.html").read_text()
    resumed = ["train", "demo", *TINY, "--steps", "2", "--run-dir", str(folder), "--resume", "--threads", "2"]
    assert main([*resumed, "--quiet"]) == 0 and torch.get_num_threads() == 2
    config = json.loads((folder / "config.json").read_text())
    assert (config["threads"], config["threads_used"]) == (2, 2)
    assert "<dt>CPU threads of a process</dt><dd>2</dd>" in write_report(folder).read_text()


def test_a_run_that_continues_with_other_threads_says_so(unset, tmp_path, capsys):
    command = ["train", "demo", *TINY, "--run-dir", str(tmp_path / "run")]
    assert main([*command, "--steps", "1", "--threads", "2"]) == 0
    assert "CPU threads" not in capsys.readouterr().out
    assert main([*command, "--steps", "2", "--threads", "2", "--resume"]) == 0
    assert "CPU threads" not in capsys.readouterr().out
    assert main([*command, "--steps", "3", "--resume"]) == 0
    told = "CPU threads: 1, so far 2; sums are rounded in another order, --threads 2 continues bit for bit"
    assert told in capsys.readouterr().out


def test_a_run_of_before_threads_were_noted_continues(tmp_path):
    folder, config = tmp_path / "run", Config(model="a", data="b")
    RunFolder(folder, config, "demo", "never").create()
    held = json.loads((folder / "config.json").read_text())
    del held["threads"], held["threads_used"]
    (folder / "config.json").write_text(json.dumps(held))
    run = RunFolder(folder, config, "demo", "must")
    run.compute_with(1)
    assert run.notes == []


def test_the_dry_run_says_it(unset, tmp_path, capsys):
    assert main(["train", "demo", "--dry-run", "--run-dir", str(tmp_path / "run")]) == 0
    assert "1 CPU thread in each process" in capsys.readouterr().out


def test_an_evaluation_says_it(unset, tmp_path):
    out = tmp_path / "out.json"
    command = ["eval", "siri:demo/model", "--data", "siri:demo/heldout.jsonl", "--problems", "2", "--samples", "1"]
    command += ["--cap", "8", "--template", "plain", "--reward", "exact", "--out", str(out)]
    assert main(command) == 0
    assert json.loads(out.read_text())["threads"] == 1 == torch.get_num_threads()
    assert main([*command, "--threads", "2"]) == 0
    assert json.loads(out.read_text())["threads"] == 2 == torch.get_num_threads()
