"""A policy that took a few steps, and its optimizer."""

import pytest

from tests.support.trained import trained


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("subject") / "model")
