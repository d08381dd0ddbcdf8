"""python .ci/charts.py [--check]: the pictures of the documentation that are made of what is committed,
docs/charts/*.svg: measurements from bench/results, and the rooms of siri from its imports. --check writes nothing and
ends with 1 where a picture is not what it would be."""

from __future__ import annotations

import argparse
import ast
import json
import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHARTS = ROOT / "docs" / "charts"
RESULTS = ROOT / "bench" / "results" / "nvidia-h100-80gb-hbm3-2026-11-27.json"
OURS, PEER, PLAIN = "#0b7285", "#adb5bd", "#74c0cf"
"""colours of ours, of others, and of our path for any GPU"""
FONT = "font-family='system-ui, -apple-system, Segoe UI, Roboto, sans-serif'"


def rows(op: str, size: str) -> dict[str, dict]:
    """The rows of one measurement by who was measured; where it was made twice, the newest."""
    matches = [row for row in json.loads(RESULTS.read_text())["rows"] if row["op"] == op and row["size"] == size]
    return {row["impl"]: row for row in reversed(matches)}


def svg(width: int, height: int, title: str, body: list[str]) -> str:
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' role='img' {FONT}>"
    card = f"<rect width='{width}' height='{height}' rx='8' fill='#ffffff'/>"
    return "\n".join([head, f"<title>{escape(title)}</title>", card, *body, "</svg>"]) + "\n"


def text(x: float, y: float, words: str, size: int = 14, anchor: str = "start", fill: str = "#212529") -> str:
    return (
        f"<text x='{x:.0f}' y='{y:.0f}' font-size='{size}' text-anchor='{anchor}' fill='{fill}'>{escape(words)}</text>"
    )


def bars(title: str, unit: str, values: list[tuple[str, float, str, str]], note: str) -> str:
    """Horizontal bars of (name, value, what is written at its end, colour)."""
    left, width, step, top = 180, 580, 30, 64
    most = max(value for _, value, _, _ in values)
    body = [text(16, 28, title, 17), text(16, 48, unit, 12, fill="#495057")]
    for place, (name, value, label, colour) in enumerate(values):
        y = top + place * step
        long = (width - left - 132) * value / most
        body += [
            text(left - 10, y + 15, name, 13, "end"),
            f"<rect x='{left}' y='{y}' width='{long:.1f}' height='21' rx='3' fill='{colour}'/>",
            text(left + long + 8, y + 15, label, 13),
        ]
    height = top + len(values) * step + 30
    return svg(width, height, title, [*body, text(16, height - 12, note, 11, fill="#495057")])


def forward() -> str:
    by_impl = rows("forward", "1.5b")
    names = {
        "siri": ("siri-kernels", OURS),
        "trl-full": ("TRL, whole logits", PEER),
        "trl-chunked": ("TRL, chunked", PEER),
        "cce-exact": ("CCE, exact (no entropy)", PEER),
        "siri-fallback": ("siri-kernels, any GPU", PLAIN),
        "torch.compile": ("torch.compile", PEER),
        "verl-triton": ("verl, Triton", PEER),
        "eager": ("torch, whole logits", PEER),
        "verl-torch-512": ("verl, torch", PEER),
    }
    values = [
        (name, by_impl[impl]["ratio_to_gemm"], f"{by_impl[impl]['ratio_to_gemm']:.2f}", colour)
        for impl, (name, colour) in names.items()
    ]
    values.sort(key=lambda value: value[1])
    title = "Log-probs and entropies of 32,768 tokens, 1.5B's head"
    return bars(title, "time over that of the matrix product alone", values, "one H100; peers a day before ours")


def step() -> str:
    sizes = {"1.5b": "32,768 tokens", "1.5b-8192": "8,192", "1.5b-4096": "4,096", "1.5b-2048": "2,048"}
    values = []
    for size, name in sizes.items():
        by_impl = rows("forward_backward", size)
        for impl, colour, suffix in (("siri", OURS, ""), ("siri-fallback", PLAIN, ", any GPU")):
            ratio = by_impl[impl]["ratio_to_gemm"]
            values.append((name + suffix, ratio, f"{ratio:.2f} ({by_impl[impl]['ms']:.1f} ms)", colour))
    title = "The clipped loss with its gradients, 1.5B's head"
    return bars(
        title, "time over that of the three matrix products alone", values, "one H100; small batches wait for the host"
    )


def peers() -> str:
    names = {
        "siri": ("siri-kernels", OURS),
        "siri-fallback": ("siri-kernels, any GPU", PLAIN),
        "trl-chunked": ("TRL, chunked", PEER),
        "liger-cute": ("Liger, CuTe", PEER),
        "cce": ("CCE (no entropy)", PEER),
        "verl-triton": ("verl, Triton", PEER),
        "cce-exact": ("CCE, exact", PEER),
    }
    values = []
    for size, words in (("1.5b", ""), ("7b", ", 7B")):
        by_impl = rows("forward_backward", size)
        values += [
            (name + words, ratio, f"{ratio:.2f} ({by_impl[impl]['ms']:.0f} ms)", colour)
            for impl, (name, colour) in names.items()
            for ratio in (by_impl[impl]["ratio_to_gemm"],)
        ]
    title = "The clipped loss with its gradients, 32,768 tokens, heads of 1.5B and 7B"
    return bars(title, "time over that of the three matrix products alone", values, "one H100, one day")


