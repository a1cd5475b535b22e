import os

import pytest

from pixelhdm.files import replacing


def names(folder) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_whole_file_takes_the_place_of_the_old_one(tmp_path):
    file = tmp_path / "a.txt"
    for text in ("first", "second, longer", "3"):
        with replacing(file) as temporary:
            temporary.write_text(text)
        assert file.read_text() == text
        assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("written", ["", "half"])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error, written, old):
    file = tmp_path / "a.txt"
    if old:
        file.write_text(old)

    def fail() -> None:
        with replacing(file) as temporary:
            if written:
                temporary.write_text(written)
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == (["a.txt"] if old else [])
    assert not old or file.read_text() == old


def test_until_the_end_the_old_file_is_there_and_the_new_one_has_another_ending(tmp_path):
    file = tmp_path / "step_1.ckpt"
    file.write_text("old")
    with replacing(str(file)) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old"
        assert temporary.parent == tmp_path
        assert not temporary.name.endswith(".ckpt")
    assert file.read_text() == "new"


def test_data_are_on_the_disk_before_the_move(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: done.append("fsync") or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: done.append("replace") or replace(a, b))
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("text")
    assert done[:2] == ["fsync", "replace"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a"):
        pass
    assert names(tmp_path) == []
