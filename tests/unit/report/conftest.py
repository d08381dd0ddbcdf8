"""A run of the demo, and its report."""

import pytest

from tests.support.pages import read
from tests.support.synthetic_run import make_run


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def page(demo):
    return read(demo)
