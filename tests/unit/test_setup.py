"""`make .venv` with a real pip and a tiny project in a folder of wheels: once, again, interrupted, without an index,
with a wheel that is not what the lock says."""

import hashlib
import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

BACKEND = """
import tomllib
from pathlib import Path
from wheels import write_wheel

def build_editable(folder, config_settings=None, metadata_directory=None):
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    return write_wheel(Path(folder), project["name"], "1.0", project.get("dependencies", []),
                       project.get("optional-dependencies", {})).name

def build_wheel(folder, config_settings=None, metadata_directory=None):
    return build_editable(folder)
"""


def write_wheel(folder, name, version, needs=(), extras=None):
    """A wheel with one empty module."""
    module = name.replace("-", "_")
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {need}" for need in needs)]
    for extra, wanted in (extras or {}).items():
        lines += [f"Provides-Extra: {extra}", *(f"Requires-Dist: {need}; extra == '{extra}'" for need in wanted)]
    info = f"{module}-{version}.dist-info"
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{module}.py", "")
        wheel.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def pin(checkout, name, version):
    """A line of a lock with the hash of the wheel."""
    wheel = checkout / "wheels" / f"{name}-{version}-py3-none-any.whl"
    return f"{name}=={version} \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


def project(name, needs, more=""):
    """A pyproject.toml with the tables that the set-up reads."""
    return textwrap.dedent(f"""
        [build-system]
        requires = ["setuptools"]
        build-backend = "backend"
        backend-path = ["."]
        [project]
        name = "{name}"
        version = "1.0"
        dependencies = {json.dumps(needs)}
        [tool.setuptools]
    """) + textwrap.dedent(more)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with this repository's Makefile and .ci, and a small project whose wheels lie beside it."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "Makefile", root)
    shutil.copytree(ROOT / ".ci", root / ".ci")
    wheels = root / "wheels"
    wheels.mkdir()
    for name, version in (
        ("setuptools", "81.0.0"),
        ("needed", "1.0"),
        ("needed", "2.0"),
        ("checker", "1.0"),
        ("fuzzer", "1.0"),
        ("peer", "3.0"),
        ("torch", "2.0"),
        ("nvidia-library", "1.0"),
    ):
        write_wheel(wheels, name, version, ["nvidia-library"] if name == "torch" else [])
    groups = """
        [project.optional-dependencies]
        dev = ["checker"]
        torture = ["fuzzer>=1"]
        [dependency-groups]
        peers = ["peer==3.0"]
        tools = []
    """
    (root / "kernels").mkdir()
    (root / "kernels" / "pyproject.toml").write_text(project("siri-kernels", []))
    (root / "pyproject.toml").write_text(project("siri-rl", ["needed"], groups))
    for folder in (root, root / "kernels"):
        (folder / "backend.py").write_text(BACKEND)
        source = Path(__file__).read_text()
        begin, end = source.index("def write_wheel"), source.index("\n\ndef project")
        (folder / "wheels.py").write_text("import zipfile\n\n" + source[begin:end])
    rest = [("setuptools", "81.0.0"), ("needed", "1.0"), ("checker", "1.0"), ("fuzzer", "1.0")]
    of_torch = [("torch", "2.0"), ("nvidia_library", "1.0")]
    for file, size, pinned in (
        ("", 7, rest),
        ("-cpu", 1500, of_torch),
        ("-tools", 1, [("peer", "3.0")]),
        ("-vllm", 1, []),
    ):
        lines = [f"# download: {size} MB on Linux\n", *(pin(root, *each) for each in pinned)]
        (root / f"constraints{file}.txt").write_text("".join(lines).replace("nvidia_", "nvidia-"))
    return root


