"""Floats that stand for another number, as gold answers."""

import random
from decimal import Decimal
from fractions import Fraction

import pytest

from siri.data.decimals import likely_values, plain, readings
from siri.rewards import exact_reward, math_reward


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("0.14285714285714285", "\\frac17"),
        ("0.14285714285714285", "1/7"),
        ("0.14285714285714285", "0.142857"),
        ("-0.14285714285714285", "-\\frac{1}{7}"),
        ("0.6666666666666666", "\\frac23"),
        ("3.3333333333333335", "3\\frac13"),
        ("123456789.33333333", "\\frac{370370368}{3}"),
        ("0.30000000000000004", "0.3"),
        ("0.10000000000000001", "0.1"),
        ("0.1000000000000000055511151231257827", "\\frac{1}{10}"),
        ("4.9999999999999996", "5"),
        ("0.142857142857142857142857", "1/7"),
        ("0.09999999999999998", "\\frac{1}{10}"),
        ("2e-05", "0.00002"),
        ("2e-05", "2 \\times 10^{-5}"),
        ("1e+22", "10^{22}"),
        ("1.4142135623730951", "\\sqrt{2}"),
        ("3.141592653589793", "\\pi"),
        ('["0.14285715", "0.142857", "1/7"]', "\\frac{1}{7}"),
    ],
)
def test_floats_are_what_they_stand_for(gold, answer):
    assert math_reward(f"</think> \\boxed{{{answer}}}", gold) == 1


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("0.14285714285714285", "\\frac18"),
        ("0.14285714285714285", "-\\frac17"),
        ("0.14285714285714285", "0.14"),
        ("0.3333333333333333", "0.33"),
        ("0.33", "\\frac13"),
        ("0.14286", "\\frac17"),
        ("1.4142135623730951", "\\sqrt{3}"),
        ("2e-05", "0.00003"),
        ("6.123233995736766e-17", "0"),
    ],
)
def test_and_nothing_else(gold, answer):
    assert math_reward(f"</think> \\boxed{{{answer}}}", gold) == 0


def test_exact_stays_exact():
    assert exact_reward("</think> 1/7", "0.14285714285714285") == 0


def test_every_simple_fraction_is_found_and_short_decimals_are_left_alone():
    draw = random.Random(0)
    for _ in range(2000):
        fraction = Fraction(draw.randint(-5000, 5000), draw.randint(1, 5000))
        value = Decimal(repr(float(fraction)))
        if values := likely_values(value):
            assert Fraction(values[-1]) == fraction
        else:
            assert Fraction(value) == fraction or len(value.as_tuple().digits) < 16, (fraction, value)
    assert readings("0.125") == ["0.125"] and readings("12345.678") == ["12345.678"]
    assert readings("3.14159265358979323846") == ["3.14159265358979323846", "3.14159265358979"]


def test_a_float_by_chance_stands_for_no_fraction():
    draw = random.Random(1)
    readings = [likely_values(Decimal(repr(draw.uniform(-1000, 1000)))) for _ in range(20_000)]
    assert sum(len(values) > 1 for values in readings) <= 2


def test_texts_that_are_no_floats_are_left_alone():
    for text in ("", "x", "1/7", "\\frac17", "0x10", "1e99999", "9" * 5000, "1 5", "٣"):
        assert readings(text) == [text]


def test_plain_digits():
    assert plain(Decimal("-1.20E-3")) == "-0.0012" and plain(Decimal("5E+3")) == "5000"
    with pytest.raises(ValueError, match="4000 digits"):
        plain(Decimal("1E+5000"))
