"""The paper's table beside ours: `siri report --paper base.json low.json high.json` on results of `siri eval --out`.

Figures of arXiv 2509.25176, table 1: accuracy in percent (pass@1, the mean of 64 samples) and mean response tokens, at
most 16,384 new tokens, temperature 0.6. The base is part of it, so that a user can first see whether the base scores
here what it scores there.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from siri.errors import InputError
from siri.store.jsonl import efficiency_score

BENCHMARKS = {
    "AIME24": ("HuggingFaceH4/aime_2024@train", r"aime(20)?24", 30),
    "AIME25": ("math-ai/aime25@test", r"aime(20)?25", 30),
    "AMC": ("AI-MO/aimo-validation-amc@train", r"amc", 83),
    "MATH500": ("HuggingFaceH4/MATH-500@test", r"math500", 500),
}
"""Name in the paper, a hub data set that holds it, what its file name looks like, and its number of problems."""
PROTOCOL = {"samples": 64, "cap": 16384, "temperature": 0.6}

Figures = dict[str, tuple[float, float]]

TABLE: dict[str, dict[str, Figures]] = {
    size: {
        model: dict(zip(BENCHMARKS, zip(figures[::2], figures[1::2], strict=True), strict=True))
        for model, figures in rows.items()
    }
    for size, rows in {
        "1.5b": {
            "base": (28.2, 12333, 21.5, 12264, 61.8, 8449, 82.4, 4745),
            "DeepScaleR-Preview": (41.1, 8585, 29.0, 8348, 73.9, 5515, 87.6, 3054),
            "DAPO 8K then 16K": (42.8, 10453, 30.9, 10352, 74.6, 7339, 88.1, 4223),
            "AdaptThink": (31.0, 6679, 22.3, 6800, 63.3, 3498, 82.0, 1782),
            "SIRI-low": (40.4, 7093, 29.6, 6509, 74.6, 4700, 87.7, 2881),
            "SIRI-high": (43.6, 10049, 32.2, 9739, 75.9, 7396, 88.4, 4633),
        },
        "7b": {
            "base": (53.5, 10306, 38.3, 11114, 79.4, 6740, 90.2, 3674),
            "DAPO 8K then 16K": (57.6, 9983, 40.8, 10705, 84.5, 6508, 92.5, 3658),
            "AdaptThink": (55.6, 8546, 37.0, 9556, 80.1, 4778, 90.6, 1868),
            "SIRI-low": (56.1, 6122, 41.5, 6386, 85.8, 4015, 93.5, 2452),
            "SIRI-high": (57.1, 8585, 45.4, 9106, 86.7, 5773, 93.7, 3378),
        },
    }.items()
}
SCORES = {
    "1.5b": {"base": 0.0, "DeepScaleR-Preview": 0.39, "DAPO 8K then 16K": 0.36, "AdaptThink": 0.08}
    | {"SIRI-low": 0.47, "SIRI-high": 0.38},
    "7b": {"base": 0.0, "DAPO 8K then 16K": 0.06, "AdaptThink": 0.02, "SIRI-low": 0.10, "SIRI-high": 0.11},
}
"""The efficiency scores that the paper prints."""


@dataclass(frozen=True)
class PaperOptions:
    size: Literal["auto", "1.5b", "7b"] = "auto"
    """Which half of the paper's table; auto = by the name of the base model."""


@dataclass(frozen=True)
class Measured:
    """One benchmark of one of our models."""

    accuracy: float
    """Percent."""
    tokens: float
    error: float | None
    """Standard error of the accuracy from sampling alone, the problems being fixed; None with one sample."""
    problems: int


@dataclass(frozen=True)
class Result:
    """One result file of `siri eval`."""

    label: str
    """Row of the paper that it stands beside, or the file's name."""
    model: str
    protocol: dict[str, float]
    figures: dict[str, Measured]


def expand(sources: Sequence[str]) -> tuple[str, ...]:
    """`sources` with the word `paper` replaced by the hub names of the paper's four benchmarks."""
    hub = [name for name, _, _ in BENCHMARKS.values()]
    return tuple(name for source in sources for name in (hub if source == "paper" else [source]))


def benchmark_of(source: str) -> str | None:
    """The paper's name of a benchmark, by the name of its file or data set; None for another."""
    plain = re.sub(r"[^a-z0-9]", "", source.partition("@")[0].rpartition("/")[2].lower())
    return next((name for name, (_, pattern, _) in BENCHMARKS.items() if re.search(pattern, plain)), None)


def read_result(path: str) -> Result:
    """A result file of `siri eval --out`. InputError names what is wrong with it."""
    try:
        row = json.loads(Path(path).read_bytes())
        figures = {}
        for source, benchmark in row["benchmarks"].items():
            if name := benchmark_of(source):
                twice, once = benchmark["pass_at_k"].get("2"), benchmark["accuracy"]
                # the mean of p (1 - p) over problems is pass@2 - pass@1
                count = benchmark["problems"] * benchmark["samples"]
                error = None if twice is None else 100 * math.sqrt(max(twice - once, 0) / count)
                figures[name] = Measured(100 * once, benchmark["tokens_mean"], error, benchmark["problems"])
        protocol = {key: row[key] for key in PROTOCOL}
        result = Result(_label(Path(path).stem), row["model"], protocol, figures)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a result file of siri eval --out ({type(error).__name__}: {error})") from None
    if not figures:
        known = ", ".join(BENCHMARKS)
        raise InputError(f"{path}: none of its benchmarks is the paper's; their file names must tell them as {known}")
    return result


