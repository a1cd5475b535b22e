"""Settings of the whole suite."""

import os
from collections.abc import Iterator

import pytest

# Before torch is imported: tests compute on one thread, so that a busy machine does not stall them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.e2e.life import stop_fork_server


@pytest.fixture(scope="session", autouse=True)
def fork_server() -> Iterator[None]:
    """It ends with the tests."""
    yield
    stop_fork_server()
