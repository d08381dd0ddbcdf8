"""Notes on rounding, dropped where the digits are as many as they say."""

import pytest

from siri.rewards.grading.roundings import without_rounding


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3.14 (to 2 decimal places)", "3.14"),
        (r"3.14\text{ cm (2 d.p.)}", r"3.14\text{ cm}"),
        (r"$3.14\text{, rounded to the nearest hundredth}$", "$3.14$"),
        ("0.050 (2 s.f.)", "0.050"),
        ("1200 (to the nearest hundred)", "1200"),
        ("1,200 (to the nearest integer)", "1,200"),
    ],
)
def test_a_note_that_fits_is_dropped(text, value):
    assert without_rounding(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "3.14 (to 3 decimal places)",
        "3.1 (to the nearest hundredth)",
        "1234 (to the nearest hundred)",
        "3.14 (not to 2 decimal places)",
        "3.14 (2 decimal",
        r"\pi (to 2 decimal places)",
        "x^{3.14} (to 2 decimal places)",
        "3.14 (to the nearest moon)",
        " " * 8000 + "(",
    ],
)
def test_any_other_text_stays(text):
    assert without_rounding(text) == text