def environment(checkout, **settings):
    """Neither this machine's pip settings nor those of a make above; wheels from the folder alone."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "MAKE", "MFLAGS", "PYTHON"))
    }
    settings = settings or {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(checkout / "wheels")}
    return kept | {"PIP_CONFIG_FILE": os.devnull, "PYTHON": sys.executable} | settings


def make(checkout, **settings):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(["make", ".venv"], cwd=checkout, env=environment(checkout, **settings), **options)


def installed(checkout):
    command = [checkout / ".venv" / "bin" / "python", "-m", "pip", "list", "--format", "json"]
    listed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {package["name"]: package["version"] for package in listed}


@pytest.fixture(scope="module")
def made(checkout):
    """What two calls of make at the same time wrote, on a checkout without an environment."""
    both = [make(checkout) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    return [out for out, _ in outputs]


def test_the_environment_is_what_the_lock_says(checkout, made):
    versions = installed(checkout)
    assert (
        versions["needed"] == "1.0"
        and versions["checker"] == "1.0"
        and "siri-rl" in versions
        and "siri-kernels" in versions
    )
    assert versions["torch"] == "2.0" and "nvidia-library" in versions and "fuzzer" not in versions
    assert (checkout / ".venv" / "peers" / "peer.py").exists()
    assert json.loads((checkout / ".venv" / ".ready").read_text())["locks"][0] == "constraints.txt"


def test_the_set_up_says_what_it_does_and_two_at_once_wait_for_each_other(made):
    first, second = sorted(made, key=len, reverse=True)
    assert "with an empty cache about 7 MB to download and torch with triton (1.5 GB with CUDA" in first
    assert "what the lock names" in first and "torch and what it needs of CUDA" in first
    assert ".venv: ready after " in first
    assert "waiting" in second and "ready" not in second


def test_a_second_call_does_nothing_in_less_than_a_second(checkout, made):
    before = (checkout / ".venv" / ".ready").stat().st_mtime_ns
    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = make(checkout)
    assert process.communicate(timeout=60) == ("", "") and process.returncode == 0
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    # processor time: the clock on the wall depends on who else is using the machine
    assert end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime < 1
    assert (checkout / ".venv" / ".ready").stat().st_mtime_ns == before


@pytest.fixture
def script(checkout, monkeypatch):
    spec = importlib.util.spec_from_file_location("environment", checkout / ".ci" / "environment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert checkout.resolve() == module.ROOT
    return module


@pytest.mark.parametrize(
    "file",
    ["pyproject.toml", "kernels/pyproject.toml", "constraints.txt", "constraints-cpu.txt", "hash", "Python", "place"],
)
def test_what_an_environment_is_made_from_is_in_its_key(checkout, script, file, monkeypatch, tmp_path):
    before = script.key(".venv")
    if file == "Python":
        monkeypatch.setattr(script, "version", lambda: "3.12.99")
    elif file == "place":
        for name in ("pyproject.toml", "kernels", "constraints.txt", "constraints-cpu.txt", "constraints-tools.txt"):
            (tmp_path / name).symlink_to(checkout / name)
        monkeypatch.setattr(script, "ROOT", tmp_path)
    else:
        hashes = file == "hash"
        file = "constraints.txt" if hashes else file
        text = (checkout / file).read_text()
        changed = text.replace("sha256:", "sha256:0") if hashes else text + "other==1.0\n"
        if file.endswith("toml"):
            changed = text.replace("version", 'description = "other"\nversion')
        (checkout / file).write_text(changed)
        after = script.key(".venv")
        (checkout / file).write_text(text)
        assert after != before and script.key(".venv") == before
        return
    assert script.key(".venv") != before


def test_settings_of_tools_are_not_in_the_key(checkout, script):
    before, text = script.key(".venv"), (checkout / "pyproject.toml").read_text()
    (checkout / "pyproject.toml").write_text(text + "[tool.ruff]\nline-length = 99\n")
    after = script.key(".venv")
    (checkout / "pyproject.toml").write_text(text)
    assert after == before


def test_a_killed_set_up_is_not_taken_for_ready_and_without_an_index_there_is_one_line(checkout, made):
    """A changed lock makes the environment anew; the kill hits pip at work; then no index answers; then all is well."""
    lock = checkout / "constraints.txt"
    lock.write_text(lock.read_text().replace(pin(checkout, "needed", "1.0"), pin(checkout, "needed", "2.0")))
    process = subprocess.Popen(
        ["make", ".venv"],
        cwd=checkout,
        env=environment(checkout),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert "have changed, made anew" in process.stdout.readline()
    assert "what the lock names" in process.stdout.readline()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert (checkout / ".venv").exists() and not (checkout / ".venv" / ".ready").exists()

    process = make(checkout, PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="0")
    out, err = process.communicate(timeout=120)
    assert process.returncode != 0 and "an earlier set-up did not finish" in out
    (line,) = [line for line in err.splitlines() if "***" not in line]  # make's own last line has them
    assert "no package index answers" in line and "PIP_INDEX_URL" in line and ".venv/install.log" in line
    assert "setuptools" in (checkout / ".venv" / "install.log").read_text()

    out, err = make(checkout).communicate(timeout=300)
    assert "ready after" in out and err == ""
    assert installed(checkout)["needed"] == "2.0"


def test_a_wheel_that_is_not_what_the_lock_says_is_refused_in_one_line(checkout, made):
    wheel = checkout / "wheels" / "checker-1.0-py3-none-any.whl"
    good, lock = wheel.read_bytes(), checkout / "constraints.txt"
    before = lock.read_text()
    with zipfile.ZipFile(wheel, "a") as changed:
        changed.writestr("checker_too.py", "")
    lock.write_text(before + pin(checkout, "peer", "3.0"))  # so that there is something to do
    out, err = make(checkout).communicate(timeout=300)
    (line,) = [line for line in err.splitlines() if "***" not in line]
    assert "checker==1.0 as the index has it is not what the lock says" in line and "make lock" in line
    assert not (checkout / ".venv" / ".ready").exists() and "checker" not in installed(checkout)
    wheel.write_bytes(good)
    lock.write_text(before)
    out, err = make(checkout).communicate(timeout=300)
    assert "ready after" in out and err == "" and installed(checkout)["checker"] == "1.0"


def test_what_the_lock_lacks_is_named_in_one_line(checkout, made):
    lock = checkout / "constraints.txt"
    before = lock.read_text()
    lock.write_text(before.replace(pin(checkout, "needed", "2.0"), "").replace(pin(checkout, "needed", "1.0"), ""))
    _, err = make(checkout).communicate(timeout=300)
    lock.write_text(before)
    (line,) = [line for line in err.splitlines() if "***" not in line]
    assert "siri-rl 1.0 requires needed, which is not installed" in line
    assert "ready after" in make(checkout).communicate(timeout=300)[0]


def test_the_build_of_torch_for_the_cpu_is_taken_where_there_is_one(checkout, made):
    wheel = write_wheel(checkout / "wheels", "torch", "2.0+cpu")
    lock = checkout / "constraints-cpu.txt"
    before = lock.read_text()
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lock.write_text(before.replace("torch==2.0 \\\n", f"torch==2.0 \\\n    --hash=sha256:{digest} \\\n"))
    out, err = make(checkout).communicate(timeout=300)
    wheel.unlink()
    versions = installed(checkout)
    lock.write_text(before)
    assert "ready after" in out and err == "" and "CUDA" not in out.partition("Python")[2].partition("\n")[2]
    assert versions["torch"] == "2.0+cpu" and "nvidia-library" not in versions
    assert "ready after" in make(checkout).communicate(timeout=300)[0]


def test_an_extra_comes_from_the_lock(checkout, made):
    command = [sys.executable, "-S", checkout / ".ci" / "environment.py", ".venv", "torture"]
    for _ in range(2):
        done = subprocess.run(command, env=environment(checkout), capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == "" and installed(checkout)["fuzzer"] == "1.0"


def test_a_link_to_another_environment_does_not_cost_that_its_files(script, tmp_path):
    """venv empties what the name leads to, and then makes nothing through a link."""
    (tmp_path / "file").touch()
    place = tmp_path / "checkout"
    place.mkdir()
    (place / ".venv").symlink_to(tmp_path)
    script.ROOT = place
    script.key = lambda name: "another place's"
    with pytest.raises(script.NotMade, match=r"^\.venv is a link to .*; remove the link, then call make again$"):
        script.ensure(".venv")
    assert (tmp_path / "file").exists()


def test_a_python_that_does_not_do_is_one_line(checkout, tmp_path):
    (tmp_path / "python3.6").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python3.6").chmod(0o755)
    out, err = make(checkout, PYTHON=str(tmp_path / "python3.6")).communicate(timeout=60)
    (line,) = [line for line in err.splitlines() if "***" not in line]
    assert out == "" and line == "make: no Python 3.11 to 3.13 found; install one or set PYTHON=..."


def test_the_row_of_a_run_at_one_end_of_the_ranges(tmp_path):
    spec = importlib.util.spec_from_file_location("range_end", ROOT / ".ci" / "range_end.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    python = tmp_path / ".venv-oldest" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    results = tmp_path / "results.xml"
    counts = 'tests="90" failures="3" errors="2" skipped="5" time="601.2"'
    results.write_text(f"<testsuites><testsuite {counts}></testsuite></testsuites>")
    cells = [cell.strip() for cell in module.row(tmp_path / ".venv-oldest", results).strip("|").split("|")]
    assert cells[1] == "oldest" and f"pytest {pytest.__version__}" in cells[2]
    assert cells[3:] == ["80", "5", "5", "10", ""]
