"""Prompts that ask for a length, as L1 trains on (arXiv 2503.04697)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from siri.data.problems import Problem

PATH = 4
"""Keeps these draws apart from others of the same seed."""


@dataclass(frozen=True)
class AskedLengths:
    """How many tokens problems ask for: drawn once for each, evenly between least and most, from the seed and the
    problem's place."""

    least: int
    most: int
    seed: int
    exact: bool
    """Whether the length is to be met, or only kept to."""

    def of(self, count: int) -> list[int]:
        """The tokens that each of `count` problems asks for."""
        draw = np.random.default_rng(np.random.SeedSequence([self.seed, PATH]))
        return draw.integers(self.least, self.most, size=count, endpoint=True).tolist()

    def words(self, tokens: int) -> str:
        return f"Think for {tokens} tokens." if self.exact else f"Think for maximum {tokens} tokens."

    def ask(self, problems: Sequence[Problem], tokens: Sequence[int]) -> list[Problem]:
        """The problems, each with the words for its length at the end of what the user says."""
        asked = []
        for problem, wanted in zip(problems, tokens, strict=True):
            prompt, words = problem.prompt, self.words(wanted)
            if isinstance(prompt, str):
                prompt = f"{prompt} {words}"
            else:
                prompt = [*prompt[:-1], {**prompt[-1], "content": f"{prompt[-1]['content']} {words}"}]
            asked.append(replace(problem, prompt=prompt))
        return asked
