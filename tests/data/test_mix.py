from collections import Counter

import numpy as np
import pytest
import torch

from pixelhdm.data.loader import Bucketed, EpochLoader, Sharing
from pixelhdm.data.mix import Mix
from pixelhdm.data.samplers import BufferedShufflePlan
from pixelhdm.errors import UserError
from tests.stubs import Numbers


def mixed(*parts: tuple[int, float]) -> Mix:
    mix = Mix([Numbers(num) for num, _ in parts], [weight for _, weight in parts])
    mix.open()
    return mix


def loader(mix: Mix, world: int = 1) -> EpochLoader:
    bucket = (np.arange(len(mix)) % 3 - 1).astype(np.int16)  # a third is dropped
    data = Bucketed(mix, [(2, 2), (4, 2)], bucket)
    return EpochLoader(data, [4, 6], BufferedShufflePlan(), 7, True, Sharing(0, world))


def epochs(of: EpochLoader, num: int) -> list[Counter]:
    """How often each image comes in each epoch."""
    batches, found = iter(of), []
    for _ in range(num):
        own = [next(batches) for _ in range(len(of))]
        found.append(Counter(int(i) for b in own for i in b["index"][b["weight"] > 0]))
    return found


def test_images_are_those_of_the_sources_in_turn():
    mix = mixed((5, 1.0), (7, 1.0))
    assert len(mix) == 12
    assert [int(mix.load(index, 0, 2, 2).image[1, 1, 0]) for index in (0, 4, 5, 11)] == [0, 4, 0, 6]
    assert mix.shards().tolist() == [0] * 5 + [1] * 7
    assert mix.rows(np.zeros(12, np.int16), 0, 0) is None


def test_weights_say_how_often_an_epoch_shows_an_image():
    of = loader(mixed((30, 2.0), (60, 0.25), (30, 1.5)))
    kept = [index for index in range(120) if index % 3]
    found = epochs(of, 4)
    for epoch in found:
        assert all(epoch[index] == 2 for index in kept if index < 30)
        assert sum(epoch[index] for index in kept if 30 <= index < 90) == 10
        assert all(epoch[index] in (1, 2) for index in kept if index >= 90)
        assert sum(epoch[index] for index in kept if index >= 90) == 30
        assert epoch.keys() <= set(kept)
    together = sum(found, Counter())
    assert all(together[index] == 1 for index in kept if 30 <= index < 90)
    assert all(together[index] == 6 for index in kept if index >= 90)


def test_copies_of_an_image_have_seeds_of_their_own():
    of = loader(mixed((30, 3.0)))
    batches = iter(of)
    own = [next(batches) for _ in range(len(of))]
    seeds = torch.cat([batch["seed"][batch["weight"] > 0] for batch in own])
    assert len(seeds) == len(seeds.unique()) == 60


def test_a_position_in_a_mix_can_be_gone_back_to():
    parts = (30, 1.5), (20, 0.5)
    first = loader(mixed(*parts))
    batches = iter(first)
    for _ in range(5):
        next(batches)
    again = loader(mixed(*parts))
    again.restore(*first.position())
    for batch, _ in zip(batches, range(30), strict=False):
        assert torch.equal(batch["seed"], next(iter(again))["seed"])


def test_fingerprint_has_the_weights():
    assert mixed((5, 1.0), (7, 0.5)).fingerprint() == "1 numbers-5 + 0.5 numbers-7"


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [], [1.0, float("nan")], [1.0, float("inf")]]
)
def test_wrong_weights(weights):
    with pytest.raises(UserError, match="weights must be one number above 0 for each of the 2"):
        Mix([Numbers(3), Numbers(4)], weights)


def test_a_mix_holds_no_mix():
    with pytest.raises(UserError, match="must not be a Mix, got one"):
        Mix([Numbers(3), Mix([Numbers(4)], [3.0])])


def test_classes_and_captions_do_not_mix():
    captioned = Numbers(3)
    captioned.empty = ""
    with pytest.raises(UserError, match="all have classes or all have captions"):
        Mix([Numbers(3), captioned])


def test_sources_must_have_the_same_classes():
    one, other = Numbers(3), Numbers(4)
    one.classes, other.classes = ("cat", "dog"), ("cat", "fox")
    with pytest.raises(UserError, match=r"same classes .* different ones: \['dog', 'fox'\]"):
        Mix([one, other]).open()
