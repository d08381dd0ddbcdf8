"""The two launch commands of the section on vLLM in docs/gpus.md: each line is parsed by the program that it starts,
and each `siri train` is dry-run, with a small model and problems in place of the hub's."""

import json
import os
import re
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from siri.cli import main
from siri.commands import dry_run as dry
from siri.rollout.guard import SECRET, SECRET_FILE
from siri.rollout.served import LAUNCH, REQUIRED
from tests.support.tiny import save_tiny

ROOT = Path(__file__).parents[2]
SERVE = (ROOT / "launch" / "serve.sh").read_text()


def lines() -> list[str]:
    """The commands in the section, as the reader types them."""
    section = (ROOT / "docs" / "gpus.md").read_text().split("## Rollouts from vLLM")[1].split("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def expanded(line: str) -> list[str]:
    """The words that bash makes of a line, braces expanded and comments dropped."""
    printed = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
    return printed.stdout.split("\0")[:-1]


def trained() -> list[list[str]]:
    return [words for words in map(expanded, lines()) if "train" in words]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Arguments that put a small model in the place of the recipe's, in a folder where nothing may appear."""
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model", max_position_embeddings=20000)
    Path("problems.json").write_text(json.dumps([{"problem": "1 + 1", "answer": "2"}] * 8))
    before = set(os.listdir())
    yield ["--model", "model", "--data", "problems.json", "--dry-run"]
    assert set(os.listdir()) == before, "a dry run wrote something"


def test_there_is_a_command_for_one_node_and_two_for_two():
    started = [next(word for word in expanded(line) if "=" not in word) for line in lines()]
    assert started == ["torchrun", "export", "launch/serve.sh", "torchrun"]


@pytest.mark.parametrize("number", [0, 1], ids=["colocated", "served"])
def test_training_lines_are_parsed_by_torchrun_and_dry_run(number, small, monkeypatch, capsys):
    from torch.distributed.run import parse_args

    words = trained()[number]
    parsed = parse_args(words[1:])
    assert parsed.no_python and parsed.training_script == "siri" and parsed.nproc_per_node == "8"
    for name, value in {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    if not find_spec("vllm"):  # the version check is tested below
        monkeypatch.setattr(dry, "installed", lambda: "0.32.0")
    assert main([*parsed.training_script_args, *small]) == 0
    out = capsys.readouterr().out
    assert "8 problems of problems.json" in out and "schedule cosine, caps 8,192 to 16,384" in out
    assert "Each of 8 GPUs" in out and out.endswith("dry run: nothing was allocated or written\n")
    if number == 0:
        chosen = json.loads(out.split("in each of 8 processes: ")[1].splitlines()[0])
        assert chosen["distributed_executor_backend"] == "external_launcher" and chosen["enable_sleep_mode"]
        assert chosen["max_model_len"] == 16384 + 1024 and chosen["logprobs_mode"] == "processed_logprobs"
    else:
        assert all(f"rollout server http://node1:{port}: no answer yet" in out for port in range(8000, 8008))


def test_a_dry_run_ends_as_the_run_would(small, monkeypatch, capsys):
    monkeypatch.setattr(dry, "installed", lambda: "0.20.1")
    assert main(["train", "siri-1.5b", *small, "--rollout", "vllm"]) == 2
    assert "vLLM 0.20.1 here is not among the versions that work" in capsys.readouterr().err
    monkeypatch.setattr(dry, "installed", lambda: None)
    assert main(["train", "siri-1.5b", *small, "--rollout", "vllm"]) == 2
    assert "which is not installed here; pip install -e" in capsys.readouterr().err
    assert main(["train", "siri-1.5b", *small, "--rollout", "local", "--l-max", "30000"]) == 2
    assert "exceed the model's context of 20000" in capsys.readouterr().err
    assert main(["train", "siri-1.5b", *small, "--rollout", "local", "--token-budget", "1000"]) == 2
    assert "token_budget is 1000" in capsys.readouterr().err


def test_the_serving_script_starts_what_the_trainer_insists_on(tmp_path):
    """Run with a stand-in for vllm that notes how it was called."""
    calls = tmp_path / "calls"
    (tmp_path / "vllm").write_text(
        f'#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES $VLLM_SERVER_DEV_MODE $* '
        f'threads=$OMP_NUM_THREADS,$OMP_WAIT_POLICY pid=$$" >> {calls}\nexec sleep 600\n'
    )
    (tmp_path / "vllm").chmod(0o755)
    host, *words = expanded(next(line for line in lines() if "serve.sh" in line))
    assert host == "HOST=node1"  # below it serves its own machine, which needs no secret
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "GPUS": "2"}
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "HOST", SECRET):
        environment.pop(name, None)
    running = subprocess.Popen([ROOT / words[0], *words[1:]], env=environment, start_new_session=True)
    try:
        for _ in range(1000):
            if calls.exists() and len(calls.read_text().splitlines()) == 2:
                break
            subprocess.run(["sleep", "0.1"], check=True)
    finally:
        running.terminate()  # the script alone: it has to end its servers
        running.wait()
    for pid in re.findall(r"pid=(\d+)", calls.read_text()):
        for _ in range(1000):
            state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout
            if not state or state.startswith("Z"):
                break
            subprocess.run(["sleep", "0.1"], check=True)
        else:
            raise AssertionError("a server outlived the script")
    made = sorted(calls.read_text().splitlines())
    assert [line.split()[:2] for line in made] == [["0", "1"], ["1", "1"]]
    for gpu, line in enumerate(made):
        assert f"serve deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B --host 127.0.0.1 --port {8000 + gpu} " in line
        assert "--middleware" not in line
        assert "threads=1,PASSIVE" in line, "one CPU thread, and none that spins"
        assert "--max-model-len 17408" in line and '--weight-transfer-config {"backend": "nccl"}' in line
        flags = [remedy.removeprefix("start it with ") for *_, remedy in REQUIRED if "with --" in remedy]
        assert all(flag in line for flag in flags if "kv-cache-dtype" not in flag)
    for flag in shlex.split(LAUNCH.split("MODEL")[1]):
        assert flag in SERVE


@pytest.mark.parametrize("name", [SECRET, SECRET_FILE])
def test_servers_that_others_reach_need_a_secret(tmp_path, name):
    (tmp_path / "vllm").write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\nexec sleep 600\n')
    (tmp_path / "vllm").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "GPUS": "1", "HOST": "node1"}
    for variable in (SECRET, SECRET_FILE):
        environment.pop(variable, None)
    command = [ROOT / "launch" / "serve.sh", "model"]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and f"set {SECRET}" in refused.stderr
    assert not (tmp_path / "calls").exists()
    running = subprocess.Popen(command, env=environment | {name: "hush"}, start_new_session=True)
    try:
        for _ in range(1000):
            if (tmp_path / "calls").exists() and (tmp_path / "calls").read_text().endswith("\n"):
                break
            subprocess.run(["sleep", "0.1"], check=True)
    finally:
        running.terminate()
        running.wait()
    line = (tmp_path / "calls").read_text()
    assert "--host node1 --port 8000 --middleware siri.rollout.guard.Guard " in line and "hush" not in line


def test_the_extra_pins_the_versions_that_are_checked():
    import tomllib

    from siri.rollout.vllm import SUPPORTED

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["vllm"] == [f"vllm{SUPPORTED}"]
