"""The command line as a user meets it: help, exit codes, one line for bad input and nothing left behind."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import siri
from siri.cli import ALIKE_S, COMMANDS, main
from tests.support import warm
from tests.support.tiny import save_tiny

ROOT = Path(siri.__file__).parent.parent
SMALL = {
    "--model": "model",
    "--data": "problems.jsonl",
    "--l-max": "16",
    "--l-min": "8",
    "--steps": "2",
    "--cycle": "2",
    "--prompts-per-step": "2",
    "--group-size": "2",
    "--reward": "exact",
}


def siri_process(*arguments: str, **options) -> subprocess.CompletedProcess:
    """`python -m siri` in a process of its own."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *options.pop("python", ()), "-m", "siri", *arguments]
    return warm.run(command, capture_output=True, text=True, env=environment, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny(folder / "model")
    shutil.copytree(folder / "model", folder / "no_tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "no_tokenizer" / name).unlink()
    rows = [json.dumps({"problem": f"what is {i}", "answer": str(i)}) for i in range(6)]
    (folder / "problems.jsonl").write_text("\n".join(rows))
    (folder / "malformed.jsonl").write_text("\n".join([*rows[:2], '{"problem": "what', *rows[2:]]))
    (folder / "columns.jsonl").write_text('{"riddle": "a", "solution": "b"}\n')
    (folder / "empty.jsonl").write_text("")
    (folder / "holes.jsonl").write_text('{"problem": "a", "answer": null}\n')
    (folder / "a_file").write_text("x")
    return folder


@pytest.fixture
def inputs(made, tmp_path, monkeypatch) -> Path:
    """A working directory with good and bad inputs, of which nothing may be left changed."""
    for entry in made.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def refused(capsys, arguments: list[str]) -> str:
    """The one line on stderr of a command that must fail with exit code 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("siri: ") and printed.err.count("\n") == 1, printed
    return printed.err


def train(recipe: str = "siri-1.5b", **changes: str | None) -> list[str]:
    given = {**SMALL, **{"--" + key.replace("_", "-"): value for key, value in changes.items()}}
    return ["train", recipe, *(text for key, value in given.items() for text in (key, value) if text is not None)]


BAD_TRAINING = {
    "unknown recipe": (train("siri-1.5"), ["'siri-1.5'", "did you mean siri-1.5b?", "dapo-8k-16k"]),
    "unknown key": ([*train(), "--frobnicate", "1"], ["'frobnicate'", "--help"]),
    "mistyped key": ([*train(), "--grup-size", "4"], ["'grup-size'", "did you mean --group-size?"]),
    "a key of TRL's": ([*train(), "--learning-rate", "1"], ["'learning-rate'", "here it is --lr;"]),
    "a key of verl's": ([*train(), "--actor.rollout.n", "4"], ["'actor.rollout.n'", "here it is --group-size;"]),
    "a key of both": ([*train(), "--actor.optim.lr", "4"], ["'actor.optim.lr'", "here it is --lr;"]),
    "a term that is not there": ([*train(), "--beta", "0.1"], ["'beta'", "deliberately absent", "no KL term"]),
    "a value for a switch": (
        [*train(), "--resume", "runs/x"],
        ["--resume is a switch", "'runs/x'", "--resume-weights"],
    ),
    "wrong type": (train(steps="many"), ["--steps", "'many'"]),
    "l_min over l_max": (train(l_min="20"), ["l_min is 20", "l_max is 16"]),
    "beta of one": (train(beta1="1.0"), ["beta1 is 1.0", "below 1"]),
    "clip_low of one": (train(clip_low="1.5"), ["clip_low is 1.5"]),
    "empty icepop band": (train(importance="icepop", importance_low="6"), ["importance_low is 6.0", "empty"]),
    "zero cycle": (train(cycle="0"), ["cycle is 0"]),
    "one response with std": (train(group_size="1"), ["group_size is 1", "--group-size", "--advantage-norm none"]),
    "missing file": (train(data="nowhere.jsonl"), ["nowhere.jsonl: no such file"]),
    "malformed line": (train(data="malformed.jsonl"), ["malformed.jsonl", "line 3"]),
    "missing columns": (train(data="columns.jsonl"), ["columns.jsonl", "riddle, solution", "--prompt-key"]),
    "named column missing": (train(prompt_key="question"), ["'question'", "problem, answer"]),
    "empty data": (train(data="empty.jsonl"), ["empty.jsonl", "empty"]),
    "no usable row": (train(data="holes.jsonl"), ["holes.jsonl", "none of 1 rows"]),
    "every prompt too long": (train(max_prompt_tokens="3"), ["--max-prompt-tokens 3", "the shortest has"]),
    "no run to resume": ([*train(), "--resume"], ["runs/siri-1.5b", "no run there to resume", "leave out --resume"]),
    "no tokenizer": (train(model="no_tokenizer"), ["no_tokenizer", "tokenizer.json"]),
    "no model folder": (train(model="./nowhere"), ["./nowhere", "no such folder"]),
    "model is data": (train(model="problems.jsonl"), ["problems.jsonl", "config.json"]),
    "no model": (train(model=""), ["--model"]),
    "cap beyond the context": (train(l_max="500"), ["cap of 500", "context of 512", "--l-max"]),
    "evaluation cap beyond it": (
        train(eval_data="problems.jsonl", eval_cap="500"),
        ["cap of 500", "context of 512", "--eval-cap"],
    ),
    "unknown reward": (train(reward="maths"), ["'maths'", "did you mean 'math'?", "module:function"]),
    "no such module": (train(reward="nowhere:grade"), ["'nowhere:grade'", "cannot import nowhere"]),
    "no such function": (train(reward="json:load_s"), ["'load_s'", "did you mean 'loads'?"]),
    "token budget too small": (train(token_budget="40"), ["token_budget is 40", "--token-budget", "--l-max"]),
    "run folder is a file": (train(run_dir="a_file"), ["a_file", "no run folder", "--run-dir"]),
    "run folder below a file": (train(run_dir="a_file/run"), ["a_file/run", "cannot be written", "--run-dir"]),
    "run folder is a model": (train(run_dir="model"), ["model", "no run folder", "--run-dir"]),
    "unknown evaluation data": (train(eval_data="nowhere.json"), ["nowhere.json: no such file"]),
    "profile of a step that never comes": (train(profile="2"), ["profile is 2", "from 0 to 1", "-1"]),
    "profile of no step": (train(profile="-2"), ["profile is -2"]),
    "no GPU by that name": (train(device="gpu"), ["'gpu'", "cpu, cuda or auto"]),
    "a folder for a recipe": (train("model"), ["model: a folder, not a recipe", "RUN@STEP"]),
    "no recipe": (["train", "--steps", "3"], ["needs a recipe", "siri-7b"]),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_bad_training_is_one_line_and_leaves_no_run_folder(case, inputs, capsys):
    arguments, said = BAD_TRAINING[case]
    before = sorted(inputs.rglob("*"))
    message = refused(capsys, arguments)
    assert all(part in message for part in said), message
    assert sorted(inputs.rglob("*")) == before, "nothing may be written"


def test_a_bad_kind_of_logger_leaves_no_run_folder(inputs, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    message = refused(capsys, train(logger="wandb"))
    assert "wandb" in message and "pip install" in message and not (inputs / "runs").exists()


def test_half_of_torchruns_variables(inputs, capsys, monkeypatch):
    """As batch systems leave them behind."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    message = refused(capsys, train())
    assert "WORLD_SIZE is 2, but RANK is not set" in message and "torchrun" in message
    assert not (inputs / "runs").exists()


def test_a_rank_whose_fault_is_its_own_says_so_after_a_while(inputs, capsys, monkeypatch):
    """Faults of all ranks are rank 0's to tell, which the others must not get ahead of: torchrun ends all with the
    first that leaves."""
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    bad = ["eval", "model", "--data", "x.json", "--samples", "0"]
    assert main(bad) == 2 and waited == []
    alone = capsys.readouterr().err
    for name, value in {"RANK": "9", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(bad) == 2 and waited == [ALIKE_S + 1], "one rank of a node after the other"
    assert capsys.readouterr().err == alone.replace("siri: ", "siri (rank 9): ", 1)


def test_a_run_folder_is_not_overwritten(inputs, capsys):
    assert main([*train(), "--quiet", "--run-dir", "run"]) == 0
    files = {path: path.read_bytes() for path in (inputs / "run").rglob("*") if path.is_file()}
    assert "already holds a run; continue it with --resume" in refused(capsys, train(run_dir="run"))
    message = refused(capsys, train(run_dir="run", lr="0.5"))
    assert "another configuration (lr)" in message and "--run-dir" in message and "--resume" not in message
    for resume in ("--resume", "--auto-resume"):
        message = refused(capsys, [*train(run_dir="run", lr="0.5", l_min="4"), resume])
        assert "another configuration (l_min, lr)" in message and "same settings" in message
    assert {path: path.read_bytes() for path in (inputs / "run").rglob("*") if path.is_file()} == files
    (inputs / "run" / "config.json").write_text("{")
    assert "config.json" in refused(capsys, [*train(run_dir="run"), "--resume"])


def test_quiet_says_nothing(inputs, capfd):
    assert main([*train(), "--quiet", "--run-dir", "run"]) == 0
    assert main([*train(), "--quiet", "--run-dir", "run", "--auto-resume"]) == 0
    assert capfd.readouterr() == ("", "")


BAD_EVALUATION = {
    "no model": (["eval"], ["siri eval MODEL"]),
    "no data": (["eval", "model"], ["--data"]),
    "mistyped key": (["eval", "model", "--dta", "problems.jsonl"], ["'dta'", "did you mean --data?", "siri eval"]),
    "missing file": (["eval", "model", "--data", "x.json"], ["x.json: no such file"]),
    "cap too long": (["eval", "model", "--data", "problems.jsonl", "--cap", "500"], ["cap of 500", "context of 512"]),
    "no samples": (["eval", "model", "--data", "problems.jsonl", "--samples", "0"], ["samples is 0"]),
    "no folder for the figures": (
        ["eval", "model", "--data", "problems.jsonl", "--cap", "8", "--out", "no/such.json"],
        ["--out no/such.json", "no such folder"],
    ),
    "a folder for the figures": (
        ["eval", "model", "--data", "problems.jsonl", "--cap", "8", "--out", "model"],
        ["--out model", "a folder; give --out FILE"],
    ),
    "no base": (["eval", "model", "--data", "problems.jsonl", "--base", "a_file"], ["a_file", "siri eval --out"]),
}


@pytest.mark.parametrize("case", BAD_EVALUATION)
def test_bad_evaluation(case, inputs, capsys):
    arguments, said = BAD_EVALUATION[case]
    message = refused(capsys, arguments)
    assert all(part in message for part in said), message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], ["'trian'", "did you mean train?"]),
        (["--hepl"], ["'--hepl'", "siri --help"]),
        (["report"], ["usage: siri report RUN"]),
        (["report", "nowhere"], ["nowhere is not a run folder", "--run-dir"]),
        (["report", "model"], ["model is not a run folder"]),
        (["export", "model"], ["usage: siri export CHECKPOINT FOLDER"]),
        (["export", "nowhere", "target"], ["nowhere: no checkpoint there"]),
        (["export", "model", "target"], ["model: no checkpoint there"]),
        (["doctor", "--jsno"], ["'jsno'", "did you mean --json?", "siri doctor --help"]),
    ],
)
def test_other_bad_commands(arguments, said, inputs, capsys):
    message = refused(capsys, arguments)
    assert all(part in message for part in said), message
    assert not (inputs / "target").exists()


