"""The result files of bench/results: one JSON for each machine and day, which every part of bench/gpu.sh adds to.

device, versions, commit, rows of {op, impl, size, ms, ratio_to_gemm, extra_bytes, max_error, ...}, goals of {id, value,
threshold, better, met}. A new file carries forward what earlier files of the same machine measured and this run did
not; every row and goal keeps the commit, the versions and the driver that measured it.
"""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

HERE = Path(__file__).parent
PACKAGES = ("torch", "triton", "transformers", "trl", "liger-kernel", "liger-cute-kernels", "cut-cross-entropy")
PACKAGES += ("quack-kernels", "nvidia-cutlass-dsl", "cuda-tile", "fla-core", "siri-kernels")


def device_name() -> str:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu {platform.machine()}"
    return "-".join(name.lower().replace("(", " ").replace(")", " ").split())


def processor() -> str:
    """Its model, where Linux says so."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def default_path() -> Path:
    return HERE / "results" / f"{device_name()}-{datetime.date.today().isoformat()}.json"


@functools.cache
def versions() -> dict[str, str | None]:
    by_package: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            by_package[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            by_package[package] = None
    return by_package | ({"driver": driver()} if torch.cuda.is_available() else {})


def driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None


@functools.cache
def commit() -> str | None:
    """Of the checkout; BENCH_COMMIT says it where a copy without a repository runs."""
    if given := os.environ.get("BENCH_COMMIT"):
        return given
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE)
    except OSError:
        return None
    return done.stdout.strip() or None


def goal(name: str, value: float | None, threshold: float, better: str) -> dict:
    """One goal; value None = this run has no answer. A value that is no number is a missed goal, and null in JSON."""
    met = None if value is None else (value <= threshold if better == "lower" else value >= threshold)
    shown = value if value is None or math.isfinite(value) else None
    return {"id": name, "value": shown, "threshold": threshold, "better": better, "met": met}


def status(entry: dict) -> str:
    """met, missed by a factor, or unmeasured."""
    if entry["met"] is None:
        return "unmeasured"
    if entry["met"]:
        return "met"
    value, threshold = entry["value"], entry["threshold"]
    if not value or not threshold:
        return "MISSED"
    return f"MISSED by {value / threshold if entry['better'] == 'lower' else threshold / value:.2f}x"


def write(path: Path, rows: Sequence[dict], goals: Sequence[dict]) -> None:
    """Add to `path` (made when missing), carrying earlier rows and goals forward."""
    stamp = {"commit": commit(), "versions": versions()}
    record = {
        "device": device_name(),
        **stamp,
        "rows": [{**row, **stamp} for row in rows],
        "goals": [{**entry, **stamp} for entry in goals],
    }
    earlier = [path] if path.exists() else sorted(path.parent.glob(f"{device_name()}-*.json"))[-1:]
    for file in earlier:
        old = json.loads(file.read_text())
        for entry in (*old["rows"], *old["goals"]):  # files of before rows had versions
            entry.setdefault("versions", old["versions"])
        key = lambda row: (row["op"], row["impl"], row["size"])  # noqa: E731
        fresh = {key(row) for row in record["rows"]}
        record["rows"] += [row for row in old["rows"] if key(row) not in fresh]
        answered = {entry["id"] for entry in record["goals"] if entry["met"] is not None}
        kept = [entry for entry in old["goals"] if entry["id"] not in answered]
        names = {entry["id"] for entry in kept}
        record["goals"] = [entry for entry in record["goals"] if entry["id"] not in names] + kept
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")


def show(rows: Sequence[dict], goals: Sequence[dict]) -> None:
    for row in rows:
        ratio = "" if row["ratio_to_gemm"] is None else f"{row['ratio_to_gemm']:8.2f} x GEMM"
        memory = "" if row["extra_bytes"] is None else f"{row['extra_bytes'] / 1e9:9.2f} GB"
        print(f"{row['op']:18}{row['impl']:28}{row['size']:14}{row['ms']:10.2f} ms{ratio}{memory}")
    for entry in goals:
        shown = "-" if entry["value"] is None else f"{entry['value']:.3g}"
        print(f"{entry['id']:34}{shown:>12} {entry['better']} than {entry['threshold']}: {status(entry)}")
