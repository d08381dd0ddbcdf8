"""What a release is made of: sdists and wheels of both packages from a clean checkout, installed elsewhere and used."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import siri_kernels
import yaml
from packaging.requirements import Requirement

import siri

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from setuptools import build_meta as b; print({call}(sys.argv[1]))"
"""The hooks that pip and build call; setuptools is lent by this environment, so that nothing is fetched."""


def run(*command: object, cwd: Path, **environment: str) -> str:
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def tracked() -> list[str]:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if listed.returncode:
        pytest.skip("this is no checkout of git, so what a clone holds is not known")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """What a clone of this state would hold, and nothing that lies about in this one."""
    target = tmp_path_factory.mktemp("clone")
    for name in tracked():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def built(clone, tmp_path_factory) -> dict[str, dict[str, Path]]:
    """{distribution: {"sdist": path, "wheel": path}}; each wheel is built from the unpacked sdist."""
    files: dict[str, dict[str, Path]] = {}
    for name, folder in (("siri_kernels", clone / "kernels"), ("siri_rl", clone)):
        out = tmp_path_factory.mktemp(name)
        run(sys.executable, "-c", BUILD.format(call="b.build_sdist"), out, cwd=folder)
        (sdist,) = out.glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            archive.extractall(out / "unpacked", filter="data")
        (unpacked,) = (out / "unpacked").iterdir()
        run(sys.executable, "-c", BUILD.format(call="b.build_wheel"), out, cwd=unpacked)
        (wheel,) = out.glob("*.whl")
        files[name] = {"sdist": sdist, "wheel": wheel}
    return files


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The Python of an environment that holds both wheels. What they need is lent by a .pth file of this environment's
    packages: editable installs are not in those, so nothing of the repository can be imported."""
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    wheels = [files["wheel"] for files in built.values()]
    options = ("--no-index", "--no-deps", "--ignore-installed", "--quiet", "--disable-pip-version-check")
    run(python, "-m", "pip", "install", *options, *wheels, cwd=folder)
    return python


def test_a_version_stands_in_one_place(built):
    for name, module in (("siri_rl", siri), ("siri_kernels", siri_kernels)):
        assert {path.name.split("-")[1].removesuffix(".tar.gz") for path in built[name].values()} == {
            module.__version__
        }
    for folder in (ROOT, ROOT / "kernels"):
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        assert project["dynamic"] == ["version"] and "version" not in project
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (kernels,) = (Requirement(line) for line in wanted if line.startswith("siri-kernels"))
    assert kernels.specifier.contains(siri_kernels.__version__) and str(kernels.specifier)


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["version"] == siri.__version__
    assert {"title", "message", "authors", "license"} <= citation.keys()
    (paper,) = citation["references"]
    assert paper["url"].endswith("2509.25176") and len(paper["authors"]) == 4


def test_wheels_and_sdists_hold_what_was_written_and_the_licence(clone, built):
    for name, folder, package in (("siri_rl", clone, "siri"), ("siri_kernels", clone / "kernels", "siri_kernels")):
        written = {path.relative_to(folder).as_posix() for path in (folder / package).rglob("*") if path.is_file()}
        written = {path for path in written if "__pycache__" not in path}
        with zipfile.ZipFile(built[name]["wheel"]) as wheel:
            packed = set(wheel.namelist())
        assert {path for path in packed if ".dist-info/" not in path} == written
        assert any(path.endswith(".dist-info/licenses/LICENSE") for path in packed)
        assert f"{package}/py.typed" in packed
        with tarfile.open(built[name]["sdist"]) as archive:
            inside = {path.split("/", 1)[1] for path in archive.getnames() if "/" in path}
        assert written | {"README.md", "LICENSE", "pyproject.toml"} <= inside
    assert (ROOT / "kernels" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_wheels_train_the_demo_and_time_the_kernels_without_the_repository(installed, tmp_path):
    siri_command = installed.parent / "siri"
    where = "import siri, siri_kernels; print(siri.__file__); print(siri_kernels.__file__)"
    site = installed.parents[1]
    assert all(Path(line).is_relative_to(site) for line in run(installed, "-c", where, cwd=tmp_path).splitlines())
    assert run(siri_command, "--version", cwd=tmp_path).strip() == siri.__version__
    small = ("--steps", "2", "--prompts-per-step", "4", "--group-size", "2", "--eval-every", "0", "--run-dir", "first")
    run(siri_command, "train", "demo", *small, cwd=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "first" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1] and (tmp_path / "first" / "report.html").stat().st_size > 10_000
    shape = ("--tokens", "16", "--hidden", "8", "--vocab", "64", "--rounds", "1", "--device", "cpu")
    assert "full fp32 logits" in run(installed, "-m", "siri_kernels.bench", *shape, cwd=tmp_path)


def test_the_types_of_the_wheel_reach_a_user(installed, tmp_path):
    """`py.typed` and annotations: a type checker knows what a call returns, from the installed package alone."""
    checker = Path(sys.executable).with_name("basedpyright")
    if not checker.exists():
        pytest.skip("basedpyright is not installed: pip install -e '.[dev]'")
    (tmp_path / "use.py").write_text(
        "from torch import Tensor\nfrom siri_kernels import linear_grpo_loss\n"
        "def loss(h: Tensor, w: Tensor, y: Tensor, a: Tensor):\n"
        "    reveal_type(linear_grpo_loss(h, w, y, a).loss)\n    return linear_grpo_loss(h, w, y, a, loss=3)\n"
    )
    done = subprocess.run(
        [checker, "--pythonpath", installed, "--outputjson", "use.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    said = [message["message"] for message in json.loads(done.stdout)["generalDiagnostics"]]
    assert any('"Tensor"' in message for message in said), said
    assert any('"loss"' in message or "Literal[3]" in message for message in said), (
        "an argument of a wrong type is seen"
    )
