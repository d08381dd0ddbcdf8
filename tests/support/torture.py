"""`make torture`: the long forms of the tests that break things, and the table of what was tried and what happened.
Every process is started afresh there (see warm.py)."""

import os
import time
from collections.abc import Callable

import pytest

from tests.support import warm

Record = Callable[[str, str, str], None]
Long = Callable[[int, int], int]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--torture", action="store_true", help="run the long forms, and print the table of faults")
    parser.addoption("--share", type=float, default=100.0, help="with --torture: percent of each long form to try")
    parser.addoption("--minutes", type=float, default=120.0, help="with --torture: what has not begun then is left out")
    parser.addoption("--hours", action="store_true", help="with --torture: also what takes hours")


def pytest_configure(config: pytest.Config) -> None:
    if not 0 < config.getoption("--share") <= 100:
        raise pytest.UsageError("--share is a percentage")
    config.stash[BEGAN] = time.monotonic()
    warm.cold |= config.getoption("--torture") or os.environ.get("SIRI_TEST_VLLM") == "1"


BEGAN = pytest.StashKey[float]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("--minutes")
    if item.config.getoption("--torture") and time.monotonic() - item.config.stash[BEGAN] > 60 * minutes:
        pytest.skip(f"the {minutes:g} minutes are over")


@pytest.fixture(scope="session")
def torture(request: pytest.FixtureRequest) -> bool:
    """Whether the long form of a test is asked for."""
    return request.config.getoption("--torture")


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> Long:
    """long(short, whole): how often to try, in the suite and in the whole of make torture; in between in a part."""
    share = request.config.getoption("--share") / 100 if request.config.getoption("--torture") else 0.0
    return lambda short, whole: max(min(short, whole), round(share * whole))


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Record:
    """fault(what was broken, how often and how, what came of it): a row of the table, shown only if the test passes."""
    return lambda *row: request.node.user_properties.append(("fault", row))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """From the reports, which come from other processes where files run side by side."""
    if not config.getoption("--torture"):
        return
    passed = terminalreporter.stats.get("passed", [])
    rows = [
        (*value, f"{report.duration:.0f} s")
        for report in passed
        for key, value in report.user_properties
        if key == "fault"
    ]
    head = ("fault", "tried", "outcome", "took")
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    terminalreporter.section("faults tried, and what came of them")
    for row in (head, tuple("-" * width for width in widths), *sorted(rows)):
        terminalreporter.write_line(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    counts = {kind: len(terminalreporter.stats.get(kind, [])) for kind in ("passed", "failed", "error", "skipped")}
    minutes = (time.monotonic() - config.stash[BEGAN]) / 60
    terminalreporter.write_line(
        f"make torture: {', '.join(f'{count} {kind}' for kind, count in counts.items())} in {minutes:.1f} min; "
        f"long forms at {config.getoption('--share'):g} %"
    )
    for report in terminalreporter.stats.get("skipped", []):
        terminalreporter.write_line(f"left out: {report.nodeid}: {report.longrepr[-1]}")
