"""The token budget: most tokens of a packed micro-step."""

from siri.config import Config
from siri.errors import InputError

GPU_BUDGET = 36864
"""Tokens of a micro-step on a GPU at least, where the budget is auto."""
CPU_BUDGET = 8192
"""The same on a CPU, where small packs are as quick."""


def token_budget(config: Config, *, longest: int, on_gpu: bool) -> int:
    """Most tokens of a packed micro-step. auto: room for two of the longest sequences, and `GPU_BUDGET` (`CPU_BUDGET`)
    at least. longest: tokens of the longest prompt and response together. InputError for a budget that cannot hold it.
    """
    if config.token_budget == "auto":
        return max(2 * longest, GPU_BUDGET if on_gpu else CPU_BUDGET)
    if config.token_budget < longest:
        raise InputError(
            f"token_budget is {config.token_budget}, but the longest prompt and cap make {longest} tokens; raise "
            "--token-budget or lower --l-max"
        )
    return config.token_budget
