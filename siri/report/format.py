"""Numbers of a run as text; None, the JSON null, is a dash."""

MISSING = "-"


def percent(share: float | None, *, signed: bool = False) -> str:
    """0.5113 -> "51.1%"; signed for changes: "+93.3%"."""
    return MISSING if share is None else f"{100 * share:{'+' if signed else ''}.1f}%"


def points(share: float | None) -> str:
    """A difference of two shares in percentage points: 0.126 -> "+12.6"."""
    return MISSING if share is None else f"{100 * share:+.1f}"


def tokens(count: float | None) -> str:
    """A mean number of tokens: "19.4", "7,093"."""
    return MISSING if count is None else f"{count:.1f}" if count < 1000 else f"{count:,.0f}"


def compact(count: float | None) -> str:
    """A large count with three digits: "812", "45.2 K", "1.04 M", "782 M"."""
    if count is None:
        return MISSING
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= 0.9995 * size:
            value = count / size
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return f"{count:.0f}"


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds: "1:02:03", "2:03"."""
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
