"""Shards as a source, and what damage to them costs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pixelhdm.data.buckets import Buckets
from pixelhdm.data.decode import decode
from pixelhdm.data.loader import Bucketed, EpochLoader, Sharing
from pixelhdm.data.prepare.prepare import prepare
from pixelhdm.data.reading.storage import Storage
from pixelhdm.data.samplers import BufferedShufflePlan
from pixelhdm.data.shards import Condition, Shards
from pixelhdm.data.source import BadSample
from pixelhdm.errors import UserError
from tests.data.prepare.conftest import save

NUM, PER_SHARD = 40, 8


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty photos of two classes with captions."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(NUM):
        file = save(folder / "ab"[number % 2] / f"{number}.jpg", number, 40 + number % 7, 30)
        captions = {"captions": [f"photo {number}", f"number {number}"]}
        file.with_suffix(".json").write_text(json.dumps(captions))
    return folder


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their shards."""
    out = tmp_path_factory.mktemp("shards") / "whole"
    prepare(str(photos), str(out), labels="folders", images_per_shard=PER_SHARD, num_processes=1)
    return out


@pytest.fixture
def shards(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "shards"))


def opened(folder: Path, condition: Condition = "class", **options: object) -> Shards:
    source = Shards(str(folder), condition, storage=Storage(tries=2, wait=0.001), **options)
    source.prepare()
    source.open()
    return source


def original(photos: Path, folder: Path, source: Shards, index: int) -> tuple[int, Path]:
    """Number and file of the photo that a sample was made from."""
    shard = source.index.shards[source.index.shard[index]]
    first, length = int(source.index.text_offset[index]), int(source.index.text_length[index])
    about = json.loads(Path(shard).read_bytes()[first : first + length])
    return int(Path(about["path"]).stem), photos / about["path"]


def test_every_photo_comes_with_its_own_class_and_captions(photos, whole):
    by_class, by_caption = opened(whole), opened(whole, "caption")
    assert by_class.classes == ("a", "b")
    assert len(by_class) == NUM
    numbers = []
    for index in range(NUM):
        number, file = original(photos, whole, by_class, index)
        numbers.append(number)
        width, height = (int(side) for side in by_class.sizes()[index])
        record = by_class.load(index, 0, height, width)
        assert np.array_equal(record.image, decode(file.read_bytes()))
        assert record.condition == number % 2
        captions = {by_caption.load(index, s, height, width).condition for s in range(20)}
        assert captions == {f"photo {number}", f"number {number}"}
    assert sorted(numbers) == list(range(NUM))


def test_a_sample_is_one_read(whole, monkeypatch):
    reads = []
    read = Storage.read

    def counted(self: Storage, path: str, offset: int, length: int) -> bytes:
        reads.append(path)
        return read(self, path, offset, length)

    for condition in ("class", "caption"):
        source = opened(whole, condition)
        monkeypatch.setattr(Storage, "read", counted)
        reads.clear()
        for index in range(NUM):
            source.load(index, 0, 16, 16)
        assert len(reads) == NUM
        monkeypatch.undo()


def test_views_depend_on_the_seed_alone(whole):
    source = opened(whole, flip_prob=0.5, crop="random")
    views = [source.load(3, seed, 20, 20).image for seed in (1, 2, 1)]
    assert np.array_equal(views[0], views[2])
    assert not np.array_equal(views[0], views[1])


def test_without_condition_all_are_class_0(whole):
    source = opened(whole, "none")
    assert {source.load(index, 0, 8, 8).condition for index in range(NUM)} == {0}
    assert source.classes == ()


@pytest.mark.parametrize(
    ("condition", "words"), [("class", "a label for condition class"), ("caption", "a caption for")]
)
def test_a_missing_condition_is_named(tmp_path, condition, words):
    for number in range(3):
        save(tmp_path / "photos" / f"{number}.png", number)
    prepare(str(tmp_path / "photos"), str(tmp_path / "out"), num_processes=1)
    with pytest.raises(UserError, match=f"{words}.* got 3 of 3 without"):
        opened(tmp_path / "out", condition)


# Chaos ----------------------------------------------------------------------------------------


def parts(folder: Path, shard: str = "00001") -> tuple[Path, list[dict]]:
    """A shard and the images in it, in order."""
    files = json.loads((folder / f"{shard}.json").read_text())["files"]
    images = [files[name] | {"name": name} for name in files if "width" in files[name]]
    return folder / f"{shard}.tar", sorted(images, key=lambda image: image["offset"])


def change(tar: Path, at: int, new: bytes) -> None:
    data = bytearray(tar.read_bytes())
    data[at : at + len(new)] = new
    tar.write_bytes(data)


def flipped_bit(folder: Path) -> set[str]:
    tar, images = parts(folder)
    at = images[2]["offset"] + images[2]["length"] // 2
    change(tar, at, bytes([tar.read_bytes()[at] ^ 4]))
    return {images[2]["name"]}


def zeros(folder: Path) -> set[str]:
    tar, images = parts(folder)
    change(tar, images[3]["offset"] + 300, bytes(400))
    return {images[3]["name"]}


def exchanged(folder: Path) -> set[str]:
    """Two images of the same length in each other's place."""
    tar, images = parts(folder)
    first, second = images[0], images[5]
    length = min(first["length"], second["length"])
    data = tar.read_bytes()
    change(tar, first["offset"], data[second["offset"] : second["offset"] + length])
    change(tar, second["offset"], data[first["offset"] : first["offset"] + length])
    return {first["name"], second["name"]}


