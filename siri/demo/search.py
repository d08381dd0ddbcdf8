"""A task of guess and verify: find the digit from which the operands lead to a target, where finding is trying.

A problem is a target and a row of operands, `t7 a3 B4 c1`: a value that starts at x goes through all of them as in the
demo's task, and x is wanted with which it ends at the target. Every operand is a bijection of the ten digits, so that
there is one such x. A trace tries digits: it says the digit, each operand with the value after it, and whether the last
value is the target. What follows `</think>` is the digit that it stopped at:

    prompt    t7 a3 B4 <think>
    response  try 5 a3 8 B4 2 no try 0 a3 3 wait a3 3 B4 7 yes </think> 0

To state x at once would take a table of target x operands, of 4 thousand cells for two operands and 80 thousand for
three, which no trace shows. So a try succeeds with a chance of one in ten, k tries with
1 - 0.9^k, or k / 10 where none is repeated, and a try of n operands needs 2n + 3 words. The base is taught what costs
tries: it says statements again after `wait`, which never changes a value; it guesses without looking at what it has
tried; and it gives up. More tries of fewer words each are the right policy, under any cap that ends the search early.
"""

import random
from string import ascii_lowercase
from typing import NamedTuple

from siri.demo.task import DIGITS, END_THINK, THINK, WAIT, Operand, apply, operand_word

TRY, YES, NO = "try", "yes", "no"

MAX_TOKENS = 160  # of a training sequence

KINDS = ("short", "long")
OPERAND_COUNT = {"short": 2, "long": 3}
P_TWIST = 0.5
P_WAIT = 0.4  # of one more "wait" after each statement
P_GIVE_UP = 0.2  # after each try that failed
P_SLIP = 0.02  # that a statement gives a value off by one, which nothing corrects


class Problem(NamedTuple):
    """A problem: its kind, its target (0..9) and its operands in order."""

    kind: str
    target: int
    operands: tuple[Operand, ...]


def problem(rng: random.Random, kind: str | None = None) -> Problem:
    """Draw a problem from `rng`, of the given kind or of any (half each)."""
    kind = kind or rng.choice(KINDS)
    operands = [Operand(rng.randint(0, 9), rng.random() < P_TWIST) for _ in range(OPERAND_COUNT[kind])]
    return Problem(kind, rng.randint(0, 9), tuple(operands))


def target_word(target: int) -> str:
    """The word that names a target, `t7`."""
    return f"t{target}"


def prompt_text(problem: Problem) -> str:
    """The prompt, `t7 a3 B4 <think>`, without the `<bos>` that the tokenizer puts before it."""
    names = (operand_word(i, operand) for i, operand in enumerate(problem.operands))
    return " ".join([target_word(problem.target), *names, THINK])


def outcome(problem: Problem, start: int) -> int:
    """The value (0..9) after all operands, from `start`."""
    for operand in problem.operands:
        start = apply(start, operand)
    return start


def answer(problem: Problem) -> str:
    """The gold answer: the digit that leads to the target."""
    return next(DIGITS[start] for start in range(10) if outcome(problem, start) == problem.target)


def shortest(problem: Problem, tries: int = 1) -> list[str]:
    """The words of a right response whose last of so many tries (1..10) succeeds, none of them with an idle word."""
    right = int(answer(problem))
    starts = [*[start for start in range(10) if start != right][: tries - 1], right]
    words = []
    for start in starts:
        words += [TRY, DIGITS[start]]
        value = start
        for position, operand in enumerate(problem.operands):
            value = apply(value, operand)
            words += [operand_word(position, operand), DIGITS[value]]
        words.append(YES if value == problem.target else NO)
    return [*words, END_THINK, DIGITS[right]]


def trace_text(rng: random.Random, problem: Problem) -> str:
    """Draw a response as the base is taught to give it: tries with waits until one succeeds or it gives up, `</think>`
    and the digit tried last. It lacks the closing `<eos>`, which is the tokenizer's affair."""
    words = []
    while True:
        start = value = rng.randint(0, 9)
        words += [TRY, DIGITS[start]]
        for position, operand in enumerate(problem.operands):
            value = (apply(value, operand) + (rng.random() < P_SLIP)) % 10
            statement = [operand_word(position, operand), DIGITS[value]]
            words += statement
            while rng.random() < P_WAIT:
                words += [WAIT, *statement]
        words.append(YES if value == problem.target else NO)
        if value == problem.target or rng.random() < P_GIVE_UP:
            return " ".join([*words, END_THINK, DIGITS[start]])


def first_words() -> list[str]:
    """The words that a prompt can begin with."""
    return [target_word(target) for target in range(10)]


def vocabulary() -> list[str]:
    """All words after a prompt's first, in a fixed order, without the tokenizer's special tokens."""
    letters = ascii_lowercase[: max(OPERAND_COUNT.values())]
    operands = [letter + digit for case in (letters, letters.upper()) for letter in case for digit in DIGITS]
    return [THINK, END_THINK, WAIT, TRY, YES, NO, *DIGITS, *operands]
