import json
import multiprocessing
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pixelhdm.data.indexing import cache
from pixelhdm.data.indexing import open_index as opening
from pixelhdm.data.indexing.index import TEXT_IS_JSON, Index
from pixelhdm.data.indexing.open_index import open_index
from pixelhdm.data.reading.storage import ReadError, Storage
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

CAN_FORK = "fork" in multiprocessing.get_all_start_methods()


def indexed(tmp_path: Path, *members: tuple[str, bytes]) -> Index:
    """The index of one shard of these files."""
    write_tar(tmp_path / "a/0.tar", list(members))
    return open_index(str(tmp_path / "a"), STORAGE, str(tmp_path / "cache"))


def widths(index: Index) -> list[int]:
    return [int(width) for width in index.width]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 10**6), style=st.sampled_from([0, 1, 2]), folder=st.booleans())
def test_parts_in_any_order_belong_together(tmp_path, seed, style, folder):
    """Interleaved parts, long names and folders lose and mix nothing."""
    shuffled = random.Random(seed)
    prefix = "long/" * 24 if folder and style else "x/"
    members = [(prefix + name, data) for n in range(6) for name, data in sample(n)]
    shuffled.shuffle(members)
    tar = write_tar(tmp_path / f"{seed}{style}{folder}/0.tar", members, style)
    index = open_index(str(tar), STORAGE, str(tar.parent))
    assert index.problems == ()
    assert sorted(widths(index)) == [20, 21, 22, 23, 24, 25]
    assert list(index.offset) == sorted(index.offset)
    for width, label, text in zip(widths(index), index.label, texts_of(index), strict=True):
        assert label == width - 20
        assert json.loads(text)["captions"][0] == f"caption {width - 20}"


def test_names_are_split_by_webdatasets_rule(tmp_path):
    index = indexed(
        tmp_path,
        ("./k.JPG", image(20, 30)),
        ("./k.TXT", b"k"),
        ("d/k.jpg", image(21, 30)),
        ("d/k.txt", b"d/k"),
        ("my.photo.v2.jpg", image(22, 30)),
        ("my.photo.v2.txt", b"v2"),
        ("p.jpg", image(23, 30)),
        ("p.mask.png", image(99, 30, "PNG")),
        (".hidden.jpg", image(98, 30)),
        ("d/._k.jpg", image(97, 30)),
        ("__meta__/x.jpg", image(96, 30)),
        ("a__b.jpg", image(24, 30)),
        ("README", b"no extension"),
    )
    assert widths(index) == [20, 21, 22, 23, 24]
    assert texts_of(index) == [b"k", b"d/k", b"v2", b"", b""]
    assert index.problems == ()


def test_no_image_is_lost_among_names_with_many_dots(tmp_path):
    names = [("my.v1.jpg", 20), ("my.v2.jpg", 21), ("my.v3.png", 22)]
    images = [(name, image(width, 30, "PNG" if "png" in name else "JPEG")) for name, width in names]
    index = indexed(tmp_path, *images, ("my.v2.txt", b"two"), ("my.txt", b"all"))
    assert widths(index) == [20, 21, 22]
    assert texts_of(index) == [b"all", b"two", b"all"]
    assert "3 images whose names are equal up to the first dot" in index.problems[0]


def test_sizes_are_upright_and_broken_ones_nought(tmp_path):
    turned = image(40, 30, orientation=6)
    index = indexed(
        tmp_path,
        ("a.jpg", turned),
        ("b.jpg", b"no image"),
        ("c.webp", image(300, 200, "WEBP")),
        ("d.png", image(300, 200, "PNG")),
        ("e.gif", image(50, 60, "GIF")),
        ("f.tif", image(300, 200, "TIFF")),
        ("g.bmp", image(50, 60, "BMP")),
        ("h.jpg", image(40, 30)[:60]),
        ("i.jpg", b""),
    )
    sizes = [*zip(index.width, index.height, strict=True)]
    big = (300, 200)
    assert sizes == [(30, 40), (0, 0), big, big, (50, 60), big, (50, 60), (0, 0), (0, 0)]
    assert "3 images of unreadable size" in index.problems[0]


