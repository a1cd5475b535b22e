"""Images and features of an evaluation on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pixelhdm.errors import UserError
from pixelhdm.evaluation import image_store
from pixelhdm.evaluation.extractors.extractor import Features
from pixelhdm.evaluation.image_store import Chunk, ImageStore
from tests.stubs import ColourFeatures, randn


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_store, "CHUNK", 4)


def chunk(numbers: range, size: int = 3) -> Chunk:
    """Images that tell their number."""
    images = np.stack([np.full((size, size, 3), number, dtype=np.uint8) for number in numbers])
    return Chunk(images, np.array(numbers) % 10, np.array(numbers) + 100)


def filled(folder: Path, num: int, facts: str = "a") -> ImageStore:
    """A store whose images are all there."""
    store = ImageStore(folder, facts, num)
    for number in store.chunks:
        store.write(number, chunk(store.numbers(number)))
    return store


def test_images_come_back_by_chunk_and_by_number(tmp_path):
    store = filled(tmp_path, 10)
    assert [list(store.numbers(number)) for number in store.chunks] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]
    for number in store.chunks:
        for own, expected in zip(store.read(number), chunk(store.numbers(number)), strict=True):
            np.testing.assert_array_equal(own, expected)
    assert [store.image(number)[0, 0, 0] for number in range(10)] == list(range(10))
    assert sorted(file.name for file in (tmp_path / "images").iterdir()) == [
        "00000.npz",
        "00001.npz",
        "00002.npz",
    ]


def test_fewer_images_are_a_part_and_more_are_missing(tmp_path):
    filled(tmp_path, 10)
    fewer, more = ImageStore(tmp_path, "a", 6), ImageStore(tmp_path, "a", 11)
    assert all(map(fewer.has_images, fewer.chunks))
    assert fewer.read(1).seeds.tolist() == [104, 105]
    assert [more.has_images(number) for number in more.chunks] == [True, True, False]
    assert more.num_stored(2) == 2
    more.write(2, more.read(2).and_then(chunk(range(10, 11))))
    assert more.read(2).images[:, 0, 0, 0].tolist() == [8, 9, 10]


def test_files_of_other_facts_and_torn_ones_count_as_missing(tmp_path):
    store = filled(tmp_path, 10)
    assert ImageStore(tmp_path, "b", 10).num_stored(0) == 0
    torn = store.image_file(0)
    torn.write_bytes(torn.read_bytes()[:-30])
    store.image_file(1).write_bytes(b"")
    assert [store.num_stored(number) for number in store.chunks] == [0, 0, 2]


def test_features_are_put_together_in_the_images_order(tmp_path):
    store, extractor = filled(tmp_path, 10), ColourFeatures("inception")
    whole = Features(randn(10, 30), randn(10, 6), randn(10, 4))
    match = randn(10)
    for number in reversed(store.chunks):
        rows = store.numbers(number)
        part = slice(rows.start, rows.stop)
        own = Features(*(kind[part] for kind in whole))
        store.write_features(number, extractor, own, match[part])
    for num in (10, 7):
        part = ImageStore(tmp_path, "a", num)
        assert all(part.has_features(number, extractor) for number in part.chunks)
        for own, expected in zip(part.features(extractor), whole, strict=True):
            assert torch.equal(own, expected[:num])
        assert torch.equal(part.match(extractor), match[:num])
    assert not ImageStore(tmp_path, "a", 11).has_features(2, extractor)
    assert not store.has_features(0, ColourFeatures(key="others"))


def test_what_an_extractor_does_not_give_is_none(tmp_path):
    store, extractor = filled(tmp_path, 3), ColourFeatures()
    store.write_features(0, extractor, Features(randn(3, 30)))
    found = store.features(extractor)
    assert found.spatial is None
    assert found.logits is None
    assert store.match(extractor) is None


def test_images_are_deleted_and_features_stay(tmp_path):
    store, extractor = filled(tmp_path, 10), ColourFeatures()
    store.write_features(0, extractor, Features(randn(4, 30)))
    (tmp_path / "images/.00000.npz.17.part").write_bytes(b"a kill while it was written")
    store.remove_leftovers()
    store.delete_images()
    assert list((tmp_path / "images").iterdir()) == []
    assert store.has_features(0, extractor)


def test_prompts_of_any_length_are_kept(tmp_path):
    store = ImageStore(tmp_path, "a", 4)
    images = chunk(range(4)).images
    first = Chunk(images[:2], np.array(["a", "räin"]), np.arange(2))
    store.write(0, first.and_then(Chunk(images[2:], np.array(["longer one", ""]), np.arange(2))))
    assert store.read(0).conditions.tolist() == ["a", "räin", "longer one", ""]


def test_a_file_with_a_wrong_byte_is_named(tmp_path):
    store = filled(tmp_path, 4)
    file = store.image_file(0)
    content = bytearray(file.read_bytes())
    content[200] ^= 1  # inside the pixels
    file.write_bytes(content)
    assert store.has_images(0)  # facts and number are read alone
    with pytest.raises(UserError, match=r"00000\.npz must be a whole file .* Delete it"):
        store.read(0)
