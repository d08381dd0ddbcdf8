import json
import os
import re
import subprocess
import sys
import types
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import siri
from siri.commands import doctor


def by_name():
    return {finding["name"]: finding for finding in doctor.collect()["findings"]}


@pytest.mark.quiet
def test_run_prints_everything_soon_and_without_heavy_imports():
    """Soon: in three times of what importing torch takes."""
    code = (
        "import sys, time; begin = time.process_time(); import torch; torch_s = time.process_time() - begin;"
        "from siri.commands.doctor import DoctorOptions, run_doctor;"
        "code = run_doctor(DoctorOptions());"
        "print('of torch', (time.process_time() - begin) / torch_s, 'code', code);"
        "print('heavy', *{'transformers', 'datasets', 'matplotlib', 'vllm', 'math_verify', 'wandb'} & set(sys.modules))"
    )
    environment = os.environ | {"COLUMNS": "80"}
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    *table, summary, timing, heavy = out.strip().splitlines()
    # processor time: the clock on the wall depends on who else is using the machine
    assert float(timing.split()[2]) < 3 and timing.endswith("code 0")
    assert heavy == "heavy"
    assert re.fullmatch(r"Ready to train on the [CG]PU\.|\d problems?, in red above\.", summary)
    text = "\n".join(table)
    for name in (
        "python",
        "cores",
        "memory",
        "torch",
        "triton",
        "transformers",
        "siri-kernels",
        "attention=auto",
        "sdpa",
    ):
        assert re.search(rf"^.* {name} ", text, re.MULTILINE), name
    for name in ("math-verify", "vllm", "flash-attn", "liger-kernel", "tensorboard", "wandb", "trackio", "impl=auto"):
        assert name in text, name
    assert all(len(line) <= 80 for line in table if "pip install" not in line)


def test_the_layers_of_a_graders_cell_are_listed_and_a_missing_one_says_why(monkeypatch):
    from siri.rewards import sandbox
    from siri.rewards.pool import RewardPool

    monkeypatch.setattr(RewardPool, "__enter__", lambda self: self)
    monkeypatch.setattr(RewardPool, "layers", ["memory", "limits", "audit"])
    findings = {finding.name: finding for finding in doctor._graders()}
    assert set(findings) == {"math", *sandbox.LAYERS}
    assert [name for name, finding in findings.items() if finding.found == "no"] == ["landlock", "user", "seccomp"]
    assert findings["seccomp"].note == "Linux on x86-64 only" and findings["audit"].note == ""


def test_collect_is_json_and_true():
    known = doctor.collect()
    assert {"limits", "audit"} <= {finding["name"] for finding in known["findings"] if finding["found"] == "yes"}
    assert json.loads(json.dumps(known)) == known
    values = {finding["name"]: finding["found"] for finding in known["findings"]}
    assert values["torch"] == torch.__version__.partition("+")[0] or values["torch"] == torch.__version__
    assert values["python"] == ".".join(map(str, sys.version_info[:3]))
    assert known["gpu"] == torch.cuda.is_available()
    assert known["problems"] == 0, [finding for finding in known["findings"] if finding["problem"]]


def missing(monkeypatch, *packages):
    real_version, real_spec = doctor.version, doctor.find_spec

    def version(name):
        if name in packages:
            raise PackageNotFoundError(name)
        return real_version(name)

    monkeypatch.setattr(doctor, "version", version)
    modules = {name.replace("-", "_") for name in packages}
    monkeypatch.setattr(doctor, "find_spec", lambda name, *rest: None if name in modules else real_spec(name, *rest))


