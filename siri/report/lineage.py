"""Where a run comes from, in words."""

from collections.abc import Mapping
from typing import Any

from siri.store.schema import is_count, is_number


def lineage_text(lineage: Any) -> str:
    """Where a run comes from, in words; "" where config.json does not say it."""
    parts = []
    while isinstance(lineage, Mapping) and len(parts) < 20:
        run, step, tokens = (lineage.get(key) for key in ("run", "step", "train_tokens"))
        weights = lineage.get("weights")
        if isinstance(weights, str) and is_count(step):
            parts.append(f"the weights of {weights} alone, taken for those after step {step:,}")
            break
        if not isinstance(run, str) or not is_count(step) or not is_number(tokens):
            break
        parts.append(f"{run} after step {step:,} ({tokens:,} response tokens)")
        lineage = lineage.get("lineage")
    return ", from ".join(parts)
