"""`siri bench`: two benchmark records of `bench/results` side by side, or one of them as a picture.

A record is what `bench/gpu.sh kernels` writes: device, versions, commit, rows of {op, impl, size, ms, ratio_to_gemm,
extra_bytes, max_error} and goals of {id, value, threshold, better, met}. rich and matplotlib are imported on first use.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siri.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table
    from rich.text import Text

WHERE = """\
make bench                            times every kernel and every installed peer on this machine (pytest-benchmark)
bench/gpu.sh kernels                  the table of goals on a GPU (tiny sizes on a CPU), written to bench/results/
bench/gpu.sh train                    a training step, packed and padded (trl: TRL's, with our head and without)
bench/gpu.sh tests                    the GPU tests
siri bench --compare A.json B.json    two results side by side, regressions marked
siri bench calibrate RECIPE           measures the packing plan's cost ratio on this machine
siri bench --plot A.json              draws the ratios to the floor; --out FILE.png says where
"""

SLACK = {"ratio_to_gemm": 1.05, "extra_bytes": 1.05, "max_error": 1.5}
"""How many times the earlier figure a later one may reach before it is a regression. Milliseconds alone are none: they
move with power and clocks, and the GEMMs that the ratio divides by move with them."""
FIGURES = ("ms", *SLACK)


@dataclass(frozen=True)
class BenchOptions:
    """What is compared or drawn."""

    compare: tuple[str, ...] = ()
    """Two results, the earlier one first."""
    plot: str = ""
    """A result to draw."""
    out: str = ""
    """The picture; default: beside the result, .png instead of .json."""

    def __post_init__(self) -> None:
        if self.compare and len(self.compare) != 2:
            raise InputError(f"compare takes two results, got {len(self.compare)}: siri bench --compare A.json B.json")
        if self.compare and self.plot:
            raise InputError("compare and plot exclude each other; call siri bench once for each")
        if self.out and not self.plot:
            raise InputError("out goes with plot: siri bench --plot A.json --out FILE.png")
        if self.out and Path(self.out).suffix.lower() != ".png":
            raise InputError(f"out is {self.out}; the picture is a PNG, so the name has to end in .png")


@dataclass(frozen=True)
class Record:
    """One result file; rows and goals by what they measure, in the file's order."""

    name: str
    device: str
    commit: str
    versions: dict[str, Any]
    rows: dict[tuple[str, str, str], dict[str, Any]]
    """(op, size, impl) -> the row"""
    goals: dict[str, dict[str, Any]]


def read_record(path: str | Path) -> Record:
    """The benchmark record in a file.

    Raises:
        InputError: no such file, not JSON, or not such a record (names the file and what is wrong).
    """
    path = Path(path)
    wrong = f"{path} is not a result of bench/gpu.sh kernels"
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); results lie in bench/results") from None
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); run bench/gpu.sh kernels again") from None
    if not isinstance(data, dict) or not isinstance(data.get("device"), str):
        raise InputError(f"{wrong}: it names no device")
    versions = data.get("versions") or {}
    if not isinstance(versions, dict):
        raise InputError(f"{wrong}: versions is not a table")
    rows, goals = {}, {}
    for i, row in enumerate(_objects(data, "rows", wrong)):
        _check(row, ("op", "impl", "size"), FIGURES, f"{wrong}: row {i}")
        rows[row["op"], row["size"], row["impl"]] = row
    for i, goal in enumerate(_objects(data, "goals", wrong)):
        _check(goal, ("id", "better"), ("value", "threshold"), f"{wrong}: goal {i}")
        if goal.get("met") not in (None, True, False) or goal["better"] not in ("lower", "higher"):
            raise InputError(f"{wrong}: goal {i} says neither met nor missed, or neither lower nor higher")
        goals[goal["id"]] = goal
    commit = data.get("commit")
    return Record(path.name, data["device"], commit if isinstance(commit, str) else "", versions, rows, goals)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _objects(data: dict, key: str, wrong: str) -> list[dict[str, Any]]:
    objects = data.get(key)
    if not isinstance(objects, list) or not all(isinstance(item, dict) for item in objects):
        raise InputError(f"{wrong}: {key} is not a list of objects")
    return objects


def _check(row: dict, texts: Sequence[str], numbers: Sequence[str], where: str) -> None:
    for key in texts:
        if not isinstance(row.get(key), str):
            raise InputError(f"{where} has no {key}")
    for key in numbers:
        value = row.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InputError(f"{where} has {value!r} for {key}; it must be a number or null")