def test_each_missing_extra_says_what_changes_and_how_to_install_it(monkeypatch, capsys):
    missing(monkeypatch, *(extra.package for extra in doctor.EXTRAS))
    findings = by_name()
    for extra in doctor.EXTRAS:
        finding = findings[extra.package]
        assert finding["found"] == "" and not finding["problem"]
        assert finding["note"] == (extra.without if extra.used else "not used by this version")
        assert finding["install"].endswith(f" -e ./kernels -e '.[{extra.extra}]'")
    monkeypatch.setenv("COLUMNS", "80")
    assert doctor.run_doctor(doctor.DoctorOptions()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  pip install -e ./kernels -e '.[loggers]'  # tensorboard, wandb, mlflow, trackio" in lines
    assert "  pip install -e ./kernels -e '.[vllm]'  # vllm" in lines


def test_installed_extras_need_nothing(monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: "9.9")
    for extra in doctor.EXTRAS:
        finding = by_name()[extra.package]
        assert finding["found"] == "9.9" and finding["install"] == ""
        assert finding["note"] == ("" if extra.used else "not used by this version")


def test_missing_requirement_is_a_problem(monkeypatch, capsys):
    missing(monkeypatch, "math-verify", "siri-kernels")
    findings = by_name()
    for name in ("math-verify", "siri-kernels"):
        assert findings[name]["problem"] and findings[name]["install"] == "pip install -e ./kernels -e ."
    assert "impl=auto" not in findings
    assert doctor.run_doctor(doctor.DoctorOptions()) == 0
    assert "2 problems, in red above." in capsys.readouterr().out


def test_a_version_out_of_range_is_a_problem(monkeypatch):
    lines = ["transformers>=5.17", "tyro>=99,<100", "vllm>=0.26; extra == 'vllm'"]
    monkeypatch.setattr(doctor, "requires", lambda name: lines)
    findings = by_name()
    assert not findings["transformers"]["problem"]
    assert findings["tyro"]["problem"] and findings["tyro"]["note"] == "this version of SIRI needs <100,>=99"
    assert findings["tyro"]["install"] == doctor.INSTALL


def test_attention_backends_and_why_not(monkeypatch):
    findings = by_name()
    assert findings["attention=auto"]["found"] == "sdpa"
    assert findings["flash2"]["found"] == "no" and "no backward on cpu" in findings["flash2"]["note"]
    assert findings["sdpa"]["found"] == "yes"
    monkeypatch.setattr(
        "siri.model.attention.fault", lambda backend, *rest: "" if backend == "sdpa" else "it is broken"
    )
    assert by_name()["varlen"]["note"] == "it is broken"


def test_extras_agree_with_the_package():
    """The table of extras is written by hand: hold it to pyproject.toml and to what the sources import."""
    tomllib = pytest.importorskip("tomllib")
    root = Path(siri.__file__).parent
    project = tomllib.loads((root.parent / "pyproject.toml").read_text())["project"]
    for extra in doctor.EXTRAS:
        wanted = {Requirement(line).name for line in project["optional-dependencies"][extra.extra]}
        assert extra.package in wanted
    required = {Requirement(line).name for line in project["dependencies"]}
    assert set(doctor.REQUIRED) <= required
    sources = "\n".join(path.read_text() for path in root.rglob("*.py") if path.name != "doctor.py")
    for extra in doctor.EXTRAS:
        imported = re.search(rf"(import|from)\s+(torch\.utils\.)?{extra.module}\b", sources) is not None
        assert imported == extra.used, f"siri/commands/doctor.py says used={extra.used} of {extra.package}"


class Card:
    def __init__(self, major=9, minor=0):
        self.name, self.total_memory, self.major, self.minor = "NVIDIA H100 80GB HBM3", 80 * 2**30, major, minor


@pytest.fixture
def nvidia(monkeypatch):
    """A machine with a driver and `cards`, as torch and nvidia-smi would tell it."""

    def make(cards, *, built_for="13.0", driver="580.65.06"):
        monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi" if driver else None)
        answer = types.SimpleNamespace(stdout=f"{driver}\n" * max(len(cards), 1))
        monkeypatch.setattr(doctor.subprocess, "run", lambda *command, **options: answer)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: cards[index])
        monkeypatch.setattr(torch.version, "cuda", built_for)
        return {finding.name: finding for finding in doctor.gpu_findings()}

    return make


def test_gpus(nvidia):
    findings = nvidia([Card(), Card(7, 5)])
    assert findings["driver"].found == "580.65.06"
    assert findings["GPU 0"].found == "NVIDIA H100 80GB HBM3, 80 GiB, capability 9.0" and not findings["GPU 0"].problem
    assert findings["GPU 1"].problem and "8.0" in findings["GPU 1"].note


def test_a_gpu_that_torch_cannot_use_is_a_problem(nvidia):
    cpu_build = nvidia([], built_for=None)["GPU"]
    assert cpu_build.problem and "constraints-cpu.txt" in cpu_build.note and cpu_build.install == doctor.INSTALL
    old_driver = nvidia([], built_for="13.0")["GPU"]
    assert old_driver.problem and "CUDA 13.0" in old_driver.note


def test_no_gpu_is_no_problem(nvidia):
    none = nvidia([], built_for=None, driver="")
    assert set(none) == {"GPU"} and not none["GPU"].problem


def test_a_hanging_driver_does_not_hang_the_doctor(monkeypatch):
    def hang(command, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(doctor.subprocess, "run", hang)
    assert doctor.driver_version() == ""


def test_kernels_come_from_the_kernel_package(monkeypatch):
    from siri_kernels.selection import LONG_ROW, select

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    findings = by_name()
    head = torch.empty(LONG_ROW, 8, dtype=torch.bfloat16)
    assert findings["impl=auto"]["found"] == select("auto", head[:0], head)
    assert "interpreter" in findings["impl=auto"]["note"]
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    findings = by_name()
    assert findings["impl=auto"]["note"] == ""
    assert {"torch", "reference"} <= set(findings["also"]["found"].split(", "))