def test_text_and_label_come_from_the_part_that_has_them(tmp_path):
    jpg = image(20, 30)
    parts = {
        "a": {"json": b'{"captions": ["a"]}', "txt": b"t"},
        "b": {"json": b'{"tags": 3, "label": 4}', "txt": b"t"},
        "c": {"json": b'{"cls": 5, "class": "name"}', "caption": b"c"},
        "d": {"json": b"broken", "txt": b"t", "cls": b" 7\n"},
        "e": {"json": b'{"label": true}', "cls": b"seven"},
        "f": {"txt": b""},
    }
    members = [(f"{k}.{e}", data) for k, named in parts.items() for e, data in named.items()]
    index = indexed(tmp_path, *[(f"{k}.jpg", jpg) for k in parts], *members)
    assert texts_of(index) == [b'{"captions": ["a"]}', b"t", b"c", b"t", b"", b""]
    assert list(index.flags & TEXT_IS_JSON) == [TEXT_IS_JSON, 0, 0, 0, 0, 0]
    assert list(index.label) == [-1, 4, 5, 7, -1, -1]


def test_samples_without_an_image_and_second_files_are_counted(tmp_path):
    jpg = image(20, 30)
    index = indexed(tmp_path, ("a.jpg", jpg), ("b.txt", b""), ("c.txt", b""), ("a.jpg", jpg))
    assert len(index) == 1
    assert any("2 samples without an image" in problem for problem in index.problems)
    assert any("1 files of names that came before" in problem for problem in index.problems)


def test_classes_come_from_the_folder(tmp_path):
    for name in ("a", "b", "c"):
        write_shards(tmp_path / name, 1)
    for name, classes in (("a", ["x", "y"]), ("b", ["x", "y"]), ("c", ["y", "x"])):
        (tmp_path / name / "dataset.json").write_text(json.dumps({"classes": classes}))
    index = open_index([str(tmp_path / n) for n in "ab"], STORAGE, str(tmp_path / "cache"))
    assert index.classes == ("x", "y")
    with pytest.raises(UserError, match="must number the same classes"):
        open_index([str(tmp_path / n) for n in "abc"], STORAGE, str(tmp_path / "cache"))
    (tmp_path / "c/dataset.json").write_text("[1]")
    assert open_index(str(tmp_path / "c"), STORAGE).classes == ()


# damage


def test_at_every_cut_the_samples_before_it_are_all_there(tmp_path):
    members = [
        (f"{n}.{e}", d) for n in range(3) for e, d in (("jpg", image(20 + n, 8)), ("txt", b"x"))
    ]
    whole = write_tar(tmp_path / "a/0.tar", members)
    ends = [offset + size for name, (offset, size) in places(whole).items() if "txt" in name]
    data = whole.read_bytes()
    good = write_tar(tmp_path / "a/1.tar", [("g.jpg", image(50, 8)), ("g.txt", b"g")])
    end = max(ends) + 511
    for cut in [*range(0, end, 61), *(at + d for at in ends for d in (-1, 0, 1))]:
        whole.write_bytes(data[:cut])
        index = open_index([str(whole), str(good)], STORAGE, str(tmp_path / f"cache{cut}"))
        kept = sum(at <= cut for at in ends)
        assert widths(index) == [*[20, 21, 22][:kept], 50], cut
        assert all(index.text_length == 1), cut
        assert f"shard {whole} is cut off at byte {cut}" in index.problems[0], cut


def test_a_damaged_header_costs_its_sample_only(tmp_path):
    (tar,) = write_shards(tmp_path / "a", 1, 5)
    data = bytearray(tar.read_bytes())
    start = places(tar)["000000002.json"][0] - 512
    data[start : start + 512] = bytes(512)
    tar.write_bytes(data)
    index = open_index(str(tar), STORAGE)
    assert widths(index) == [20, 21, 23, 24]
    assert f"no sound header from byte {start} " in index.problems[0]


def write_index(tar: Path) -> None:
    files = {n: {"offset": o, "length": s} for n, (o, s) in places(tar).items()}
    content = {"filesize": tar.stat().st_size, "files": files}
    tar.with_suffix(".json").write_text(json.dumps(content))


