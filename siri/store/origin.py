"""Where and from what something was made: the commit of this checkout, the machine, the host."""

import os
import platform
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import siri


def commit() -> str | None:
    """The commit of the checkout that this package runs from, with -dirty if siri/ or kernels/ differ from it; None
    outside of one."""
    root = Path(siri.__file__).parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        if not (root / ".git").exists():  # installed, perhaps within a checkout of something else
            return None
        changed = bool(git("diff", "HEAD", "--", "siri", "kernels"))
        return git("rev-parse", "--short", "HEAD").strip() + "-dirty" * changed
    except (OSError, subprocess.CalledProcessError):
        return None


def machine() -> str:
    """The processor's model and how many of it there are."""
    name = platform.processor() or platform.machine()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def origin() -> dict[str, str]:
    """What config.json says of where a run was started, or last continued: host, time and, in a checkout, its
    commit."""
    about = {
        "commit": commit(),
        "host": platform.node(),
        "time": datetime.now().astimezone().isoformat(" ", "seconds"),
    }
    return {key: value for key, value in about.items() if value}
