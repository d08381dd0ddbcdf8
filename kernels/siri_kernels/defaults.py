"""What the names of a loss and of an importance weight mean where nothing else is said: the numbers of their papers."""

from __future__ import annotations

from typing import Any

from siri_kernels.validation import one_of

LOSS_DEFAULTS: dict[str, dict[str, float | str | None]] = {
    "grpo": {"clip_low": 0.2, "clip_high": 0.28, "aggregation": "token_mean"},  # DAPO's, arXiv 2503.14476
    "gspo": {"clip_low": 3e-4, "clip_high": 4e-4, "aggregation": "seq_mean"},  # arXiv 2507.18071, section 5.1
    # arXiv 2506.13585 has no lower bound and does not print its upper one
    "cispo": {"clip_low": None, "clip_high": 0.28, "aggregation": "token_mean"},
}
IMPORTANCE_CAPS = {"none": 2.0, "tis": 2.0, "icepop": 5.0}  # verl's threshold of TIS, and of its icepop preset


def by_name(loss: str, importance: str) -> dict[str, Any]:
    """What the options at "auto" are: the clips and the aggregation of `loss`, the cap of `importance`."""
    one_of("loss", loss, tuple(LOSS_DEFAULTS))
    one_of("importance", importance, tuple(IMPORTANCE_CAPS))
    return {**LOSS_DEFAULTS[loss], "importance_cap": IMPORTANCE_CAPS[importance]}
