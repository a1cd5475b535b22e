"""Two processes at once, a full disk and a reader that goes."""

import errno
import os
import time
from pathlib import Path

import pytest

from pixelhdm.data.prepare import shards
from pixelhdm.data.prepare.lock import locked
from pixelhdm.errors import UserError
from tests.data.prepare.conftest import tree


@pytest.fixture
def held(tmp_path: Path):
    """Another process that holds part 1 of 2."""
    (tmp_path / "out/.prepare").mkdir(parents=True)
    child = os.fork()
    if child == 0:
        with locked(tmp_path / "out", 1, 2):
            (tmp_path / "there").touch()
            time.sleep(60)
        os._exit(0)
    while not (tmp_path / "there").exists():
        time.sleep(0.001)
    yield child
    os.kill(child, 9)
    os.waitpid(child, 0)


def test_one_process_works_on_a_part(tmp_path, held):
    for part in ((1, 2), (1, 1)):
        words = r"where another prepare is working on part 1/2\. Wait"
        with pytest.raises(UserError, match=words), locked(tmp_path / "out", *part):
            pass
    with locked(tmp_path / "out", 2, 2):
        pass
    assert set(tree(tmp_path / "out")) == {".prepare/1-of-2.lock"}


def test_locks_of_killed_processes_do_not_stay(tmp_path):
    lock = tmp_path / "out/.prepare/3-of-4.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    with locked(tmp_path / "out", 1, 1):
        assert not lock.exists()
        lock.touch()
    assert tree(tmp_path / "out") == {}


def test_a_full_disk_is_told_in_one_sentence(photos, run, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shards.TarWriter, "write", full)
        with pytest.raises(UserError, match=r"out must have room .* no space left on the device\."):
            run(photos)
    assert not list((tmp_path / "out").rglob("*.lock"))
    assert (run(photos) / "dataset.json").exists()