def test_what_an_index_lists_is_kept_where_the_shard_is_cut_or_missing(tmp_path):
    tars = write_shards(tmp_path / "a", 3)
    for tar in tars[:2]:
        write_index(tar)
    cut = places(tars[0])["000000002.jpg"][0] + 5
    tars[0].write_bytes(tars[0].read_bytes()[:cut])
    for tar in tars[1:]:
        tar.unlink()
    paths = str(tmp_path / "a/{00000..00002}.tar")
    index = open_index(paths, STORAGE, str(tmp_path / "cache"))
    assert list(index.shard) == [0] * 4 + [1] * 4
    assert widths(index) == [20, 21, 0, 0] + [0] * 4
    found = "\n".join(index.problems)
    assert f"shard {tars[0]} is cut off at byte {cut}, 2 samples lost" in found
    assert f"shard {tars[1]} is missing, 4 samples lost" in found
    assert f"shard {tars[2]} is left out: " in found


def test_shards_without_any_sample_are_refused(tmp_path):
    for name, data in (("0", b""), ("1", b"no tar" * 300), ("2", bytes(10240))):
        (tmp_path / f"{name}.tar").write_bytes(data)
    with pytest.raises(UserError, match=r"at least one readable sample, got none in 3\. shard "):
        open_index(str(tmp_path), STORAGE)


@dataclass
class Failing(Storage):
    """A storage from which one shard cannot be had."""

    shard: str = ""
    reason: str = "unreachable"

    def read(self, path: str, offset: int, length: int) -> bytes:
        if path.endswith(self.shard):
            raise ReadError(self.reason, f"{path} does not answer.")
        return super().read(path, offset, length)


def test_an_index_without_a_shard_that_was_out_of_reach_is_not_kept(tmp_path):
    write_shards(tmp_path / "a", 3)
    cache = str(tmp_path / "cache")
    index = open_index(str(tmp_path / "a"), Failing(shard="00001.tar"), cache)
    assert sorted({*index.shard}) == [0, 2]
    assert "00001.tar does not answer" in index.problems[0]
    assert len(open_index(str(tmp_path / "a"), STORAGE, cache)) == 12


# the cache


def builds(monkeypatch) -> list[int]:
    """Counts the builds from now on."""
    counted, build = [], opening.build

    def counting(*args):
        counted.append(1)
        return build(*args)

    monkeypatch.setattr(opening, "build", counting)
    return counted


def test_a_fresh_index_is_loaded_and_a_stale_one_built_anew(tmp_path, monkeypatch, capsys):
    tars = write_shards(tmp_path / "a")
    counted, path = builds(monkeypatch), str(tmp_path / "a")
    first = open_index(path, STORAGE)
    assert isinstance(first.offset, np.memmap)
    again = open_index(path, STORAGE)
    assert (len(counted), again.digest, again.problems) == (1, first.digest, first.problems)
    assert (tmp_path / "a/.pixelhdm-index").is_dir()
    write_tar(tars[1], sample(30))
    assert capsys.readouterr().out == ""
    assert widths(open_index(path, STORAGE)) == [20, 21, 22, 23, 50]
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert "out of date" in line
    assert "00001.tar" in line
    write_index(tars[0])
    open_index(path, STORAGE)
    assert "00000.tar or its index has changed" in capsys.readouterr().out
    write_tar(tmp_path / "a/00002.tar", sample(31))
    assert len(open_index(path, STORAGE)) == 6
    assert "list of shards has changed" in capsys.readouterr().out
    open_index(path, STORAGE)
    assert len(counted) == 4


def test_the_cache_moves_with_its_shards(tmp_path, monkeypatch):
    write_shards(tmp_path / "a")
    open_index(str(tmp_path / "a"), STORAGE)
    (tmp_path / "a").rename(tmp_path / "b")
    counted = builds(monkeypatch)
    index = open_index(str(tmp_path / "b"), STORAGE)
    assert not counted
    assert index.shards[0] == str(tmp_path / "b/00000.tar")


def test_sets_of_shards_in_one_folder_do_not_clash(tmp_path, monkeypatch):
    tars = write_shards(tmp_path / "a", 3)
    sets = [
        [str(tars[0])],
        [str(tars[1])],
        [str(tars[1]), str(tars[2])],
        [str(tars[2]), str(tars[1])],
    ]
    first = [open_index(paths, STORAGE).digest for paths in sets]
    counted = builds(monkeypatch)
    assert [open_index(paths, STORAGE).digest for paths in sets] == first
    assert len(set(first)) == 4
    assert not counted


