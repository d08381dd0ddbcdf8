"""The environment of these tests is what constraints-vllm.txt says."""

import pytest

from tests.support.lock import lock_of_this_environment, outside


def test_this_environment_is_what_the_lock_says():
    files = lock_of_this_environment()
    if not files:
        pytest.skip("make did not install this environment from a lock")
    assert outside(files) == []
