"""Responses of a model that does not think in tags: with `think` nothing of them is graded."""

from collections.abc import Sequence

from siri.rewards import BUILT_IN, END_OF_THINKING
from siri.rollout import Completion

FEW = 0.02
"""Share of the finished responses with the closing tag up to which a model does not think."""


class ThinkingCheck:
    """Says once, after the first responses that ended by themselves, when (nearly) none of them holds `</think>`."""

    def __init__(self, reward: str, think: bool):
        self.watching = think and reward in BUILT_IN
        """Functions of the user's get the whole response."""
        self.finished, self.closed = 0, 0

    def see(self, texts: Sequence[str], completions: Sequence[Completion]) -> None:
        """Count responses, given as text and as they were sampled; those that the cap cut say nothing."""
        if self.watching:
            ended = [
                END_OF_THINKING in text
                for text, completion in zip(texts, completions, strict=True)
                if not completion.truncated
            ]
            self.finished, self.closed = self.finished + len(ended), self.closed + sum(ended)

    def line(self) -> str | None:
        """What to tell the user, once there is something to be said."""
        if not self.watching or not self.finished:
            return None
        self.watching = False
        if self.closed > FEW * self.finished:
            return None
        return (
            f"warning: {self.closed or 'none'} of {self.finished:,} finished responses holds {END_OF_THINKING}, "
            "without which nothing is graded; if this model does not think in tags, give --no-think"
        )