# --- help and doctor ---


def test_help_is_instant_and_imports_nothing_heavy():
    code = (
        "import sys, time, siri.cli; assert siri.cli.main(['--help']) == 0;"
        "heavy = {'torch', 'numpy', 'transformers', 'datasets', 'matplotlib', 'tyro', 'rich'} & set(sys.modules);"
        "print('HEAVY', sorted(heavy), time.process_time())"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": paths},
        ).stdout.splitlines()
        for _ in range(3)
    ]
    assert all(recipe in runs[0][-2] for recipe in ("demo", "siri-1.5b", "siri-7b"))
    assert all(run[-1].startswith("HEAVY [] ") for run in runs)
    # processor time, because a busy machine may take any time; the interpreter's own start is in it
    assert min(float(run[-1].split()[-1]) for run in runs) < 0.5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: siri {command}") and len(text) > 60


def test_help_of_a_recipe_shows_its_values(capsys):
    assert main(["train", "demo", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: 96)" in text and "--l-max" in text and "--resume" in text


def test_version_and_doctor(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == siri.__version__
    assert main([]) == 0 and "siri train RECIPE" in capsys.readouterr().out
    assert main(["doctor"]) == 0
    assert "torch" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    assert "torch" in {finding["name"] for finding in json.loads(capsys.readouterr().out)["findings"]}


def test_bad_input_of_a_real_process(inputs):
    """Exit code and stderr are the process's own, with no traceback behind them."""
    done = siri_process("train", "demo", "--group-sze", "3", cwd=inputs)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("siri: unknown key 'group-sze', did you mean --group-size?")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", ["train demo --help", "eval --help", "--help", "doctor"])
def test_the_reader_may_go_away(arguments):
    """`siri train demo --help | head -1` is no error worth a traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, "-m", "siri", *arguments.split()],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    os.close(writing)
    # rich, which prints what the doctor finds, leaves with 1
    assert done.stderr == "" and done.returncode == (1 if arguments == "doctor" else 141)


def test_a_disk_that_fills_anywhere_is_one_line(monkeypatch, capsys):
    def fails(_arguments):
        raise OSError(number, os.strerror(number), "report.html")

    monkeypatch.setattr("siri.commands.report.run_report", fails)
    for number in (errno.ENOSPC, errno.EROFS):
        assert main(["report", "run"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith(f"siri: report.html: {os.strerror(number)}; make room")
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        main(["report", "run"])
