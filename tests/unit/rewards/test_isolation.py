"""No file of the current folder runs in the trainer or a grader unless the user has named it, and a grader of the
built-in reward sees next to nothing of the environment."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from siri.errors import InputError
from siri.rewards.pool import KEPT_VARIABLES, RewardPool

LIBRARIES = {"sympy", "math_verify", "mpmath", "latex2sympy2_extended", "torch", "numpy", "tyro", "transformers"}
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def traps(tmp_path, monkeypatch) -> Path:
    """A current folder with a file for every module of Python's and for libraries, each of which leaves its name when
    it is run. Returns what they write to."""
    sprung = tmp_path.with_name(f"{tmp_path.name}-sprung")
    text = f"with open({str(sprung)!r}, 'a') as file:\n    file.write(__name__ + ' ')\nraise SystemExit('trapped')\n"
    for name in {*sys.stdlib_module_names, *LIBRARIES} - {"__main__"}:
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    return sprung


def script() -> list[str]:
    """How the `siri` of this environment is started, whether or not its scripts are on the path."""
    entry = next(iter(importlib.metadata.entry_points(group="console_scripts", name="siri")))
    path = Path(sys.executable).with_name("siri")
    return [str(path)] if path.exists() else [sys.executable, "-P", "-c", f"import siri.cli; {entry.value}"]


@pytest.mark.parametrize("how", ["script", "-P -m", "-m"])
def test_no_file_of_the_current_folder_runs_in_trainer_or_grader(traps, how):
    """A dry run imports what training does, and starts a grader."""
    command = {"script": script(), "-P -m": [sys.executable, "-P", "-m", "siri"], "-m": [sys.executable, "-m", "siri"]}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    arguments = ["train", "demo", "--reward", "math", "--dry-run"] if how == "script" else ["--version"]
    run = subprocess.run([*command[how], *arguments], capture_output=True, text=True, timeout=600, env=environment)
    assert run.returncode == 0, run.stderr
    assert not traps.exists(), traps.read_text()


def test_a_trap_is_real(traps):
    """A control: Python itself falls into it."""
    subprocess.run([sys.executable, "-c", "import json"], capture_output=True, timeout=600)
    assert traps.read_text() == "json "


def test_a_function_of_the_users_is_looked_for_first_and_what_it_imports_last(traps):
    Path("judge.py").write_text(
        "import json, helper\ndef grade(response, answer):\n    return helper.length(response)\n"
    )
    Path("helper.py").write_text("import string, colorsys\ndef length(text):\n    return len(text)\n")
    Path("tests").mkdir()  # a name that an installed package may have as well
    Path("tests/__init__.py").write_text("def grade(response, answer):\n    return 7\n")
    for name, reward in (("judge:grade", 2.0), ("tests:grade", 7.0)):
        with RewardPool(name, workers=1) as pool:
            assert pool.score(["ab"], [""]).rewards == [reward]
    assert not traps.exists(), traps.read_text()


@on_linux
def test_a_grader_sees_no_password(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("LANG", "C.UTF-8")
    with RewardPool("math", workers=1) as pool:
        seen = Path(f"/proc/{pool._pool[0].process.pid}/environ").read_bytes().decode().split("\0")
    names = {entry.partition("=")[0] for entry in seen if entry}
    assert "LANG" in names and names <= set(KEPT_VARIABLES)
    Path(tmp_path / "telling.py").write_text(
        "import os\ndef tell(response, answer):\n    return float(os.environ['HF_TOKEN'] == 'secret')\n"
    )
    monkeypatch.chdir(tmp_path)
    with RewardPool("telling:tell", workers=1) as pool:
        assert pool.score([""], [""]).rewards == [1.0], "a function of the user's may need it"


def test_a_file_alone_chooses_no_code(tmp_path, monkeypatch):
    """`os:system` as the reward of a recipe would run every gold answer of the data in a shell."""
    from siri.config import resolve
    from siri.config.recipe import RecipeOptions

    monkeypatch.chdir(tmp_path)
    Path("base.toml").write_text('base = "demo"\nreward = "os:system"\n')
    Path("mine.toml").write_text('base = "base.toml"\nsteps = 1\n')
    with pytest.raises(InputError, match=r"recipe mine\.toml: its reward 'os:system' is code.*--reward os:system on"):
        resolve("mine.toml", RecipeOptions, ["--steps", "2"])
    for arguments in (["--reward", "os:system"], ["--reward=os:system"]):
        assert resolve("mine.toml", RecipeOptions, arguments).reward == "os:system"
    assert resolve("mine.toml", RecipeOptions, ["--reward", "exact"]).reward == "exact"
    assert resolve("demo", RecipeOptions, ["--reward", "judge:grade"]).reward == "judge:grade"


def test_nor_does_a_study(tmp_path, capsys):
    from siri.cli import main

    (tmp_path / "study.toml").write_text(
        'recipe = "demo"\nseeds = [0]\n[common]\nsteps = 1\n[arms.a]\n[arms.b]\nreward = "os:system"\n'
    )
    command = ["study", str(tmp_path / "study.toml"), "--runs", str(tmp_path / "runs")]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "study.toml, b: its reward 'os:system' is code" in told and told.count("\n") == 1
    assert not (tmp_path / "runs").exists() and not (tmp_path / "results.jsonl").exists()


def test_a_study_starts_its_workers_apart_from_the_current_folder(tmp_path, monkeypatch):
    import multiprocessing

    from siri.study.runner import _safe_path

    monkeypatch.chdir(tmp_path)
    (tmp_path / "pickle.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with _safe_path():
        process = multiprocessing.get_context("spawn").Process(target=json.dumps, args=([],))
        process.start()
    process.join()
    assert "PYTHONSAFEPATH" not in os.environ
    assert process.exitcode == 0 and not (tmp_path / "sprung").exists()
