"""Settings of the whole suite."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported: tests compute on one thread, so that a busy machine does not stall them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.e2e.life import stop_fork_server
from tests.tiny_vgg import save_vgg


@pytest.fixture(scope="session", autouse=True)
def fork_server() -> Iterator[None]:
    """It ends with the tests."""
    yield
    stop_fork_server()


@pytest.fixture(scope="session")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with random convolutions of VGG16, written where a test asks for it."""
    return save_vgg(tmp_path_factory.mktemp("vgg") / "vgg16.pth")
