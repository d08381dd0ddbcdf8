"""Liger's own tests of its GRPO loss pass on our class, but for the refusals that docs/kernels.md lists.

Its wheel holds no tests. Where a checkout (or an unpacked sdist) of linkedin/Liger-Kernel lies in PREFIX/peers, they
run as they are, in a process of their own; `--torture --hours` adds their large shapes.
"""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUITE = "test/chunked_loss/test_grpo_loss.py"
OTHERS = "not triton_grpo and not functional and not selective and not reduce_grpo"  # tests of Liger's other functions
REFUSED: dict[str, str] = {}
"""What fails, and with which of our refusals: nothing."""


def checkout() -> Path:
    pytest.importorskip("liger_kernel.chunked_loss", reason="liger-kernel is not installed")
    peers = Path(sys.prefix, "peers")
    for folder in (peers / "Liger-Kernel", *sorted(peers.glob("liger_kernel-*"))):
        if (folder / SUITE).exists():
            return folder
    pytest.skip(f"Liger's tests are not here: git clone https://github.com/linkedin/Liger-Kernel {peers}/Liger-Kernel")


@pytest.mark.parametrize("sizes", ["small", pytest.param("large", marks=pytest.mark.torture)])
def test_ligers_suite_on_our_class(sizes, tmp_path, request):
    if sizes == "large" and not request.config.getoption("--hours"):
        pytest.skip("hours on two cores: --torture --hours")
    results, folder = tmp_path / "results.xml", checkout()
    large = "4096" if sizes == "large" else "not 4096"
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", folder, "-p", "no:cacheprovider", "-q"]
    command += ["-p", "tests.support.liger_suite", f"--junit-xml={results}", SUITE, "-k", f"{large} and {OTHERS}"]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert results.exists(), ended.stdout + ended.stderr

    passed, faults = 0, []
    for case in ElementTree.parse(results).getroot().iter("testcase"):
        name, failure = case.attrib["name"], case.find("failure")
        if failure is None:
            passed += case.find("skipped") is None and case.find("error") is None
            faults += [name] if case.find("error") is not None else []
            continue
        expected = [text for kind, text in REFUSED.items() if name.startswith(kind)]
        if not any(text in failure.attrib["message"] + (failure.text or "") for text in expected):
            faults.append(f"{name}: {failure.attrib['message']}")
    assert not faults, "\n".join(faults)
    assert passed >= 400, f"{passed} passed: Liger's suite has changed"
