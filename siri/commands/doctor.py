"""`siri doctor`: what this machine has, and what each missing piece would change. Never fails, never downloads."""

import json
import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from typing import Any

from siri.errors import InputError
from siri.runtime.threads import cores

INSTALL = "pip install -e ./kernels -e ."
"""Run in the checkout; the name siri on the public index is somebody else's."""

REQUIRED = (
    "torch",
    "triton",
    "transformers",
    "siri-kernels",
    "math-verify",
    "datasets",
    "pyarrow",
    "tyro",
    "matplotlib",
)


@dataclass(frozen=True)
class Extra:
    """An optional package: where it comes from and what a machine without it does instead."""

    package: str
    module: str
    extra: str
    without: str
    used: bool = True
    """Whether this version of SIRI can make use of it."""

    @property
    def install(self) -> str:
        """The command that adds it, run in the checkout."""
        if self.extra == "flash":  # built from source against the torch that is installed
            tools = "pip install 'setuptools>=77' wheel ninja"
            return f"{tools} && pip install --no-build-isolation -e ./kernels -e '.[{self.extra}]'"
        return f"pip install -e ./kernels -e '.[{self.extra}]'"


EXTRAS = (
    Extra("vllm", "vllm", "vllm", "rollouts run on the embedded engine"),
    Extra("flash-attn", "flash_attn", "flash", "packed attention runs on torch's own kernels"),
    Extra("liger-kernel", "liger_kernel", "liger", "RMSNorm, RoPE and SwiGLU run as transformers writes them"),
    Extra("peft", "peft", "lora", "no --lora-rank"),
    Extra("tensorboard", "tensorboard", "loggers", "no --logger tensorboard; metrics.jsonl is always written"),
    Extra("wandb", "wandb", "loggers", "no --logger wandb; metrics.jsonl is always written"),
    Extra("mlflow", "mlflow", "loggers", "no --logger mlflow; metrics.jsonl is always written"),
    Extra("trackio", "trackio", "loggers", "no --logger trackio; metrics.jsonl is always written"),
)


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    group: str
    name: str
    found: str
    """What is there; "" = missing."""
    note: str = ""
    """What that means for a run."""
    install: str = ""
    """The command that adds it, run in the checkout."""
    problem: bool = False
    """Training does not work, or not as intended, until this is mended."""


def collect() -> dict[str, Any]:
    """Everything that `siri doctor` knows, ready for JSON: {"gpu": bool, "problems": int, "findings": [...]}."""
    gpus = gpu_findings()
    findings = [*_machine(), *gpus, *_packages(), *_attention(), *_kernels(), *_graders(), *_extras()]
    return {
        "gpu": any(finding.name.startswith("GPU ") and finding.found for finding in gpus),
        "problems": sum(finding.problem for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }


@dataclass(frozen=True)
class DoctorOptions:
    """What is printed."""

    json: bool = False
    """The findings as JSON instead of a table."""


def run_doctor(options: DoctorOptions) -> int:
    """Print the findings as a table, or as JSON; always returns 0, for a missing piece is no error of the caller."""
    if options.json:
        print(json.dumps(collect(), indent=1))
        return 0
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    known = collect()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, header_style="dim")
    for heading in ("", "what", "found", "what that means here"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "what")
    group, commands = "", {}
    for finding in known["findings"]:
        new = finding["group"] != group
        if new and group:
            table.add_section()
        group = finding["group"]
        style = "red" if finding["problem"] else "" if finding["found"] else "yellow"
        cells = (Text(group if new else "", "dim"), finding["name"], Text(finding["found"] or "not installed", style))
        table.add_row(*cells, Text(finding["note"]))
        if finding["install"]:
            commands.setdefault(finding["install"], []).append(finding["name"])
    console = Console()
    console.print(table)
    if commands:
        console.print("\nTo add what is missing, in the checkout:")
        for command, names in commands.items():  # whole lines, to be copied
            console.print(f"  {command}  # {', '.join(names)}", soft_wrap=True, markup=False, highlight=False)
    problems = known["problems"]
    ready = f"Ready to train on the {'GPU' if known['gpu'] else 'CPU'}."
    mend = f"{problems} problem{'s' * (problems != 1)}, in red above."
    console.print(f"\n{mend if problems else ready}", highlight=False)
    return 0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _machine() -> list[Finding]:
    findings = [
        Finding("machine", "python", platform.python_version()),
        Finding("machine", "system", f"{platform.system()} {platform.release()} {platform.machine()}"),
        Finding("machine", "cores", str(cores())),
    ]
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        findings.append(Finding("machine", "memory", f"{memory / 2**30:.0f} GiB"))
    free = shutil.disk_usage(".").free
    findings.append(
        Finding("machine", "disk", f"{free / 2**30:.0f} GiB free here", "checkpoints go to runs/ by default")
    )
    return findings


