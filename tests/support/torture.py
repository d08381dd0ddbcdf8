"""`make torture`: the long forms of the tests that break things, and the table of what was tried and what happened."""

from collections.abc import Callable, Iterator

import pytest

FAULTS = pytest.StashKey[list[tuple[str, str, str]]]()

Record = Callable[[str, str, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--torture", action="store_true", help="run the long forms, and print the table of faults")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FAULTS] = []


@pytest.fixture(scope="session")
def torture(request: pytest.FixtureRequest) -> bool:
    """Whether the long form of a test is asked for."""
    return request.config.getoption("--torture")


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Iterator[Record]:
    """fault(what was broken, how often and how, what came of it): a row of the table, kept only if the test passes."""
    rows: list[tuple[str, str, str]] = []
    failed = request.session.testsfailed
    yield lambda *row: rows.append(row)
    if request.session.testsfailed == failed:
        request.config.stash[FAULTS] += rows


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[FAULTS]
    if not rows or not config.getoption("--torture"):
        return
    terminalreporter.section("faults tried, and what came of them")
    head = ("fault", "tried", "outcome")
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(3)]
    for row in (head, tuple("-" * width for width in widths), *rows):
        terminalreporter.write_line(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
