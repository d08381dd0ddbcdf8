"""The one exception that means "the user's input is wrong": the CLI prints its text as one line and exits with 2."""


class InputError(Exception):
    """Bad input. The message is one line that names the culprit (file, key, value) and the way out."""


def first_line(error: Exception) -> str:
    """The first line of an exception's text, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
