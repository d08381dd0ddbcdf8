"""The demo's task: running arithmetic modulo 10, with a chain of thought that says each step aloud.

A problem is a row of operands, `a3 b7 C1 ...`: the letter gives the position, the digit d acts on a running value v
that starts at 0. A lower-case operand adds, v <- (v + d) mod 10. An upper-case one twists, v <- (7v + 3d + 4) mod 10.
The answer is the last value. Easy problems have 4 to 7 operands that all add; hard ones have 9 to 12, and each after
the first twists with probability 0.6.

A trace names each operand and the value after it, perhaps several times ("wait, again"), and ends with the answer:

    prompt    a3 b7 C1 <think>
    response  a3 3 b7 0 wait b7 0 C1 7 </think> 7

The base model learns traces in which some statements are wrong, always in the same way: each cell (value, digit) of the
two operations has a fixed confidence and a fixed misprint. A recheck corrects a wrong statement half of the time and
never spoils a right one, and the chain goes on from the last statement. So rechecks cost tokens, help a little where
the base errs and not at all elsewhere: the base rambles, and there is room to become both right and short.
"""

import random
from typing import NamedTuple

POSITIONS = "abcdefghijklmn"
DIGITS = "0123456789"
THINK, END_THINK, WAIT = "<think>", "</think>", "wait"
KINDS = ("easy", "hard")

MAX_TOKENS = 128  # of a training sequence; the longest rollout of the demo has 14 + 96
OPERAND_COUNT = {"easy": (4, 7), "hard": (9, 12)}
P_HARD = 0.5
P_TWIST = 0.6  # of an operand of a hard problem, after the first
P_RECHECK = 0.55  # of one more "wait" after each statement
P_CORRECT = 0.5  # that a recheck of a wrong statement says the right value


class Operand(NamedTuple):
    """One step of a problem: its digit, and whether it twists (upper case) or adds (lower case)."""

    digit: int
    twist: bool


class Problem(NamedTuple):
    """A problem: its kind ("easy" or "hard") and its operands in order."""

    kind: str
    operands: tuple[Operand, ...]


class Cell(NamedTuple):
    """What the base believes about one step: the value it states first with probability `confidence`, or else."""

    right: int
    wrong: int
    confidence: float


def apply(value: int, operand: Operand) -> int:
    """The running value (0..9) after `operand` acts on `value`. At value 0 an adding operand gives its own digit."""
    return (7 * value + 3 * operand.digit + 4) % 10 if operand.twist else (value + operand.digit) % 10


def _beliefs() -> dict[tuple[int, Operand], Cell]:
    """The base's fixed beliefs for all 10 values x 10 digits x 2 operations."""
    rng = random.Random(1234)
    cells = [(value, digit) for value in range(10) for digit in range(10)]
    twist_confidence = {cell: (0.9, 0.55, 0.3)[rng.choice((0, 1, 2))] for cell in cells}
    twist_offset = {cell: rng.randint(1, 9) for cell in cells}
    add_confidence = {cell: 0.4 if rng.random() < 0.15 else 0.97 for cell in cells}
    beliefs = {}
    for value, digit in cells:
        for twist in (False, True):
            right = apply(value, Operand(digit, twist))
            offset = twist_offset[value, digit] if twist else 1
            confidence = (twist_confidence if twist else add_confidence)[value, digit]
            beliefs[value, Operand(digit, twist)] = Cell(right, (right + offset) % 10, confidence)
    return beliefs


BELIEFS = _beliefs()


def problem(rng: random.Random, kind: str | None = None) -> Problem:
    """Draw a problem from `rng`. `kind` is "easy", "hard" or None, which draws the kind too (half of each)."""
    if kind is None:
        kind = "hard" if rng.random() < P_HARD else "easy"
    count = rng.randint(*OPERAND_COUNT[kind])
    operands = []
    for position in range(count):
        digit = rng.randint(0, 9)
        operands.append(Operand(digit, kind == "hard" and position > 0 and rng.random() < P_TWIST))
    return Problem(kind, tuple(operands))


def operand_word(position: int, operand: Operand) -> str:
    """The word that names an operand: `b7` at position 1 with digit 7 adds, `B7` twists."""
    letter = POSITIONS[position]
    return (letter.upper() if operand.twist else letter) + DIGITS[operand.digit]


def prompt_text(problem: Problem) -> str:
    """The prompt, `a3 b7 C1 <think>`, without the `<bos>` that the tokenizer puts before it."""
    return " ".join([*(operand_word(i, operand) for i, operand in enumerate(problem.operands)), THINK])


def answer(problem: Problem) -> str:
    """The gold answer: the last running value, as one digit."""
    value = 0
    for operand in problem.operands:
        value = apply(value, operand)
    return DIGITS[value]


def trace_text(rng: random.Random, problem: Problem) -> str:
    """Draw a response as the base is taught to give it: statements, rechecks, `</think>` and its answer, right or not.

    It lacks the closing `<eos>`, which is the tokenizer's affair. n operands without a recheck take 2n + 2 words.
    """
    words, value = [], 0
    for position, operand in enumerate(problem.operands):
        name = operand_word(position, operand)
        right, wrong, confidence = BELIEFS[value, operand]
        if position == 0:
            confidence = 1.0  # the first value can be read off the prompt
        stated = right if rng.random() < confidence else wrong
        words += [name, DIGITS[stated]]
        while rng.random() < P_RECHECK:
            if stated != right and rng.random() < P_CORRECT:
                stated = right
            words += [WAIT, name, DIGITS[stated]]
        value = stated
    return " ".join([*words, END_THINK, DIGITS[value]])


def vocabulary() -> list[str]:
    """All words of prompts and traces, in a fixed order, without the tokenizer's special tokens."""
    operands = [letter + digit for letters in (POSITIONS, POSITIONS.upper()) for letter in letters for digit in DIGITS]
    return [THINK, END_THINK, WAIT, *DIGITS, *operands]


def first_words() -> list[str]:
    """The words that a prompt can begin with."""
    return [operand_word(0, Operand(digit, twist=False)) for digit in range(10)]
