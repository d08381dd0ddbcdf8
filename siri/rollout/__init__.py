"""Rollout: from prompts to sampled responses. One small protocol; every engine implements it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to answer `n` times, each answer at most `max_tokens` long."""

    prompt_ids: list[int]
    max_tokens: int
    n: int = 1


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response."""

    token_ids: list[int]
    """The response, its end-of-sequence token included if it was sampled."""
    logp: list[float]
    """Log-probability of each token under the sampling distribution (temperature applied), nats."""
    truncated: bool
    """The cap was reached before the model ended the response."""


class NotFinite(Exception):
    """The model's probabilities are NaN or infinite, so that nothing can be sampled from them."""


Progress = Callable[[int], None]
"""Called with the number of responses that have just finished."""


class Rollout(Protocol):
    """What the trainer asks of an engine. Sampling is from the full softmax at `temperature`: no top-p, no top-k, no
    penalties, because the loss scores tokens under exactly that distribution."""

    notes: list[str]
    """Lines for the user about what this engine does otherwise than asked."""
    independent: bool
    """No rank waits for another one's tokens, so each may stop on its own."""

    def generate(
        self, requests: Sequence[Request], *, temperature: float, seed: int, progress: Progress | None = None
    ) -> list[list[Completion]]:
        """The completions of each request, in order. The same seed, weights and requests give the same answers."""
        ...

    def expected(self, prompts: Sequence[Sequence[int]], cap: int) -> list[float] | None:
        """Tokens to expect of a response to each prompt (ids), the same on every rank; None from an engine that makes
        no difference between prompts."""

    def sync(self) -> None:
        """Take over the trainer's current weights; called after every update of them."""

    def sleep(self) -> None:
        """Hand memory back for training."""

    def wake(self) -> None:
        """Get ready to sample."""

    def metrics(self) -> dict[str, float]:
        """Figures of the last `generate` and `sync`, for the row of the step."""
        ...

    def close(self) -> None:
        """Release everything."""
