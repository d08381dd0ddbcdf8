r"""The math reward on every problem of the public sets: each gold answer is paid, somebody else's answer is not."""

import itertools
import json
import random
import re

import pytest

from siri.data.problems import load_problems
from siri.rewards.pool import RewardPool

FILES = ("aime24.json", "amc83.json", "math500.json", "math_train.json")
ROWS = 8087
WIDE = str.maketrans("0123456789", "".join(chr(0xFF10 + digit) for digit in range(10)))


@pytest.fixture(scope="module")
def golds(data_dir):
    return [problem.answer for file in FILES for problem in load_problems(data_dir / file).problems]


@pytest.fixture(scope="module")
def pool():
    with RewardPool("math", workers=2) as pool:
        yield pool


def score(pool, golds, answers):
    responses = [f"<think>\nLet me see, \\boxed{{0}}?\n</think>\n\nThe answer is \\boxed{{{a}}}." for a in answers]
    batch = pool.score(responses, golds)
    assert batch.timeouts == 0
    assert (batch.errors, batch.first_error) == (0, "")
    return batch.rewards


def plain(answer: str) -> str:
    """This test's own idea of equal text, kept apart from the reward's: spaces and bracket sizes mean nothing."""
    return re.sub(r"\s|\\left|\\right|\\!|\\,|[.,]$", "", answer)


def quantity(answer: str) -> float | None:
    """This test's own reading of a number, its unit aside: decimal, fraction, root, multiple of pi; else None."""
    text = plain(re.sub(r"\\(?:text|mbox)\{[^{}]*\}(?:\^\d)?|\^\{?\\circ\}?|\\\$", "", answer))
    text = re.sub(r"(?<=\d)(?:,|\{,\})(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"\\[dt]?frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\[dt]?frac\{(\d+)\}(\d)$", r"\\frac{\1}{\2}", text)
    text = re.sub(r"^(-?)(\d+)\\frac\{(\d+)\}\{(\d+)\}$", r"\1(\2+\3/\4)", text)
    text = re.sub(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))", text)
    text = re.sub(r"(?<=[\d)])\\sqrt", r"*\\sqrt", text)
    text = re.sub(r"\\sqrt(?:\{(\d+)\}|(\d))", r"(\1\2)**0.5", text)
    text = re.sub(r"(?<=[\d)])\\pi", "*3.141592653589793", text)
    if not re.fullmatch(r"[-+*/().\d]+", text) or re.search(r"\*\*(?!0\.5)", text):
        return None
    try:
        return float(eval(text))  # digits and operators only
    except SyntaxError:
        return None


def same_quantity(a: str, b: str) -> bool:
    """155 and 155^\\circ, 9 min and 9 values, 0.2 and 0.20: other text, yet nobody could call the second one wrong."""
    x, y = quantity(a), quantity(b)
    return x is not None and y is not None and abs(x - y) <= 1e-12 * abs(x)


def check_unequal(pool, pairs, what, capsys):
    rewards = score(pool, [gold for gold, _ in pairs], [answer for _, answer in pairs])
    paid = [pair for pair, reward in zip(pairs, rewards, strict=True) if reward]
    equal = [pair for pair in paid if same_quantity(*pair)]
    wrong = [pair for pair in paid if not same_quantity(*pair)]
    counted = len(pairs) - len(equal)
    rate = 1 - len(wrong) / counted
    with capsys.disabled():
        print(
            f"\n{what}: {rate:.2%} of {counted} pairs score 0; paid wrongly: {wrong}; "
            f"left out, as they are the same quantity in other words: {len(equal)} {equal[:6]}"
        )
    assert rate >= 0.9995
    assert len(equal) <= 0.01 * len(pairs)


def test_gold_answers_score_one(golds, pool, data_dir, capsys):
    assert sum(len(json.loads((data_dir / file).read_text())) for file in FILES) == ROWS
    rewards = score(pool, golds, golds)
    misses = [gold for gold, reward in zip(golds, rewards, strict=True) if reward != 1.0]
    # The four rows without an answer count as misses.
    rate = sum(rewards) / ROWS
    with capsys.disabled():
        print(
            f"\ngold answers: {rate:.2%} of {ROWS} rows score 1; {ROWS - len(golds)} have no answer; misses: {misses}"
        )
    assert rate >= 0.999


