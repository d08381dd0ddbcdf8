"""Lists whose order says which value is whose: truth values, and values beside values with words before them."""

import pytest

from siri.rewards.answers import same_answer
from siri.rewards.grading.truths import are_truths


@pytest.mark.parametrize(
    "text", ["True, False", r"\text{Yes}, \text{No}", "T, F, T", "是,否", "对, 错", r"\times, \sqrt", "right, wrong"]
)
def test_truth_values_have_an_order(text):
    parts = text.split(",")
    assert are_truths(parts)
    assert same_answer(text, "; ".join(parts)) and not same_answer(text, ", ".join([parts[-1], *parts[:-1]]))


@pytest.mark.parametrize("text", ["True", "red, blue", "True, 5", "A, B", "A, F"])
def test_other_lists_are_none_of_truth_values(text):
    assert not are_truths(text.split(","))


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        (r"\text{Quotient: }x+1, \text{Remainder: }3", "x+1, 3", True),
        (r"\text{Quotient: }x+1, \text{Remainder: }3", "3, x+1", False),
        (r"Quotient: x+1; Remainder: 3", "3, x+1", False),
        (r"\text{Domain: }[0,1], \text{Range: }[2,3]", "[0,1], [2,3]", True),
        (r"\text{Domain: }[0,1], \text{Range: }[2,3]", "[2,3], [0,1]", False),
    ],
)
def test_words_before_values_say_whose_they_are(gold, answer, same):
    assert same_answer(gold, answer) == same == same_answer(answer, gold)


@pytest.mark.parametrize("money", [r"\$20", "€20", "20 dollars", r"\$0.20"])
def test_money_is_no_percentage(money):
    assert not same_answer(r"20\%", money) and not same_answer(money, r"20\%")
    assert same_answer(money, money + ".")
