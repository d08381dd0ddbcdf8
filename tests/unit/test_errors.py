"""What an error line says of another program's exception."""

import pytest

from siri.errors import first_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("one\ntwo", "one"),
        ("", "ValueError"),
        # as transformers says that a value of config.json is of another type
        ("Validation error for field 'hidden_size':\n    TypeError: expected int, got str", None),
        ("nothing behind:\n\n", "nothing behind:"),
    ],
)
def test_the_first_line_says_what_is_wrong(text, line):
    said = first_line(ValueError(text))
    assert said == (line or "Validation error for field 'hidden_size': TypeError: expected int, got str")
    assert "\n" not in said
