"""What the compiler says of the Triton kernels, from a process in which Triton is not interpreted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version

ROWS = r"^(row_stats|dlogits) \S+( softcap T\[N\])?( entropy)?$"
TOKENS = (
    r"^tokens (finish|metrics|(grpo|cispo) none|grpo icepop indexed old rollout dual|cispo icepop indexed old rollout)$"
)
ANCHORED = r"^anchored gemm( no store| slice| bias| rounded)?$|^anchored (gemm odd D|redo|offsets|gradient|sums)"
FULLEST = r"anchored gemm T\[N\]|everything|softcap"

Reports = dict[tuple[str, str], dict[str, int]]
"""(kernel, arch) -> the compiler's numbers"""


def reports(*arguments: str) -> Reports:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "siri_kernels.inspect", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    head, *lines = done.stdout.splitlines()
    columns = head.split()[2:]
    rows = [line.rsplit(maxsplit=len(columns) + 1) for line in lines]
    return {(name, arch): dict(zip(columns, map(int, numbers), strict=True)) for name, arch, *numbers in rows}


def all_reports() -> Reports:
    """Every variant on sm_90; on sm_80 and sm_100 the leanest and the fullest of each kernel."""
    others = "|".join((ROWS, TOKENS, ANCHORED, FULLEST))
    return reports("--arch", "90", "--jobs", "2") | reports("--arch", "80", "100", "--match", others, "--jobs", "2")


def matching(compiled: Reports, pattern: str, *archs: str) -> Reports:
    """Those of some architectures ("sm_90") in whose name the pattern is found."""
    chosen = {key: report for key, report in compiled.items() if key[1] in archs and re.search(pattern, key[0])}
    assert chosen
    return chosen


KNOWN_SPILLS = {
    ("3.6", "anchored gemm everything", "sm_80"): 139,
    ("3.6", "anchored gemm no store", "sm_100"): 5,
    ("3.6", "anchored gemm specialized", "sm_90"): 32,
    ("3.6", "anchored gemm specialized no store", "sm_90"): 46,
    ("3.6", "anchored gemm specialized T[N] ragged", "sm_90"): 206,
    ("3.9", "anchored gemm", "sm_100"): 3,
    ("3.9", "anchored gemm no store", "sm_100"): 4,
    ("3.9", "anchored gemm everything no store", "sm_100"): 21,
    ("3.9", "anchored gemm T[N] ragged", "sm_90"): 18,
    ("3.9", "anchored gemm two-blocks no entropy", "sm_90"): 28,
    ("3.9", "anchored gemm specialized", "sm_90"): 42,
    ("3.9", "anchored gemm specialized T[N] ragged", "sm_90"): 146,
    ("3.7", "anchored gemm specialized no entropy", "sm_90"): 4,  # a plan that nobody gets unasked
    ("3.7", "anchored gemm specialized T[N] ragged", "sm_90"): 50,
    # the loss's kernel, a few launches on [N], since its multiply-adds are written out
    ("3.7", "tokens grpo icepop old rollout", "sm_90"): 2,
    ("3.7", "tokens grpo icepop indexed old rollout", "sm_90"): 2,
}
"""Words that a release of triton spills: (release, variant, architecture); bench/NOTES.md."""


def assert_nothing_spills(key: tuple[str, str], report: dict) -> None:
    known = KNOWN_SPILLS.get((".".join(version("triton").split(".")[:2]), *key), 0)
    assert report["spills"] <= known and (report["stack"] == 0 or known), (key, report)