def test_gold_answers_of_deepscaler_score_one(data_dir, pool, capsys):
    golds = [problem.answer for problem in load_problems(data_dir / "deepscaler_part.parquet").problems]
    rewards = score(pool, golds, golds)
    misses = [gold for gold, reward in zip(golds, rewards, strict=True) if reward != 1.0]
    with capsys.disabled():
        print(f"\ngold answers of DeepScaleR: {sum(rewards) / len(golds):.2%} of {len(golds)}; misses: {misses}")
    assert sum(rewards) >= 0.995 * len(golds)


def test_answers_of_other_problems_score_zero(golds, pool, capsys):
    order = random.Random(0).sample(range(len(golds)), len(golds))
    pairs = []
    for place, index in enumerate(order):
        others = (golds[order[(place + step) % len(order)]] for step in range(1, len(order)))
        pairs.append((golds[index], next(other for other in others if plain(other) != plain(golds[index]))))
    check_unequal(pool, pairs, "another problem's answer", capsys)


def test_lookalike_answers_score_zero(golds, pool, capsys):
    """The same with the most similar answers there are: neighbours in alphabetical order, both ways."""
    answers = sorted(set(golds))
    pairs = [(a, b) for a, b in itertools.pairwise(answers) if plain(a) != plain(b)]
    check_unequal(pool, [*pairs, *((b, a) for a, b in pairs)], "its closest lookalike", capsys)


@pytest.mark.parametrize(
    ("what", "rewrite"),
    [
        ("display fractions", lambda a: a.replace("\\frac", "\\dfrac")),
        ("no spaces", lambda a: re.sub(r"(?<![a-zA-Z\d])\s+|\s+(?![a-zA-Z\d])", "", a)),
        ("wider", lambda a: re.sub(r"([-+=]|,(?!\d{3}))", r" \1 ", a) if "\\!" not in a and "\\," not in a else a),
        ("in dollars", lambda a: f"${a}$" if "$" not in a else a),
        ("named", lambda a: f"x = {a}" if not re.search(r"[=,<>]|\\(?:le|text|mbox|cup|in\b)", a) else a),
        ("without units", lambda a: re.sub(r"(?<=\d)\s*\\(?:text|mbox)\{[^{}]*\}(?:\^\d)?$|\^\{?\\circ\}?$", "", a)),
        ("plain thousands", lambda a: re.sub(r",\\!\s*|\{,\}", "", a)),
        ("plain fractions", lambda a: re.sub(r"^(-?)\\frac\{(\d+)\}\{(\d+)\}$", r"\1\2/\3", a)),
        ("in bold", lambda a: f"\\boldsymbol{{{a}}}"),
        ("in colour", lambda a: f"{{\\color{{blue}}{a}}}"),
        ("in display math", lambda a: f"\\[{a}\\]"),
        ("with a minus of its own", lambda a: a.replace("-", "\u2212") if "\\text" not in a else a),
        ("in full-width digits", lambda a: a.translate(WIDE) if a.isdigit() else a),
        ("and a thin space", lambda a: f"{a}\\,"),
        (
            "reversed lists",
            lambda a: ",".join(reversed(a.split(","))) if re.fullmatch(r"(-?\d\d?, ?)+-?\d\d?", a) else a,
        ),
    ],
)
def test_other_spellings_of_the_gold_answer_score_one(golds, pool, capsys, what, rewrite):
    pairs = [(gold, rewrite(gold)) for gold in sorted(set(golds))]
    pairs = [(gold, answer) for gold, answer in pairs if gold != answer]
    rewards = score(pool, *zip(*pairs, strict=True))
    misses = [pair for pair, reward in zip(pairs, rewards, strict=True) if not reward]
    with capsys.disabled():
        print(f"\n{what}: {sum(rewards) / len(pairs):.2%} of {len(pairs)} score 1; misses: {misses}")
    assert sum(rewards) >= 0.99 * len(pairs)
