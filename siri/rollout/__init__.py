"""Rollout: from prompts to sampled responses. One small protocol; every engine implements it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Tokens = Sequence[int] | np.ndarray
Numbers = Sequence[float] | np.ndarray


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to answer `n` times, each answer at most `max_tokens` long."""

    prompt_ids: list[int]
    max_tokens: int
    n: int = 1
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability; below 1 in evaluations only."""


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """One sampled response. Equal to another with the same numbers, whether in lists or in arrays."""

    token_ids: Tokens
    """The response, its end-of-sequence token included if it was sampled: as the engine gave it, or int32 [T] from
    another rank."""
    logp: Numbers
    """Log-probability of each token under the sampling distribution (temperature applied), nats; likewise, fp32."""
    truncated: bool
    """The cap was reached before the model ended the response."""

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Completion)
            and self.truncated == other.truncated
            and np.array_equal(self.token_ids, other.token_ids)
            and np.array_equal(self.logp, other.logp)
        )

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # as of any dataclass that is compared by its fields


class NotFinite(Exception):
    """The model's probabilities are NaN or infinite, so that nothing can be sampled from them."""


Progress = Callable[[int], None]
"""Called with the number of responses that have just finished."""


Done = Callable[[int, Completion], None]
"""Called with a response that has just finished, and the number of its request; the same object is returned in the end,
unless its server turns out to have sampled from other weights."""


class Rollout(Protocol):
    """What the trainer asks of an engine. Sampling is from the full softmax at `temperature`: no top-k, no penalties,
    and in training no top-p, because the loss scores tokens under exactly that distribution."""

    notes: list[str]
    """Lines for the user about what this engine does otherwise than asked."""
    independent: bool
    """No rank waits for another one's tokens, so each may stop on its own."""

    def generate(
        self,
        requests: Sequence[Request],
        *,
        temperature: float,
        seed: int,
        progress: Progress | None = None,
        done: Done | None = None,
    ) -> list[list[Completion]]:
        """The completions of each request, in order. The same seed, weights and requests give the same answers. done:
        told of each as it finishes, by an engine in which others go on meanwhile."""
        ...

    def expected(self, prompts: Sequence[Sequence[int]], cap: int) -> list[float] | None:
        """Tokens to expect of a response to each prompt (ids), the same on every rank; None from an engine that makes
        no difference between prompts."""

    def note_lengths(self, prompts: Sequence[Sequence[int]], means: Sequence[float]) -> None:
        """Keep the mean lengths of the responses to this rank's prompts that were sampled in flight, for `expected`;
        every rank calls it."""

    def fly(self) -> Any:
        """The `siri.rollout.flight.Flight` of responses that are sampled while the trainer trains, begun by the first
        call; None from an engine that cannot do so."""

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
