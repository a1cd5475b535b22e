"""Reading shards again, and indexes for tars of others."""

import json
from pathlib import Path

import pytest

from pixelhdm.data.indexing.open_index import open_index
from pixelhdm.data.prepare.prepare import prepare
from pixelhdm.data.reading.storage import Storage
from pixelhdm.errors import UserError
from tests.data.prepare.conftest import save, tree
from tests.data.prepare.test_readers import png, write_tar


@pytest.fixture
def shards(tmp_path: Path, run) -> Path:
    for number in range(6):
        save(tmp_path / f"in/{number}.png", number)
    return run(tmp_path / "in", images_per_shard=3)


def verify(out: Path) -> None:
    prepare(out=str(out), verify=True, num_processes=1)


def test_whole_shards_pass(shards, capsys):
    verify(shards)
    assert "6 images in 2 shards are as their indexes say." in capsys.readouterr().out


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda out: flip(out / "00001.tar", 2000), "other bytes than its index says"),
        (lambda out: flip(out / "00001.tar", 600), "bytes beside its images are not those"),
        (lambda out: (out / "00001.tar").unlink(), "listed in dataset.json, not there"),
        (lambda out: (out / "00001.json").unlink(), "No such file"),
        (lambda out: (out / "00001.json").write_text("{"), "Expecting"),
        (
            lambda out: (out / "00001.tar").write_bytes((out / "00000.tar").read_bytes()),
            "is in the ",
        ),
    ],
)
def test_damage_is_found_and_named(shards, capsys, damage, words):
    damage(shards)
    with pytest.raises(UserError, match=r"got \d+ problems in \d shards, the first: 00001\.tar"):
        verify(shards)
    assert words in capsys.readouterr().out


def test_nothing_to_verify_is_refused(tmp_path):
    with pytest.raises(UserError, match="must be a folder of shards for verify"):
        verify(tmp_path)


def test_indexes_of_tars_as_they_are(tmp_path, capsys):
    members = {"0.png": png(0), "0.json": b'{"caption": "x"}', "1.png": png(1), "1.cls": b"2"}
    tar = write_tar(tmp_path / "in/00000.tar", members | {"2.png": b"broken"})
    before = tar.read_bytes()
    prepare(str(tmp_path / "in"), index_only=True, num_processes=1)
    assert "3 images in 1 tars indexed" in (text := capsys.readouterr().out)
    assert "1 images whose size cannot be read" in text
    assert tar.read_bytes() == before
    assert set(tree(tmp_path / "in")) == {"00000.tar", "00000.json", "dataset.json"}
    files = json.loads((tmp_path / "in/00000.json").read_text())["files"]
    assert files["0.png"].keys() >= {"width", "height", "crc32", "json_path", "json_offset"}
    assert files["1.png"]["label"] == 2
    assert json.loads((tmp_path / "in/dataset.json").read_text())["classes"] == ["0", "1", "2"]
    index = open_index(str(tmp_path / "in"), Storage())
    assert list(index.label) == [-1, 2, -1]
    assert list(index.width) == [40, 40, 0]


def test_compressed_tars_have_no_index(tmp_path):
    write_tar(tmp_path / "x.tar.gz", {"0.png": png(0)})
    with pytest.raises(UserError, match="index_only needs tars that are not compressed"):
        prepare(str(tmp_path / "x.tar.gz"), index_only=True)