def _label(stem: str) -> str:
    plain = stem.lower()
    for word in ("base", "low", "high"):
        if word in plain:
            return word if word == "base" else f"SIRI-{word}"
    return stem


def size_of(results: Sequence[Result]) -> str:
    """Half of the table by the models' names: 7b if one says so, else 1.5b."""
    return "7b" if any(re.search(r"(?<![\d.])7b", result.model.lower()) for result in results) else "1.5b"


def score_of(result: Result, base: Result | None) -> float | None:
    """Efficiency score over the benchmarks of both; None without a base."""
    if base is None:
        return None
    shared = [name for name in result.figures if name in base.figures]
    pairs = [
        {name: (each.figures[name].accuracy, each.figures[name].tokens) for name in shared} for each in (result, base)
    ]
    return efficiency_score(*pairs) if shared else None


def remarks(results: Sequence[Result]) -> list[str]:
    """What keeps ours from being comparable with the paper's, in a line each."""
    lines = []
    for result in results:
        differing = [
            f"{key} {result.protocol[key]}, not {value}"
            for key, value in PROTOCOL.items()
            if result.protocol[key] != value
        ]
        if differing:
            lines.append(f"{result.label}: measured with {'; '.join(differing)}")
        missing = [name for name in BENCHMARKS if name not in result.figures]
        if missing:
            lines.append(f"{result.label}: {', '.join(missing)} not measured")
        for name, measured in result.figures.items():
            if measured.problems != BENCHMARKS[name][2]:
                lines.append(f"{result.label}: {name} has {measured.problems} problems, not {BENCHMARKS[name][2]}")
    if not any(result.label == "base" for result in results):
        lines.append("no base among the results (a file with base in its name): no score, and no check that it agrees")
    return lines


def base_verdict(results: Sequence[Result], size: str) -> str:
    """Whether our base is the paper's, by sampling errors: a difference beyond two of them (of two such measurements)
    means another set-up, not chance. Empty without a base."""
    base = next((result for result in results if result.label == "base"), None)
    if base is None:
        return ""
    apart = []
    for name, measured in base.figures.items():
        gap = measured.accuracy - TABLE[size]["base"][name][0]
        if (
            measured.error is not None and abs(gap) > 2 * math.sqrt(2) * measured.error + 0.05
        ):  # 0.05: the paper's rounding
            apart.append(
                f"{name} by {gap:+.1f} points (sampling error of a difference {math.sqrt(2) * measured.error:.1f})"
            )
    if apart:
        return (
            f"the base differs from the paper's: {', '.join(apart)}; look at template, data and engine before training"
        )
    return "the base agrees with the paper's within two sampling errors"


def print_paper(paths: Sequence[str], size: Literal["auto", "1.5b", "7b"] = "auto") -> None:
    """Print ours beside the paper's: a line for each model and source, accuracy and tokens of each benchmark, score.
    size: half of the paper's table; auto = by the name of the base model."""
    from rich.console import Console
    from rich.table import Table

    results = [read_result(path) for path in paths]
    half = size_of(results) if size == "auto" else size
    table = Table(title=f"arXiv 2509.25176, table 1, {half.upper()}: accuracy in percent / mean tokens")
    for heading in ("model", "source", *BENCHMARKS, "score"):
        table.add_column(heading, justify="left" if heading in ("model", "source") else "right")
    base = next((result for result in results if result.label == "base"), None)
    for label in [*TABLE[half], *(result.label for result in results if result.label not in TABLE[half])]:
        ours = [result for result in results if result.label == label]
        if label in TABLE[half]:
            theirs = [f"{accuracy:.1f} / {tokens:,}" for accuracy, tokens in TABLE[half][label].values()]
            table.add_row(label, "paper", *theirs, f"{SCORES[half][label]:.2f}", end_section=not ours)
        for result in ours:
            score = score_of(result, base)
            shown = [_shown(result.figures.get(name)) for name in BENCHMARKS]
            table.add_row(
                label, "here", *shown, "-" if score is None else f"{score:.2f}", end_section=result is ours[-1]
            )
    console = Console()
    console.print(table)
    for line in (*remarks(results), base_verdict(results, half)):
        if line:
            console.print(line, markup=False, highlight=False)


def _shown(measured: Measured | None) -> str:
    if measured is None:
        return "-"
    error = "" if measured.error is None else f" ± {measured.error:.1f}"
    return f"{measured.accuracy:.1f}{error} / {measured.tokens:,.0f}"


def check_scores() -> Mapping[str, Mapping[str, Any]]:
    """The scores that follow from the printed accuracies and tokens, by size and model: within .01 of SCORES."""
    return {
        size: {model: efficiency_score(figures, rows["base"]) for model, figures in rows.items()}
        for size, rows in TABLE.items()
    }