def memory() -> str:
    by_impl = rows("forward_backward", "1.5b")
    names = {"siri": "fast", "siri-small": "small", "siri-lean": "lean"}
    values = [
        (f'memory="{name}"', by_impl[impl]["extra_bytes"], f"{by_impl[impl]['extra_bytes'] / 1e9:.2f} GB, "
         f"{by_impl[impl]['ms']:.0f} ms", OURS)
        for impl, name in names.items()
    ]  # fmt: skip
    whole = 32768 * 151936 * 4
    values.append(("logits in fp32 alone", whole, f"{whole / 1e9:.1f} GB (computed)", PEER))
    title = "Memory of the clipped loss, 32,768 tokens, 1.5B's head"
    return bars(title, "largest memory beyond inputs and gradients", values, "one H100")


def train() -> str:
    by_impl = rows("train_step", "1.5b-8k")
    names = {"siri packed": ("this trainer", OURS), "padded TRL chunked": ("padded, TRL's log-probs", PEER),
             "padded full logits": ("padded, whole logits", PEER)}  # fmt: skip
    values = [
        (
            name,
            by_impl[impl]["tokens_per_s"],
            f"{by_impl[impl]['tokens_per_s']:,.0f} ({by_impl[impl]['ms'] / 1e3:.1f} s)",
            colour,
        )
        for impl, (name, colour) in names.items()
    ]
    title = "A training step of R1-Distill-Qwen-1.5B, cap 8,192"
    return bars(
        title, "tokens a second of the update, 24 responses, 103,425 tokens", values, "one H100; sampling is not in it"
    )


# the rooms

GROUND = ("errors", "intervals", "text")
"""below all others, and not drawn"""
APART = ("__init__", "__main__", "demo", "recipes")
"""the door, and what belongs to no room"""


def graph() -> dict[str, set[str]]:
    """Room -> rooms of siri that it imports, and siri_kernels."""
    package, known = ROOT / "siri", {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        here = parts[0]
        if here in (*APART, *GROUND):
            continue
        uses = known.setdefault(here, set())
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module] if node.module != "siri" else [f"siri.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                if name.split(".")[0] == "siri_kernels":
                    uses.add("siri_kernels")
                elif name.startswith("siri.") and name.split(".")[1] not in (here, *APART):
                    uses.add(name.split(".")[1])
    known["siri_kernels"] = set()
    return {name: {use for use in uses if use in known} for name, uses in known.items()}


def floors(known: dict[str, set[str]]) -> dict[str, int]:
    """How many rooms lie below a room, on the longest way down."""

    def floor(name: str) -> int:
        return 1 + max((floor(use) for use in known[name]), default=-1)

    return {name: floor(name) for name in known}


def drawn_rooms() -> str:
    known = graph()
    levels = floors(known)

    def reached(name: str) -> set[str]:
        return {deep for use in known[name] for deep in {use, *reached(use)}}

    # what a room reaches by another is not drawn again
    direct = {name: uses - {deep for use in uses for deep in reached(use)} for name, uses in known.items()}
    by_floor = [sorted(name for name in known if levels[name] == floor) for floor in range(max(levels.values()) + 1)]
    width, box, high, gap = 720, 108, 34, 70
    place, body = {}, []
    for floor, names in enumerate(reversed(by_floor)):
        spread = width / len(names)
        for column, name in enumerate(names):
            place[name] = (spread * (column + 0.5), 80 + floor * gap)
    for name, uses in sorted(direct.items()):
        for use in sorted(uses):
            (x1, y1), (x2, y2) = place[name], place[use]
            start, end = f"{x1:.0f} {y1 + high:.0f}", f"{x2:.0f} {y2:.0f}"
            bend = f"{x1:.0f} {y1 + high + 30:.0f} {x2:.0f} {y2 - 30:.0f}"
            body.append(f"<path d='M{start} C{bend} {end}' fill='none' stroke='#adb5bd' stroke-width='1.5'/>")
    for name, (x, y) in sorted(place.items()):
        colour = OURS if name in ("train", "siri_kernels") else "#495057"
        frame = f"x='{x - box / 2:.0f}' y='{y:.0f}' width='{box}' height='{high}' rx='6'"
        body += [
            f"<rect {frame} fill='#f8f9fa' stroke='{colour}' stroke-width='1.5'/>",
            text(x, y + 22, name, 14, "middle", colour),
        ]
    title = "The rooms of siri: each knows only those below it"
    ground = f"{', '.join(GROUND)} lie below all of them; a line that follows from others is left out"
    return svg(
        width,
        80 + len(by_floor) * gap,
        title,
        [text(16, 30, title, 17), *body, text(16, 52, ground, 12, fill="#495057")],
    )


MADE = {"forward": forward, "step": step, "peers": peers, "memory": memory, "train": train, "rooms": drawn_rooms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    CHARTS.mkdir(exist_ok=True)
    stale = 0
    for name, make in MADE.items():
        path, content = CHARTS / f"{name}.svg", make()
        if path.exists() and path.read_text() == content:
            continue
        stale += 1
        print(f"charts.py: {path.relative_to(ROOT)} {'is not what it would be' if check else 'written'}")
        if not check:
            path.write_text(content)
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