def gpu_findings() -> list[Finding]:
    driver = driver_version()
    findings = [Finding("GPU", "driver", driver)] if driver else []
    try:
        import torch
    except ImportError:
        return findings
    if not torch.cuda.is_available():
        if driver and torch.version.cuda is None:
            note = "this torch is built for the CPU; reinstall it in a new environment without constraints-cpu.txt"
            return [*findings, Finding("GPU", "GPU", "not usable", note, INSTALL, problem=True)]
        if driver:
            note = (
                f"torch cannot use the driver; torch is built for CUDA {torch.version.cuda}, which may need a newer one"
            )
            return [*findings, Finding("GPU", "GPU", "not usable", note, problem=True)]
        return [
            Finding("GPU", "GPU", "none", "runs on the CPU: right for the demo and the tests, too slow for real models")
        ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        card = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, capability {capability}"
        old = properties.major < 8
        note = "no bf16 and no Triton kernels below capability 8.0" if old else ""
        findings.append(Finding("GPU", f"GPU {index}", card, note, problem=old))
    return findings


def driver_version() -> str:
    """Version of the NVIDIA driver; "" without one."""
    if not shutil.which("nvidia-smi"):
        return ""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=3, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.split("\n")[0].strip()


def _packages() -> list[Finding]:
    wanted = _requirements()
    findings = []
    for package in REQUIRED:
        installed = _version(package)
        if package == "siri-kernels" and not installed and find_spec("siri_kernels"):
            installed = "in the checkout"
        if package == "triton" and not installed and platform.system() != "Linux":
            continue
        note, problem = "", not installed
        if installed and package in wanted and not wanted[package].contains(installed, prereleases=True):
            note, problem = f"this version of SIRI needs {wanted[package]}", True
        findings.append(Finding("packages", package, installed, note, INSTALL if problem else "", problem))
    return findings


def _requirements() -> dict[str, Any]:
    """Version specifiers of the installed distribution; empty when it runs from a bare checkout."""
    try:
        lines = requires("siri-rl") or []
        from packaging.requirements import Requirement
    except (PackageNotFoundError, ImportError):
        return {}
    parsed = [Requirement(line) for line in lines]
    return {
        requirement.name: requirement.specifier
        for requirement in parsed
        if not (requirement.marker and "extra" in str(requirement.marker))
    }


def _attention() -> list[Finding]:
    """Each backend of packed attention, tried as the trainer tries it; flex, which has to be compiled, is not."""
    if not find_spec("torch"):
        return []
    import torch

    from siri.model.attention import candidates, fault

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    findings = []
    for backend in ("flash4", "flash3", "flash2", "varlen", "flex", "sdpa"):
        untried = backend == "flex" and device.type == "cuda"
        why_not = "" if untried else fault(backend, device)
        note = why_not or ("compiled, and tried, when it is first used" if untried else "")
        findings.append(Finding("attention", backend, "no" if why_not else "yes", note))
    usable = [finding.name for finding in findings if finding.found == "yes"]
    chosen = next(backend for backend in candidates(device) if backend in usable)
    return [Finding("attention", "attention=auto", chosen, "no pad token in the loss, no dense mask"), *findings]


def _kernels() -> list[Finding]:
    if not (find_spec("siri_kernels") and find_spec("torch")):
        return []
    import torch
    from siri_kernels.selection import select
    from siri_kernels.validation import IMPLS

    # what the trainer gives the head on a GPU; nothing is allocated
    device = "cuda" if torch.cuda.is_available() else "cpu"
    like, weight = (torch.empty(*shape, dtype=torch.bfloat16, device=device) for shape in ((0, 1536), (151_936, 0)))

    def runs(impl: str) -> bool:
        try:
            select(impl, like, weight)
        except ValueError:
            return False
        return True

    interpreter = "Triton interpreter (TRITON_INTERPRET=1), slow" if os.environ.get("TRITON_INTERPRET") == "1" else ""
    usable = [impl for impl in IMPLS if impl != "auto" and runs(impl)]
    return [
        Finding("kernels", "impl=auto", select("auto", like, weight), interpreter),
        Finding("kernels", "also", ", ".join(usable), "what impl= accepts here"),
    ]


WITHOUT = {
    "limits": "this system has no such limits",
    "landlock": "the kernel has none (Linux 5.13 and later, where it is switched on)",
    "user": "only where the trainer is root and may become somebody else",
    "seccomp": "Linux on x86-64 only",
    "audit": "",
}
"""Why a layer of the graders' cell may be missing."""


def _graders() -> list[Finding]:
    """The layers of the cell that the math reward's graders work in, from one that is started for it."""
    from siri.rewards import sandbox
    from siri.rewards.pool import RewardPool

    try:
        with RewardPool("math", workers=1) as pool:
            held = pool.layers
    except InputError as error:
        return [Finding("graders", "math", "no", str(error), problem=True)]
    note = "what holds in the processes that grade what a model wrote (docs/reliability.md)"
    return [
        Finding("graders", "math", "yes", note),
        *(
            Finding("graders", layer, "yes" if layer in held else "no", "" if layer in held else WITHOUT[layer])
            for layer in sandbox.LAYERS
        ),
    ]


def _extras() -> list[Finding]:
    findings = []
    for extra in EXTRAS:
        there = _version(extra.package) or ("yes" if find_spec(extra.module) else "")
        note = "not used by this version" if not extra.used else "" if there else extra.without
        findings.append(Finding("extras", extra.package, there, note, "" if there else extra.install))
    return findings
