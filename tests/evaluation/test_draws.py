"""Which images an evaluation draws."""

from collections import Counter

import pytest

from pixelhdm.data.draws import DrawItem
from pixelhdm.errors import UserError
from pixelhdm.evaluation.draws import ChunkLoader, in_turn, one_size

EACH = [DrawItem(number, 0, 8, 8, "", number, "data.draw") for number in range(3)]


def test_classes_are_balanced_from_the_first_image_on_and_no_two_share_their_noise():
    items = in_turn(EACH, 11, 40)
    for num in range(1, 12):
        counts = Counter(item.condition for item in items[:num])
        assert max(counts.values()) - min(counts[number] for number in range(3)) <= 1
    assert [item.seed for item in items] == list(range(40, 51))
    assert len({item.file for item in items}) == 11
    assert in_turn(EACH, 5, 40) == items[:5]


def test_all_images_must_have_one_size():
    assert one_size(EACH) == (8, 8)
    wide = DrawItem("a barn", 0, 8, 16, "", 3, "own.txt, line 4")
    with pytest.raises(UserError, match=r"one size, got 8x8 \(data.draw\) and 8x16 \(own.txt, li"):
        one_size([*EACH, wide])


def test_batches_end_with_their_chunk():
    items = in_turn(EACH, 12, 0)
    loader = ChunkLoader([items[:5], items[5:6], items[6:]], 4)
    batches = [batch["seed"].tolist() for batch in loader]
    assert batches == [[0, 1, 2, 3], [4], [5], [6, 7, 8, 9], [10, 11]]
    assert len(loader) == len(batches)
    assert [*ChunkLoader([], 4)] == []
