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
    assert "6 images are in 2 shards as the indexes say." in capsys.readouterr().out


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
        (lambda out: (out / "00001.json").unlink(), "its index 00001.json is not"),
        (lambda out: (out / "00001.json").write_text("{"), "Expecting"),
        (
            lambda out: (out / "00001.tar").write_bytes((out / "00000.tar").read_bytes()),
            "6 members are in the tar alone",
        ),
    ],
)
def test_damage_is_found_and_named(shards, capsys, damage, words):
    damage(shards)
    with pytest.raises(UserError, match=r"got \d+ problems? in \d shards?, the first: 00001\.tar"):
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
    assert "3 images in 1 tar indexed" in (text := capsys.readouterr().out)
    assert "1 image whose size cannot be read" in text
    assert tar.read_bytes() == before
    assert set(tree(tmp_path / "in")) == {"00000.tar", "00000.json", "dataset.json"}
    files = json.loads((tmp_path / "in/00000.json").read_text())["files"]
    assert files["0.png"].keys() >= {"width", "height", "crc32", "json_path", "json_offset"}
    assert files["1.png"]["label"] == 2
    assert json.loads((tmp_path / "in/dataset.json").read_text())["classes"] == ["0", "1", "2"]
    index = open_index(str(tmp_path / "in"), Storage())
    assert list(index.label) == [-1, 2, -1]
    assert list(index.width) == [40, 40, 0]


def indexed(source: Path) -> None:
    prepare(str(source), index_only=True, num_processes=1)


def test_damage_since_the_index_is_told_and_stays_known(tmp_path, capsys):
    tar = write_tar(tmp_path / "in/0.tar", {"0.png": png(0), "1.png": png(1)})
    indexed(tmp_path / "in")
    about = tmp_path / "in/dataset.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"licence": "CC0"}))
    files = json.loads((tmp_path / "in/0.json").read_text())["files"]
    flip(tar, files["1.png"]["offset"] + files["1.png"]["length"] - 9)
    capsys.readouterr()
    indexed(tmp_path / "in")
    assert "0.tar: 1.png has other bytes than its index says (crc32)" in capsys.readouterr().out
    assert json.loads((tmp_path / "in/0.json").read_text())["files"] == files
    assert json.loads(about.read_text())["licence"] == "CC0"
    with pytest.raises(UserError, match=r"1\.png has other bytes .* Get the tars that are named"):
        verify(tmp_path / "in")
    write_tar(tar, {"2.png": png(2)})  # another tar, not damage
    indexed(tmp_path / "in")
    verify(tmp_path / "in")


def test_what_others_wrote_into_an_index_stays(tmp_path):
    write_tar(tmp_path / "0.tar", {"0.png": png(0)})
    entry = {"offset": 512, "length": len(png(0)), "json_metadata": {"caption": "x"}}
    (tmp_path / "0.json").write_text(json.dumps({"files": {"0.png": entry}}))
    indexed(tmp_path / "0.tar")
    files = json.loads((tmp_path / "0.json").read_text())["files"]
    assert files["0.png"].keys() >= {"json_metadata", "width", "crc32"}


@pytest.mark.parametrize("name", ["1.json", "dataset.json"])
@pytest.mark.parametrize("text", ['{"mine": 1}', "[1]", "{", ""])
def test_files_of_others_are_not_overwritten(tmp_path, name, text):
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", {"0.png": png(0)})
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"index_only must find .*{name}, which .*Move it away"):
        indexed(tmp_path)
    assert set(tree(tmp_path)) == {"0.tar", "1.tar", name}
    assert (tmp_path / name).read_text() == text


def test_one_tar_of_many_leaves_their_list_alone(tmp_path):
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", {"0.png": png(number)})
    indexed(tmp_path)
    before = (tmp_path / "dataset.json").read_text()
    indexed(tmp_path / "1.tar")
    assert (tmp_path / "dataset.json").read_text() == before


@pytest.mark.parametrize(
    ("damage", "advice"),
    [
        (lambda folder: (folder / "0.json").unlink(), r"index_only makes the indexes anew, once"),
        (lambda folder: (folder / "0.json").write_text('{"files": {}}'), "lists no files. prepare"),
        (lambda folder: flip(folder / "0.tar", 700), "Get the tars that are named again from"),
        (lambda folder: (folder / "0.tar").unlink(), "Get the tars that are named again from"),
    ],
)
def test_nobody_is_told_to_delete_originals(tmp_path, damage, advice):
    for number in range(2):
        write_tar(tmp_path / f"in/{number}.tar", {"0.png": png(number), "1.txt": b"x"})
    indexed(tmp_path / "in")
    damage(tmp_path / "in")
    with pytest.raises(UserError, match=advice) as caught:
        verify(tmp_path / "in")
    assert "got 1 problem in" in str(caught.value)
    assert "Delete" not in str(caught.value)


def test_a_broken_image_is_told_without_addresses(tmp_path):
    write_tar(tmp_path / "in/0.tar", {"0.png": b"broken"})
    indexed(tmp_path / "in")
    with pytest.raises(UserError, match=r"0\.png does not decode: cannot identify image file\."):
        verify(tmp_path / "in")


def test_compressed_tars_have_no_index(tmp_path):
    write_tar(tmp_path / "x.tar.gz", {"0.png": png(0)})
    with pytest.raises(UserError, match="index_only needs tars that are not compressed"):
        prepare(str(tmp_path / "x.tar.gz"), index_only=True)
