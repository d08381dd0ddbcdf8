"""How the pictures look, and how one becomes a file.

Each colour has one meaning: blue is compression (SIRI-low), orange is expansion (SIRI-high), the rest is ink on paper.
The two hues stay apart for every common colour blindness. matplotlib is imported on first use.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

LIGHT = {
    "paper": "#ffffff",
    "shade": "#eaf2fa",
    "grid": "#e3e6ea",
    "faint": "#c3c9d1",
    "muted": "#68717d",
    "ink": "#1f2730",
    "low": "#0a6ebd",
    "high": "#b94c05",
}
DARK = {
    "paper": "#15191e",
    "shade": "#1a2a3a",
    "grid": "#2a313a",
    "faint": "#4d5763",
    "muted": "#98a2ae",
    "ink": "#e8ebee",
    "low": "#5fb0f0",
    "high": "#f2955a",
}
# Parts of a step, in their order; neighbours differ in lightness as well as in hue.
PARTS = (
    "#8296b3 #c9a227 #3d4a5c #a98bc6 #4fae8b #e2b75b #1e6e54 #b3567a #63b3b8 #7a4a2b",
    "#7389a8 #d9b84a #c4cedb #8a6cae #7fd0b0 #a98532 #3d9779 #d985a4 #3f8b90 #c79a78",
)
for theme, colours in zip((LIGHT, DARK), PARTS, strict=True):
    theme |= {f"part{index}": colour for index, colour in enumerate(colours.split())}
UNDATED = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
"""Metadata of a picture, without what differs from day to day."""
FONTS = ("Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans")


def rc_style() -> "dict[RcKeyType, Any]":
    from matplotlib import font_manager

    known = {font.name for font in font_manager.fontManager.ttflist}
    c = LIGHT
    return {
        "font.family": next(name for name in FONTS if name in known),
        "font.size": 9.5,
        "text.parse_math": False,  # a name may hold dollars
        "figure.facecolor": c["paper"],
        "axes.facecolor": c["paper"],
        "axes.edgecolor": c["faint"],
        "axes.labelcolor": c["muted"],
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlecolor": c["ink"],
        "axes.titlepad": 7,
        "grid.color": c["grid"],
        "grid.linewidth": 0.8,
        "text.color": c["ink"],
        "xtick.color": c["faint"],
        "ytick.color": c["faint"],
        "xtick.labelcolor": c["muted"],
        "ytick.labelcolor": c["muted"],
        "ytick.major.size": 0,
        "lines.solid_capstyle": "round",
        "svg.hashsalt": "siri",  # the same run gives the same bytes
    }


def draw(
    chart: Callable[..., "Figure | None"],
    run: object,
    *,
    narrow: bool = False,
    kinds: Sequence[Literal["png", "svg"]] = ("png", "svg"),
) -> dict[str, bytes]:
    """A chart of a run, or of what else it takes (the runs of a study, a benchmark), as {"png": ...,
    "svg": ...}, of which `kinds` names those wanted; empty if there is nothing to draw. narrow: for phones.

    The SVG names its colours as CSS variables and follows the reader's light or dark setting.
    """
    import io

    import matplotlib

    with matplotlib.rc_context(rc_style()):
        figure = chart(run, narrow=narrow)
        if figure is None:
            return {}
        files = {}
        for kind in kinds:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=200, metadata=UNDATED[kind])
            files[kind] = buffer.getvalue()
    if "svg" in files:
        files["svg"] = _themed(files["svg"].decode()).encode()
    return files


def _themed(svg: str) -> str:
    for name, colour in LIGHT.items():
        svg = svg.replace(colour, f"var(--{name})")
    light, dark = (";".join(f"--{name}:{colour}" for name, colour in theme.items()) for theme in (LIGHT, DARK))
    style = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    start = svg.index(">", svg.index("<svg")) + 1
    return svg[:start] + style + svg[start:]