def cut_inside(folder: Path) -> set[str]:
    tar, images = parts(folder)
    tar.write_bytes(tar.read_bytes()[: images[4]["offset"] + 100])
    return {image["name"] for image in images[4:]}


def cut_between(folder: Path) -> set[str]:
    tar, images = parts(folder)
    tar.write_bytes(tar.read_bytes()[: images[4]["offset"] - 512])
    return {image["name"] for image in images[4:]}


def missing(folder: Path) -> set[str]:
    tar, images = parts(folder)
    tar.unlink()
    return {image["name"] for image in images}


def emptied(folder: Path) -> set[str]:
    tar, images = parts(folder)
    tar.write_bytes(b"")
    return {image["name"] for image in images}


def shifted(folder: Path) -> set[str]:
    """A block too many in the middle: what stands behind it is not where the index says."""
    tar, images = parts(folder)
    data, at = tar.read_bytes(), images[5]["offset"] - 512
    tar.write_bytes(data[:at] + bytes(512) + data[at:])
    return {image["name"] for image in images[5:]}


def wrong_header(folder: Path) -> set[str]:
    """Nobody needs a header that an index stands beside."""
    tar, images = parts(folder)
    change(tar, images[1]["offset"] - 512 + 148, b"0000000\0")
    return set()


def no_index(folder: Path) -> set[str]:
    (folder / "00001.json").unlink()
    return set()


def torn_index(folder: Path) -> set[str]:
    file = folder / "00001.json"
    file.write_bytes(file.read_bytes()[:200])
    return set()


def other_file(folder: Path) -> set[str]:
    """A shard of another data set under its name."""
    tar, images = parts(folder)
    tar.write_bytes((folder / "00002.tar").read_bytes())
    return {image["name"] for image in images}


DAMAGE: list[Callable[[Path], set[str]]] = [
    flipped_bit,
    zeros,
    exchanged,
    cut_inside,
    cut_between,
    missing,
    emptied,
    shifted,
    wrong_header,
    no_index,
    torn_index,
    other_file,
]


def epoch_of(source: Shards) -> tuple[list[int], list[dict], int]:
    """The images that an epoch gave, those that it could not, and its steps."""
    buckets = Buckets(sizes=[(16, 32), (32, 32), (16, 16)], max_crop=0.5)
    bucket = buckets.assign(source.sizes()).bucket
    data = Bucketed(source, buckets.table, bucket)
    loader = EpochLoader(data, [4, 3, 5], BufferedShufflePlan(10), 0, True, Sharing(num_workers=2))
    batches = [batch for _, batch in zip(range(len(loader)), loader, strict=False)]
    loader.close()
    good = [int(i) for batch in batches for i in batch["index"][batch["weight"] > 0]]
    return good, [entry for batch in batches for entry in batch["bad"]], len(batches)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("when", ["before it is opened", "while it is open"])
def test_damage_costs_nothing_but_the_damaged_samples(whole, shards, damage, when):
    _, _, steps = epoch_of(opened(whole))
    names = {
        (int(shard.stem), image["offset"]): image["name"]
        for shard in whole.glob("*.tar")
        for image in parts(whole, shard.stem)[1]
    }
    source = opened(shards)
    expected = damage(shards)
    if when == "before it is opened":
        source = opened(shards)
    if when == "before it is opened" and damage is shifted:  # a new index finds them again
        expected = set()
        place = {index: source.place(index)["key"] for index in range(NUM)}
    else:
        rows = zip(source.index.shard, source.index.offset, strict=True)
        found = (names[int(Path(source.index.shards[n]).stem), int(at)] for n, at in rows)
        place = dict(enumerate(found))
    good, bad, taken = epoch_of(source)
    lost = set(names.values()) - {place[index] for index in good}
    assert lost == expected
    assert len(good) == len(set(good)) == NUM - len(expected)
    if taken == steps:  # else the index itself no longer lists them
        assert {place[entry["index"]] for entry in bad} == expected
        assert all(entry["shard"].endswith("00001.tar") for entry in bad)
        reasons = {entry["reason"] for entry in bad}
        assert reasons <= {"crc", "torn", "missing", "decode", "size"}


def test_damaged_captions_are_bad_samples_of_the_captions_alone(shards):
    tar, images = parts(shards)
    files = json.loads((shards / "00001.json").read_text())["files"]
    name = images[2]["name"].rsplit(".", 1)[0]
    change(tar, files[f"{name}.json"]["offset"], b"\xff{")
    assert len(epoch_of(opened(shards))[0]) == NUM
    good, bad, _ = epoch_of(opened(shards, "caption"))
    assert len(good) == NUM - 1
    assert [(entry["reason"], entry["key"]) for entry in bad] == [("text", images[2]["name"])]


def test_an_image_of_another_size_than_the_index_says_is_bad(shards):
    file = shards / "00001.json"
    about = json.loads(file.read_text())
    image = next(entry for entry in about["files"].values() if "width" in entry)
    image["width"] += 1
    file.write_text(json.dumps(about))
    good, bad, _ = epoch_of(opened(shards))
    assert len(good) == NUM - 1
    assert [entry["reason"] for entry in bad] == ["size"]
    with pytest.raises(BadSample, match=r"pixels, .* in the index"):
        opened(shards).load(bad[0]["index"], 0, 8, 8)