@pytest.mark.parametrize("file", ["about.json", "offset.npy", "texts.npy", "flags.npy"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "other"])
def test_a_damaged_cache_is_built_anew(tmp_path, capsys, file, damage):
    write_shards(tmp_path / "a", 1)
    first = open_index(str(tmp_path / "a"), STORAGE)
    (place,) = (tmp_path / "a/.pixelhdm-index").glob(f"*/{file}")
    data = place.read_bytes()
    if damage == "gone":
        place.unlink()
    else:
        place.write_bytes({"cut": data[:-3], "empty": b"", "other": b"{}"}[damage])
    assert open_index(str(tmp_path / "a"), STORAGE).digest == first.digest
    assert ("is damaged" in capsys.readouterr().out) == (file != "about.json" or damage != "gone")
    assert place.read_bytes()[:100] == data[:100]


def test_a_folder_that_cannot_be_written_is_passed_over_or_refused(tmp_path, monkeypatch, capsys):
    write_shards(tmp_path / "a", 1)
    (tmp_path / "a/.pixelhdm-index").write_text("a file in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    counted = builds(monkeypatch)
    for _ in range(2):
        assert len(open_index(str(tmp_path / "a"), STORAGE)) == 4
    assert [*(tmp_path / "home/pixelhdm").glob("*/*/about.json")]
    assert len(counted) == 1
    with pytest.raises(UserError, match="folder must be writable"):
        open_index(str(tmp_path / "a"), STORAGE, str(tmp_path / "a/.pixelhdm-index"))
    (tmp_path / "home/pixelhdm").rename(tmp_path / "old")
    (tmp_path / "home/pixelhdm").write_text("in the way too")
    assert len(open_index(str(tmp_path / "a"), STORAGE)) == 4
    assert "cannot be kept" in capsys.readouterr().out


def build_at_once(path, lock, barrier, results) -> None:
    """One of the processes of the test below."""
    build = opening.build

    def slow(*args):
        results.put("built")
        time.sleep(0.2)
        return build(*args)

    opening.build = slow
    if not lock:
        cache.fcntl = None
    barrier.wait()
    index = open_index(path, STORAGE)
    results.put((index.digest, widths(index)))


@pytest.mark.skipif(not CAN_FORK, reason="needs fork")
@pytest.mark.parametrize("lock", [True, False])
@pytest.mark.parametrize("is_stale", [True, False])
def test_processes_that_build_at_once_all_end_well(tmp_path, lock, is_stale):
    tars = write_shards(tmp_path / "a", 2)
    if is_stale:
        open_index(str(tmp_path / "a"), STORAGE)
        os.utime(tars[0])
    fork = multiprocessing.get_context("fork")
    barrier, results = fork.Barrier(4), fork.SimpleQueue()
    args = (str(tmp_path / "a"), lock, barrier, results)
    running = [fork.Process(target=build_at_once, args=args) for _ in range(4)]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0] * 4
    found = []
    while not results.empty():
        found.append(results.get())
    indexes = [result for result in found if result != "built"]
    assert len(indexes) == 4
    assert len({digest for digest, _ in indexes}) == 1
    assert indexes[0][1] == [*range(20, 28)]
    assert found.count("built") == (1 if lock else 4)
    left = [p.name for p in (tmp_path / "a/.pixelhdm-index").iterdir() if p.suffix != ".lock"]
    assert len(left) == 1, left


@pytest.mark.skipif(not CAN_FORK, reason="needs fork")
def test_helpers_give_what_one_process_gives(tmp_path, monkeypatch):
    write_shards(tmp_path / "a", 4, 2)
    alone = open_index(str(tmp_path / "a"), STORAGE, str(tmp_path / "c1"))
    monkeypatch.setattr(opening, "ALONE", -1.0)
    (tmp_path / "a/00001.tar").write_bytes(b"")
    with_bad = open_index(str(tmp_path / "a"), STORAGE, str(tmp_path / "c2"))
    assert list(with_bad.shard) == [0, 0, 2, 2, 3, 3]
    write_tar(tmp_path / "a/00001.tar", [*sample(2), *sample(3)])
    assert open_index(str(tmp_path / "a"), STORAGE, str(tmp_path / "c3")).digest == alone.digest
