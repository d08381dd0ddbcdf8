"""The study's task: arithmetic modulo 10 in which some values have to settle, so that thought never becomes useless.

The prompt gives a key and a row of operands, `key4 a3 b7 C1 ...`; a running value starts at 0. A lower-case operand
adds its digit. An upper-case one first twists, v <- (7v + 3d + 4) mod 10, and then the value has to settle:
v <- S_k[v] until that changes nothing. For every key half of the ten values are settled, three are one step away and
two are two steps. The answer is the last value.

A trace names each operand and a value, and says both again after `wait`. After an upper-case operand a `wait` takes the
value one step further, and leaves a settled one alone; after a lower-case one it only repeats:

    prompt    key4 a3 b7 C1 <think>
    response  a3 3 b7 0 C1 7 wait C1 2 </think> 2

To state the settled value at once would take one table of value x digit x key, a thousand cells that no trace ever
shows; with a `wait` each it is two tables of a hundred. So a `wait` is needed where a value has not settled and idle
elsewhere, and the shortest right response of a problem has from 7 to about 40 tokens: three kinds of problem spread the
lengths. The base is taught to wait at random, and to state some twists and sums wrongly, always the same way in a cell.
"""

import random
from collections.abc import Mapping
from string import ascii_lowercase
from typing import NamedTuple

from siri.demo.task import DIGITS, END_THINK, THINK, WAIT, Cell, Operand, apply

MAX_TOKENS = 128  # of a training sequence

KINDS = ("plain", "mixed", "deep")
OPERAND_COUNT = {"plain": (2, 4), "mixed": (3, 6), "deep": (5, 9)}
P_TWIST = {"plain": 0.0, "mixed": 0.3, "deep": 0.6}  # of an operand after the first
P_WAIT = 0.5  # of one more "wait" after each statement
TWIST_CONFIDENCE = (0.9, 0.7, 0.4)  # a third of the cells each
ADD_CONFIDENCE, ADD_DOUBT, P_ADD_DOUBT = 0.98, 0.5, 0.1


class Problem(NamedTuple):
    """A problem: its kind, its key (0..9) and its operands in order."""

    kind: str
    key: int
    operands: tuple[Operand, ...]


def _settling() -> list[list[int]]:
    """S[key][value]: the next value; five values of every key stay, three are one step from those, two are two."""
    rng = random.Random(4321)
    table = []
    for _ in range(10):
        values = rng.sample(range(10), 10)
        still, near, far = values[:5], values[5:8], values[8:]
        row = list(range(10))
        for value in near:
            row[value] = rng.choice(still)
        for value in far:
            row[value] = rng.choice(near)
        table.append(row)
    return table


SETTLING = _settling()


def _beliefs() -> dict[tuple[int, Operand], Cell]:
    """What the base says first at each (value, operand), before anything settles."""
    rng = random.Random(2345)
    beliefs = {}
    for value in range(10):
        for digit in range(10):
            for twist in (False, True):
                operand = Operand(digit, twist)
                right = apply(value, operand)
                sure = rng.choice(TWIST_CONFIDENCE)
                doubt = ADD_DOUBT if rng.random() < P_ADD_DOUBT else ADD_CONFIDENCE
                offset = rng.randint(1, 9)
                beliefs[value, operand] = Cell(right, (right + offset) % 10, sure if twist else doubt)
    return beliefs


BELIEFS = _beliefs()


def problem(
    rng: random.Random, kind: str | None = None, counts: Mapping[str, tuple[int, int]] = OPERAND_COUNT
) -> Problem:
    """Draw a problem from `rng`, of the given kind or of any (a third each); `counts` are each kind's operands."""
    kind = kind or rng.choice(KINDS)
    count = rng.randint(*counts[kind])
    twists = [position > 0 and rng.random() < P_TWIST[kind] for position in range(count)]
    return Problem(kind, rng.randint(0, 9), tuple(Operand(rng.randint(0, 9), twist) for twist in twists))


def operand_word(position: int, operand: Operand) -> str:
    """The word that names an operand: `b7` at position 1 with digit 7 adds, `B7` twists."""
    letter = ascii_lowercase[position]
    return (letter.upper() if operand.twist else letter) + DIGITS[operand.digit]


def key_word(key: int) -> str:
    """The word that names a key, `key4`."""
    return f"key{key}"


def prompt_text(problem: Problem) -> str:
    """The prompt, `key4 a3 b7 C1 <think>`, without the `<bos>` that the tokenizer puts before it."""
    names = (operand_word(i, operand) for i, operand in enumerate(problem.operands))
    return " ".join([key_word(problem.key), *names, THINK])


def shortest(problem: Problem) -> list[str]:
    """The words of the shortest right response: a statement an operand, and a `wait` only where a value changes."""
    words, value = [], 0
    for position, operand in enumerate(problem.operands):
        name, value = operand_word(position, operand), apply(value, operand)
        words += [name, DIGITS[value]]
        while operand.twist and SETTLING[problem.key][value] != value:
            value = SETTLING[problem.key][value]
            words += [WAIT, name, DIGITS[value]]
    return [*words, END_THINK, DIGITS[value]]


def answer(problem: Problem) -> str:
    """The gold answer: the last running value, as one digit."""
    return shortest(problem)[-1]


def trace_text(rng: random.Random, problem: Problem) -> str:
    """Draw a response as the base is taught to give it: statements, waits, `</think>` and its answer, right or not.

    It lacks the closing `<eos>`, which is the tokenizer's affair.
    """
    words, value = [], 0
    for position, operand in enumerate(problem.operands):
        name, cell = operand_word(position, operand), BELIEFS[value, operand]
        confidence = cell.confidence if position else 1.0  # the first value can be read off the prompt
        value = cell.right if rng.random() < confidence else cell.wrong
        words += [name, DIGITS[value]]
        while rng.random() < P_WAIT:
            value = SETTLING[problem.key][value] if operand.twist else value
            words += [WAIT, name, DIGITS[value]]
    return " ".join([*words, END_THINK, DIGITS[value]])


def first_words() -> list[str]:
    """The words that a prompt can begin with."""
    return [key_word(key) for key in range(10)]


def vocabulary(counts: Mapping[str, tuple[int, int]] = OPERAND_COUNT) -> list[str]:
    """All words after a prompt's first, in a fixed order, without the tokenizer's special tokens."""
    letters = ascii_lowercase[: max(most for _, most in counts.values())]
    operands = [letter + digit for case in (letters, letters.upper()) for letter in case for digit in DIGITS]
    return [THINK, END_THINK, WAIT, *DIGITS, *operands]