# --- side by side ---


def regressions(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """The figures of a row that got worse beyond SLACK; a figure that is missing on one side is not compared."""
    worse = set()
    for key, slack in SLACK.items():
        old, new = before.get(key), after.get(key)
        if old is not None and new is not None and new > old * slack:
            worse.add(key)
    return worse


def comparison_tables(first: Record, second: Record) -> list["Table | Text"]:
    """What `siri bench --compare` prints: the rows, the goals, and one line with the verdict."""
    from rich.table import Table
    from rich.text import Text

    headings = {"ms": "ms", "ratio_to_gemm": "x GEMM", "extra_bytes": "extra GB", "max_error": "max error"}
    table = Table(title=f"{first.name} \N{RIGHTWARDS ARROW} {second.name}", caption=_caption(first, second))
    for heading in ("op", "size", "impl"):
        table.add_column(heading, overflow="fold")
    for heading in headings.values():
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column("", no_wrap=True)
    count, last = 0, None
    for key in [*first.rows, *(key for key in second.rows if key not in first.rows)]:
        op, size, impl = key
        if last is not None and last != (op, size):
            table.add_section()
        last = (op, size)
        before, after = first.rows.get(key), second.rows.get(key)
        worse = regressions(before, after) if before and after else set()
        count += bool(worse)
        cells = [_pair(name, before, after, name in worse) for name in FIGURES]
        mark = "only in A" if after is None else "only in B" if before is None else "regression" if worse else ""
        table.add_row(op, size, impl, *cells, Text(mark, style="bold red" if worse else "dim"))
    parts: list[Table | Text] = [table]
    names = [name for name in {**first.goals, **second.goals} if _verdicts(name, first, second) != (None, None)]
    if names:
        goals = Table(title="Goals")
        for heading in ("goal", "A", "B", "threshold", ""):
            goals.add_column(heading, justify="left" if heading in ("goal", "") else "right", overflow="fold")
        for name in names:
            goals.add_row(name, *_goal_cells(name, first, second))
        parts.append(goals)
    met = [sum(record.goals[name].get("met") is True for name in record.goals) for record in (first, second)]
    measured = [sum(goal.get("met") is not None for goal in record.goals.values()) for record in (first, second)]
    shared = sum(key in second.rows for key in first.rows)
    says = f"{count} regression{'s' * (count != 1)} in {shared} rows that both have"
    says += f"; goals met: {met[0]} of {measured[0]} measured in A, {met[1]} of {measured[1]} in B."
    parts.append(Text(says, style="bold red" if count else ""))
    return parts


def _caption(first: Record, second: Record) -> str:
    lines = []
    for letter, record in (("A", first), ("B", second)):
        versions = ", ".join(f"{name} {version}" for name, version in record.versions.items() if version)
        lines.append(f"{letter}: {record.device}, {versions or 'versions unknown'}, commit {record.commit[:8] or '?'}")
    if first.device != second.device:
        lines.append("Different devices: the ratios say something about the kernels, the milliseconds do not.")
    return "\n".join(lines)


def _pair(name: str, before: dict | None, after: dict | None, worse: bool) -> "Text":
    from rich.text import Text

    old, new = (_shown(name, None if row is None else row.get(name)) for row in (before, after))
    text = old if old == new else f"{old} \N{RIGHTWARDS ARROW} {new}"
    return Text(text, style="bold red" if worse else "")


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "extra_bytes":
        return f"{value / 1e9:.2f}"
    return f"{value:.1e}" if name == "max_error" else f"{value:.2f}"


def _verdicts(name: str, first: Record, second: Record) -> tuple[bool | None, bool | None]:
    before, after = (record.goals.get(name, {}).get("met") for record in (first, second))
    return before, after


def _goal_cells(name: str, first: Record, second: Record) -> list["str | Text"]:
    from rich.text import Text

    cells = []
    for record in (first, second):
        goal = record.goals.get(name, {})
        value, met = goal.get("value"), goal.get("met")
        said = {True: "met", False: "missed", None: ""}[met]
        shown = "-" if value is None else f"{value:.3g}"
        cells.append(Text(f"{shown} {said}".strip(), style="red" if met is False else ""))
    newest = second.goals.get(name) or first.goals[name]
    limit = newest.get("threshold")
    sign = "\N{LESS-THAN OR EQUAL TO}" if newest["better"] == "lower" else "\N{GREATER-THAN OR EQUAL TO}"
    cells.append("-" if limit is None else f"{sign} {limit:g}")
    lost = _verdicts(name, first, second) == (True, False)
    return [*cells, Text("lost" if lost else "", style="bold red")]


# --- the picture ---


def ratio_chart(record: Record, *, narrow: bool = False) -> "Figure | None":
    """Bars of the ratio to the same GEMMs, a panel for each op and size, the fastest on top: ours blue, peers grey."""
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for (op, size, impl), row in record.rows.items():
        ratio = row.get("ratio_to_gemm")
        if ratio is not None and impl not in ("gemm", "gemms"):  # these are the line at 1
            panels.setdefault((op, size), []).append((ratio, impl))
    if not panels:
        return None
    bars = [len(panel) for panel in panels.values()]
    width, bar, gap = (4.3 if narrow else 8.6), 0.27, 0.86
    height = bar * sum(bars) + gap * len(bars) + 0.35
    figure = Figure((width, height))
    letters = max(len(impl) for panel in panels.values() for _, impl in panel)
    left = min(0.3 + 0.073 * letters, 0.45 * width)
    top = height - 0.42
    for (op, size), panel in panels.items():
        tall = bar * len(panel)
        axes = figure.add_axes((left / width, (top - tall) / height, (width - left - 0.6) / width, tall / height))
        _panel(axes, op, size, sorted(panel, reverse=True))
        top -= tall + gap
    commit = f", commit {record.commit[:8]}" if record.commit else ""
    figure.text(0.2 / width, 0.12 / height, f"{record.device}{commit}", size=8, color=_light("muted"))
    return figure


def _panel(axes: "Axes", op: str, size: str, panel: list[tuple[float, str]]) -> None:
    floor = "one GEMM" if op == "forward" else "three GEMMs"
    axes.set_title(f"{op.replace('_', ' + ')}, {size}: time over that of {floor}", loc="left")
    axes.grid(False)
    axes.grid(True, axis="x")
    places = range(len(panel))
    ratios, names = [ratio for ratio, _ in panel], [impl for _, impl in panel]
    ours = [_is_ours(impl) for impl in names]
    axes.barh(places, ratios, height=0.66, color=[_light("low" if mine else "faint") for mine in ours])
    axes.axvline(1, color=_light("ink"), lw=1, zorder=3)
    axes.set_yticks(places, names)
    axes.set_ylim(-0.6, len(panel) - 0.4)
    axes.set_xlim(0, max(1.12, 1.1 * max(ratios)))
    axes.spines["left"].set_visible(False)
    for place, ratio, mine, label in zip(places, ratios, ours, axes.get_yticklabels(), strict=True):
        figures = f"{ratio:.2f}"
        axes.annotate(
            figures,
            (max(ratio, 1) if 0.9 < ratio < 1 else ratio, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            size=8.5,
            color=_light("low" if mine else "muted"),
        )
        label.set_color(_light("low" if mine else "muted"))


def _is_ours(impl: str) -> bool:
    return impl.split()[0].split("-")[0] == "siri"


def _light(name: str) -> str:
    from siri.report.style import LIGHT

    return LIGHT[name]


def run_bench(options: BenchOptions) -> int:
    """Print the comparison, draw the picture, or say where the benchmarks are."""
    if options.compare:
        from rich.console import Console

        console = Console(highlight=False)
        for table in comparison_tables(*(read_record(path) for path in options.compare)):
            console.print(table)
    elif options.plot:
        print(plot(options.plot, options.out))
    else:
        print(WHERE, end="")
    return 0


def plot(source: str | Path, target: str | Path = "") -> Path:
    """Draw a result as a PNG (default: beside it) and return its path.

    Raises:
        InputError: no such record, nothing in it to draw, or a folder that cannot be written.
    """
    from siri.report.style import draw
    from siri.store.jsonl import write_atomic

    record = read_record(source)
    picture = draw(ratio_chart, record, kinds=["png"])
    if not picture:
        raise InputError(f"{source} holds no ratios to draw; run bench/gpu.sh kernels")
    path = Path(target) if target else Path(source).with_suffix(".png")
    try:
        write_atomic(path, picture["png"])
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); give --out FILE.png") from None
    return path
