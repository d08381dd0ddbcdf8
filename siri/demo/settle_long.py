"""The study's task with up to 20 operands, for a bigger model: its shortest right responses have 11 to 90 tokens."""

from functools import partial

from siri.demo import settle
from siri.demo.settle import KINDS, answer, first_words, prompt_text, shortest, trace_text

__all__ = [
    "KINDS",
    "MAX_TOKENS",
    "answer",
    "first_words",
    "problem",
    "prompt_text",
    "shortest",
    "trace_text",
    "vocabulary",
]

OPERAND_COUNT = {"plain": (4, 8), "mixed": (6, 14), "deep": (10, 20)}
MAX_TOKENS = 320  # of a training sequence

problem = partial(settle.problem, counts=OPERAND_COUNT)
vocabulary = partial(settle.vocabulary, OPERAND_COUNT)
