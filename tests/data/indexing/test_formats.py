"""Every index of a shard gives the same rows as a walk over its headers."""

import json
import sqlite3
import struct
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pixelhdm.data.indexing.formats import read_shard_index, write_shard_index
from pixelhdm.data.indexing.index import COLUMNS, CRC_KNOWN, TEXT_IN_INDEX, TEXT_IS_JSON, Index
from pixelhdm.data.indexing.open_index import open_index
from pixelhdm.data.reading.storage import Storage
from pixelhdm.errors import UserError
from tests.data.indexing.index_stubs import (
    STORAGE,
    image,
    places,
    sample,
    texts_of,
    write_shards,
    write_tar,
)


def indexed(folder: Path, cache: Path, paths: str | None = None) -> Index:
    return open_index(paths or str(folder), STORAGE, str(cache))


def write_webshart(tar: Path, keys=("offset", "length"), as_list: bool = False) -> None:
    entries = {n: dict(zip(keys, place, strict=True)) for n, place in places(tar).items()}
    files = [{"fname": n, **e} for n, e in entries.items()] if as_list else entries
    content = {"filesize": tar.stat().st_size, "files": files}
    tar.with_suffix(".json").write_text(json.dumps(content))


def parts_by_key(tar: Path) -> dict[str, list[tuple[str, int, int]]]:
    found: dict[str, list[tuple[str, int, int]]] = {}
    for name, (offset, size) in places(tar).items():
        key, _, extension = name.partition(".")
        found.setdefault(key, []).append((extension, offset, size))
    return found


def write_dali(tar: Path, version: str = "v1.2") -> None:
    lines = [
        " ".join(
            f"{e} {o} {s} {key}.{e}" if version == "v1.2" else f"{e} {o} {s}" for e, o, s in parts
        )
        for key, parts in parts_by_key(tar).items()
    ]
    tar.with_suffix(".idx").write_text("\n".join([f"{version} {len(lines)}", *lines, ""]))


def write_energon(tars: list[Path], root: Path, leave_log: bool = False) -> None:
    (root / ".nv-meta").mkdir()
    base = sqlite3.connect(root / ".nv-meta/index.sqlite")
    base.execute("PRAGMA journal_mode = WAL")
    base.execute(
        "CREATE TABLE samples (tar_file_id INTEGER, sample_key TEXT, sample_index INTEGER, "
        "byte_offset INTEGER, byte_size INTEGER)"
    )
    base.execute(
        "CREATE TABLE sample_parts (tar_file_id INTEGER, sample_index INTEGER, part_name TEXT, "
        "content_byte_offset INTEGER, content_byte_size INTEGER)"
    )
    names = [str(tar.relative_to(root)) for tar in tars]
    for number, tar in enumerate(tars):
        for row, (key, parts) in enumerate(parts_by_key(tar).items()):
            base.execute("INSERT INTO samples VALUES (?, ?, ?, 0, 0)", (number, key, row))
            for part in parts:
                base.execute(
                    "INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)", (number, row, *part)
                )
    base.commit()
    about = {"energon_version": "7.4.1", "shard_counts": dict.fromkeys(names, 1)}
    (root / ".nv-meta/.info.json").write_text(json.dumps(about))
    if not leave_log:
        base.close()


def check_equal(index: Index, other: Index) -> None:
    assert index.problems == other.problems == ()
    for name in COLUMNS:
        np.testing.assert_array_equal(index.columns[name], other.columns[name], err_msg=name)
    assert texts_of(index) == texts_of(other)
    assert index.digest == other.digest


def write_index(kind: str, folder: Path, tars: list[Path]) -> None:
    for tar in tars:
        match kind:
            case "webshart":
                write_webshart(tar)
            case "webshart list":
                write_webshart(tar, ("offset", "size"), as_list=True)
            case "dali":
                write_dali(tar)
            case "dali without names":
                write_dali(tar, "v1.1")
    if kind == "energon":
        write_energon(tars[::-1], folder)
    if kind == "energon above":
        write_energon(tars, folder.parent)


