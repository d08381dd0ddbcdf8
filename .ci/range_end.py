"""Run the suite at one end of the declared ranges: `python .ci/range_end.py .venv-newest [pytest's arguments]`.

Prints the row that belongs into docs/compatibility.md. The exit code is pytest's.
"""

import datetime
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent

NAMED = ("torch", "triton", "transformers", "datasets", "numpy", "pyarrow", "tyro", "liger-kernel", "trl", "pytest")
"""The packages that a row names."""


def main(arguments: list[str]) -> int:
    folder, results = ROOT / arguments[0], ROOT / arguments[0] / "results.xml"
    results.unlink(missing_ok=True)
    command = [folder / "bin" / "python", "-m", "pytest", f"--junit-xml={results}", *arguments[1:]]
    code = subprocess.run(command, cwd=ROOT).returncode
    if results.exists():
        print(row(folder, results))
    return code


def row(folder: Path, results: Path) -> str:
    """| date | end | versions | passed | failed | skipped | minutes | why |, the last for whoever puts it there."""
    suite = ElementTree.parse(results).getroot().find("testsuite").attrib
    failed, skipped = int(suite["failures"]) + int(suite["errors"]), int(suite["skipped"])
    passed = int(suite["tests"]) - failed - skipped
    code = "import sys, importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
    command = [folder / "bin" / "python", "-c", code, *NAMED]
    versions = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    end = folder.name.removeprefix(".venv-")
    today, minutes = datetime.date.today(), float(suite["time"]) / 60
    return f"| {today} | {end} | {versions} | {passed} | {failed} | {skipped} | {minutes:.0f} | |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
