r"""How far \text reaches, and parts by their numbers."""

import pytest

from siri.rewards.grading.parts import numbered
from siri.rewards.grading.texts import apart


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (r"3\text{ cm, }4\text{ cm}", r"3\text{ cm}, 4\text{ cm}"),
        (r"3\text{ cm, and }4", r"3\text{ cm}\text{ and }4"),
        (r"\text{center }(1,2)\text{ and radius }3", r"\text{center }(1,2), \text{radius }3"),
        (r"\text{center }(1,2)\text{, radius }3", r"\text{center }(1,2), \text{radius }3"),
        (r"x\text{ or radius }3", r"x\text{ or }\text{radius }3"),
        (r"\text{Alice: 5 cm; Bob: 3}", r"\text{Alice: }5\text{ cm}, \text{Bob: }3"),
        (r"\frac38\text{ (or }37.5\%\text{)}", r"\frac38(\text{ or }37.5\%)"),
    ],
)
def test_what_joins_values_stands_outside(text, told):
    assert apart(text) == told


@pytest.mark.parametrize(
    "text",
    [
        r"3\text{ dollars and }75\text{ cents}",
        r"5\text{ cm, not }6",
        r"5\text{, so }6",
        r"x=2k\pi\text{, where }k\in\mathbb{Z}",
        r"5\text{ boys and girls}",
        r"\text{red, blue}",
        r"\text{Hence, }5",
        r"3, 5\text{, respectively}",
        r"5\text{ or more}",
    ],
)
def test_sentences_stay(text):
    assert apart(text) == text


def test_hostile_texts_take_no_time():
    for part in (r"5\text{ cm, }", r"\text{" + " " * 40 + ",", "a " * 30 + r"\text{ and ", "{"):
        text = part * (8000 // len(part))
        assert len(apart(text)) >= len(text) - len(part)


def test_parts_stand_in_the_order_of_their_numbers():
    assert numbered("(2) 7; (1) 2") == numbered("(1) 2; (2) 7") == numbered(r"\text{(1) 2, (2) 7}") == ["2", "7"]
    assert numbered("(1) 2; (3) 7") == numbered("(2) 2; (2) 7") == []
