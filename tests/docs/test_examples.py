"""The drop-in examples run as they are, all in one process to pay for the imports once, and reproduce the trainers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("[!_]*.py"))

SHARED = {"formulas", "padded", "seams", "verl_head"}
"""what adapters share"""

SCRIPT = """
import pathlib, runpy, sys, torch
torch.set_num_threads(1)
for path in map(pathlib.Path, sys.argv[1:]):
    sys.path.insert(0, str(path.parent))
    print("== " + path.stem, flush=True)
    runpy.run_path(str(path), run_name="__main__")
"""


@pytest.fixture(scope="module")
def outputs():
    # TRL asks transformers for what is deprecated there
    environment = {**os.environ, "SIRI_TEST_WARNINGS": ""}
    command = [sys.executable, "-c", SCRIPT, *map(str, EXAMPLES)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "USDT" not in done.stdout + done.stderr and "CPUAllocator" not in done.stderr, "the profiler's noise"
    return dict(part.split("\n", 1) for part in done.stdout.split("== ")[1:])


def test_there_is_one_for_every_adapter():
    adapters = Path(__file__).parents[2] / "kernels" / "siri_kernels" / "integrations"
    names = {path.stem for path in adapters.glob("[!_]*.py")} - SHARED
    assert names == {"verl_plugin", "trl", "verl", "openrlhf", "prime_rl", "transformers", "liger"}
    texts = [path.read_text() for path in EXAMPLES]
    for name in names:
        uses = re.compile(rf"siri_kernels\.integrations\.{name}\b|from siri_kernels\.integrations import {name}\b")
        assert sum(bool(uses.search(text)) for text in texts) == 1, name


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_changed(outputs, path):
    text = outputs[path.stem]
    rows = re.findall(r"(before|after) +peak +([\d.]+) MiB +([\d.]+) ms", text)
    assert [row[0] for row in rows] == ["before", "after"]
    assert all(float(mib) > 0 and float(ms) > 0 for _, mib, ms in rows)
    assert 0 <= float(re.search(r"largest difference (\S+)", text).group(1)) < 2e-5
    if path.stem not in ("liger_import",):  # Liger goes sequence by sequence
        assert float(rows[1][1]) < float(rows[0][1])
    if path.stem in ("verl_actor", "verl_megatron", "openrlhf_actor", "prime_rl_head"):
        assert "published formula" in text or "the real one" in text


def test_the_page_about_the_kernels_keeps_what_it_promises():
    """Links lead somewhere, the tests that it names exist, and both READMEs lead to it."""
    root = Path(__file__).parents[2]
    page = root / "docs" / "kernels.md"
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in link]
    assert len(links) >= 8 and [link for link in links if not (page.parent / link).exists()] == []
    tests = (root / "tests" / "kernels" / "test_integrations_issues.py").read_text()
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) >= 7 and [name for name in named if f"def {name}(" not in tests] == []
    assert "docs/kernels.md" in (root / "README.md").read_text()
    assert "../docs/kernels.md" in (root / "kernels" / "README.md").read_text()
    for module in re.findall(r"siri_kernels\.integrations\.(\w+)", text):
        assert (root / "kernels" / "siri_kernels" / "integrations" / f"{module}.py").exists()
