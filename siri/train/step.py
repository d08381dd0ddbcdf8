"""Which step of a run it is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One turn of the loop."""

    number: int
    """From 0."""
    cap: int
    """Longest response, tokens."""
    phase: str
