"""A training step beside another busy process: both measured in one run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from siri.runtime.threads import cores

BENCH = Path(__file__).parents[3] / "bench" / "busy_step.py"
SMALL = ["--prompts-per-step", "8", "--group-size", "8"]


@pytest.mark.quiet
@pytest.mark.skipif(cores() < 2, reason="on one core a step beside a busy process takes twice as long, whatever waits")
def test_a_step_beside_a_busy_process_takes_at_most_twice_as_long(tmp_path):
    """As siri starts by itself, with no word about threads from outside; the median of steps that take turns, alone
    and beside as many busy processes as leave one core. Where others keep the cores busy all the time, two spinning
    processes say, even a process that only counts takes longer: there what a step waited for a core is left out, and
    what it spun, computed and slept for has to hold."""
    out = tmp_path / "figures.json"
    command = [sys.executable, str(BENCH), "--rounds", "7", "--ways", "chosen", "--json", str(out), "--", *SMALL]
    paths = os.pathsep.join([str(BENCH.parents[1]), str(BENCH.parents[1] / "kernels")])
    subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=True, stdout=subprocess.DEVNULL)
    chosen = json.loads(out.read_text())["chosen"]
    assert chosen["threads"] == 1
    assert chosen["net_ratios"][str(cores() - 1)] <= 2, chosen
    if chosen["idle_cores_alone"] > cores() - 1.5:  # nobody else takes half a core
        assert chosen["ratios"][str(cores() - 1)] <= 2, chosen