KINDS = ["webshart", "webshart list", "dali", "dali without names", "energon", "energon above"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_format_gives_the_rows_of_a_walk(tmp_path, kind, monkeypatch):
    tars = write_shards(tmp_path / "a")
    plain = indexed(tmp_path / "a", tmp_path / "c1")
    assert len(plain) == 8
    write_index(kind, tmp_path / "a", tars)
    monkeypatch.setattr("pixelhdm.data.indexing.shard.walk", None)  # an index needs none
    check_equal(indexed(tmp_path / "a", tmp_path / "c2"), plain)


def test_energon_is_read_where_its_log_was_not_merged(tmp_path, monkeypatch):
    tars = write_shards(tmp_path / "a")
    plain = indexed(tmp_path / "a", tmp_path / "c1")
    write_energon(tars, tmp_path / "a", leave_log=True)
    monkeypatch.setattr("pixelhdm.data.indexing.shard.walk", None)
    check_equal(indexed(tmp_path / "a", tmp_path / "c2"), plain)


def prepared_files(tar: Path, first: int = 0) -> dict[str, dict]:
    """What prepare hands to write_shard_index."""
    files = {name: {"offset": o, "length": n} for name, (o, n) in places(tar).items()}
    for number, (name, entry) in enumerate(files.items()):
        if name.endswith(".jpg"):
            json_name = name.replace(".jpg", ".json")
            n = first + number // 4
            entry |= {"width": 20 + n, "height": 30, "crc32": 7 + n, "label": n % 10}
            entry |= {"json_path": json_name, "json_offset": files[json_name]["offset"]}
            entry |= {"json_length": files[json_name]["length"]}
    return files


def test_our_own_index_is_read_without_opening_the_shard(tmp_path, monkeypatch):
    (tar,) = write_shards(tmp_path / "a", 1)
    plain = indexed(tmp_path / "a", tmp_path / "c1")
    write_shard_index(tar, prepared_files(tar))
    first = tar.with_suffix(".json").read_bytes()
    monkeypatch.setattr("pixelhdm.data.indexing.shard.walk", None)
    monkeypatch.setattr("pixelhdm.data.indexing.listed.facts_of", None)
    monkeypatch.setattr("pixelhdm.data.indexing.listed.peek", None)
    index = indexed(tmp_path / "a", tmp_path / "c2")
    assert list(index.crc32) == [7, 8, 9, 10]
    assert all(index.flags & CRC_KNOWN)
    for name in ("offset", "length", "text_offset", "text_length", "width", "height", "label"):
        np.testing.assert_array_equal(index.columns[name], plain.columns[name], err_msg=name)
    write_shard_index(tar, dict(reversed(prepared_files(tar).items())))
    assert tar.with_suffix(".json").read_bytes() == first, "equal input must give equal bytes"
    content = json.loads(first)
    assert (content["path"], content["filesize"]) == ("00000.tar", tar.stat().st_size)
    assert content["files"]["000000000.jpg"]["aspect"] == 0.6667


@dataclass
class Remote(Storage):
    """Files of a folder under mem://; reads of parts are noted in `seen`."""

    folder: str = ""

    def local(self, path: str) -> str:
        return path.replace("mem://", f"{self.folder}/")

    def read(self, path: str, offset: int, length: int) -> bytes:
        seen.append((path, length))
        return super().read(self.local(path), offset, length)

    def read_whole(self, path: str) -> bytes:
        return super().read_whole(self.local(path))

    def size(self, path: str) -> int:
        return super().size(self.local(path))


seen: list[tuple[str, int]] = []


def test_sizes_in_a_foreign_index_are_not_upright(tmp_path, monkeypatch):
    """Those of local shards are read anew; for those of remote ones that would take too long."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    members = [(f"{n}.jpg", image(40 + n, 30, orientation=6)) for n in range(9)]
    members += [(f"{n}.json", b'{"caption": "x"}') for n in range(9)]
    tar = write_tar(tmp_path / "a/0.tar", members)
    write_webshart(tar)
    content = json.loads(tar.with_suffix(".json").read_text())
    for n in range(9):
        content["files"][f"{n}.jpg"] |= {"width": 40 + n, "height": 30}
    tar.with_suffix(".json").write_text(json.dumps(content))
    assert list(indexed(tmp_path / "a", tmp_path / "c").height) == [*range(40, 49)]
    seen.clear()
    index = open_index("mem://a/0.tar", Remote(folder=str(tmp_path)))
    assert list(index.width) == [*range(40, 49)]
    assert (index.flags == TEXT_IS_JSON).all()
    assert seen == [("mem://a/0.tar", 16)] * 3, "a few JSON parts alone are read"


def test_remote_shards_without_an_index_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    tars = write_shards(tmp_path / "a", 2, 6)
    plain = indexed(tmp_path / "a", tmp_path / "c")
    seen.clear()
    index = open_index("mem://a/{00000..00001}.tar", Remote(folder=str(tmp_path)))
    assert index.digest == plain.digest
    assert seen == [(f"mem://a/{tar.name}", tar.stat().st_size) for tar in tars]
    assert len([*(tmp_path / "home/pixelhdm").glob("*/*/about.json")]) == 1
    open_index("mem://a/{00000..00001}.tar", Remote(folder=str(tmp_path)))
    assert len(seen) == 2


def test_checksums_are_read_where_they_are_asked_for(tmp_path):
    write_shards(tmp_path / "a", 1)
    index = open_index(str(tmp_path / "a"), STORAGE, str(tmp_path / "c"), checksums=True)
    images = [data for n in range(4) for name, data in sample(n) if name.endswith("jpg")]
    assert list(index.crc32) == [zlib.crc32(data) for data in images]
    assert all(index.flags & CRC_KNOWN)
    assert not any(indexed(tmp_path / "a", tmp_path / "c").flags & CRC_KNOWN)


@pytest.mark.parametrize(
    "fields",
    [
        {"captions": ["ünï", "b"]},
        {"captions": "ünï"},
        {"caption": ["ünï"]},
        {"json_metadata": {"caption": "ünï", "x": 1}},
    ],
)
def test_captions_in_webshart_only_are_kept_in_the_index(tmp_path, fields):
    tar = write_tar(tmp_path / "a/0.tar", [("a.jpg", image(20, 30)), ("b.jpg", image(21, 30))])
    write_webshart(tar)
    content = json.loads(tar.with_suffix(".json").read_text())
    content["files"]["b.jpg"] |= fields
    tar.with_suffix(".json").write_text(json.dumps(content))
    index = indexed(tmp_path / "a", tmp_path / "c")
    assert list(index.flags & TEXT_IN_INDEX > 0) == [False, True]
    assert json.loads(texts_of(index)[1])[0] == "ünï"
    assert index.text_length[0] == 0


def test_img2dataset_parquet_is_joined_by_key(tmp_path):
    import pyarrow
    import pyarrow.parquet

    for shard in range(2):
        members = [(f"{shard}{n}.jpg", image(20 + n, 30)) for n in range(3)]
        tar = write_tar(tmp_path / f"a/{shard}.tar", [*members, (f"{shard}2.txt", b"own")])
        rows = {
            "key": [f"{shard}2", f"{shard}0", "gone", f"{shard}1"],
            "caption": ["other", f"caption {shard}", "no", None],
            "status": ["success", "success", "failed", "success"],
            "width": [22, 200, None, 300],
            "height": [30, 300, None, 300],
            "exif": ["{}", "{}", None, '{"Image Orientation": "Rotated 90 CW"}'],
        }
        pyarrow.parquet.write_table(pyarrow.table(rows), tar.with_suffix(".parquet"))
    index = indexed(tmp_path / "a", tmp_path / "c")
    # the second has an orientation, so its size is not the parquet's but the file's
    assert [*zip(index.width, index.height, strict=True)] == [(200, 300), (21, 30), (22, 30)] * 2
    assert texts_of(index) == [b'["caption 0"]', b"", b"own", b'["caption 1"]', b"", b"own"]


def test_a_wids_specification_stands_for_its_shards(tmp_path):
    write_shards(tmp_path / "a", 3)
    shards = [{"url": f"{n:05d}.tar", "nsamples": 4} for n in (2, 0)]
    spec = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": shards}
    (tmp_path / "a/train.json").write_text(json.dumps(spec))
    index = indexed(tmp_path, tmp_path / "c", str(tmp_path / "a/train.json"))
    assert [shard[-9:] for shard in index.shards] == ["00002.tar", "00000.tar"]
    assert index.width[0] == 28
    (tmp_path / "a/train.json").write_text("[]")
    with pytest.raises(UserError, match="must be a list of shards in wids's format"):
        indexed(tmp_path, tmp_path / "c", str(tmp_path / "a/train.json"))


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        (".json", b'{"files": {"a.jpg": {"offs'),
        (".json", b'{"files": {"a.jpg": {"offset": 1}}}'),
        (".json", b'{"files": {"a.jpg": {"offset": -1, "length": 2}}}'),
        (".json", b'{"files": [{"offset": 1, "length": 2}]}'),
        (".json", b'{"files": [7]}'),
        (".json", b"[" * 100_000),
        (".json", b"\xff\xfe\x00"),
        (".idx", b"v1.2 5\njpg 1 2 a.jpg\n"),
        (".idx", b"v1.2 1\njpg 1 2 a b.jpg\n"),
        (".idx", b"v9 1\n"),
        (".idx", b"\xff\n"),
        (".parquet", b"PAR1 nothing"),
    ],
)
def test_a_damaged_index_is_named_and_the_headers_are_read(tmp_path, ending, content):
    (tar,) = write_shards(tmp_path / "a", 1)
    plain = indexed(tmp_path / "a", tmp_path / "c1")
    tar.with_suffix(ending).write_bytes(content)
    index = indexed(tmp_path / "a", tmp_path / "c2")
    assert index.digest == plain.digest
    assert "is damaged" in index.problems[0]
    assert str(tar) in index.problems[0]


def test_other_json_files_are_no_index(tmp_path):
    (tar,) = write_shards(tmp_path / "a", 1)
    for content in (b"{}", b"[1]", b'{"files": 3}', b""):
        tar.with_suffix(".json").write_bytes(content)
        assert indexed(tmp_path / "a", tmp_path / "c").problems == ()


@pytest.mark.parametrize("kind", ["webshart", "dali"])
def test_an_index_of_another_file_is_not_used(tmp_path, kind):
    (tar,) = write_shards(tmp_path / "a", 1)
    write_index(kind, tmp_path / "a", [tar])
    members = [("first.txt", b"x" * 3000)] + [part for n in range(4, 9) for part in sample(n)]
    write_tar(tar, members)
    index = indexed(tmp_path / "a", tmp_path / "c")
    assert list(index.width) == [24, 25, 26, 27, 28]
    assert "not used" in index.problems[0]


def test_a_damaged_energon_index_is_named(tmp_path):
    tars = write_shards(tmp_path / "a", 1)
    write_energon(tars, tmp_path / "a")
    (tmp_path / "a/.nv-meta/index.sqlite").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    index = indexed(tmp_path / "a", tmp_path / "c")
    assert len(index) == 4
    assert "Energon index" in index.problems[0]


def test_energons_offsets_tell_how_many_samples_a_cut_took(tmp_path):
    (tar,) = write_shards(tmp_path / "a", 1, 6)
    starts = [parts[0][1] - 512 for parts in parts_by_key(tar).values()]
    end = len(tar.read_bytes().rstrip(b"\0"))
    (tmp_path / "a/00000.tar.idx").write_bytes(struct.pack("<7Q", *starts, end))
    tar.write_bytes(tar.read_bytes()[: starts[2] + 600])
    index = indexed(tmp_path / "a", tmp_path / "c")
    assert len(index) == 2
    assert f"cut off at byte {starts[2] + 600}, 4 samples lost" in index.problems[0]


def test_webshart_of_an_unusual_shape():
    listing = read_shard_index(b'{"files": {"a.jpg": {"offset": 0, "size": 5, "width": null}}}')
    assert listing is not None
    assert listing.size is None
    assert listing.members[0][:3] == ("a.jpg", 0, 5)
    assert tarfile.BLOCKSIZE == 512
