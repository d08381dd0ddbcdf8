"""The lock files, read as pip reads them."""

import json
import platform
import re
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent.parent

CHOSEN_BY_PIP = ("torch", "triton", "nvidia-", "cuda-")
"""Not locked where there is a GPU: their build has to fit its driver."""

OWN = {"pip", "siri-rl", "siri-kernels"}
"""Not in a lock: pip comes with Python."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(files: list[str], python: str = platform.python_version()) -> dict[str, str]:
    """{name: version} of what `files` pin for Linux and a Python such as "3.12.4" (a late patch for "3.12")."""
    minor = ".".join(python.split(".")[:2])
    full = python if python != minor else f"{minor}.20"
    here = {"python_version": minor, "python_full_version": full, "sys_platform": "linux", "extra": ""}
    pins = {}
    for file in files:
        for line in (ROOT / file).read_text().splitlines():
            if line and line[0] not in "# ":
                requirement = Requirement(line.removesuffix(" \\"))
                if requirement.marker is None or requirement.marker.evaluate(here):
                    (pin,) = requirement.specifier
                    assert pin.operator == "==" and "*" not in pin.version, f"{file}: {line} is not one version"
                    pins[canonical(requirement.name)] = pin.version
    return pins


def lock_of_this_environment() -> list[str]:
    """The files that make installed this environment from; [] when make did not, elsewhere, or without a lock."""
    try:
        record = json.loads((Path(sys.prefix) / ".ready").read_text())
    except (OSError, ValueError):
        return []
    return record["locks"] if record.get("place") == str(ROOT.resolve()) else []


def outside(files: list[str]) -> list[str]:
    """What is installed here in another version than `files` pin, or that they do not pin at all."""
    pins, strange = locked(files), []
    free = CHOSEN_BY_PIP if files == ["constraints.txt"] else ()
    for package in distributions(path=[sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]):
        name, version = canonical(package.metadata["Name"]), package.version.split("+")[0]
        if name not in OWN and not name.startswith(free) and pins.get(name) != version:
            strange.append(f"{name} {version}, locked: {pins.get(name, 'not at all')}")
    return sorted(set(strange))
