import pytest

from pixelhdm.data.draws import ClassDraws, DrawLoader
from pixelhdm.errors import UserError

DRAWS = ClassDraws([3, 0, 7], num_per_class=4, seed=10)


def pairs(loader: DrawLoader) -> list[tuple[int, int]]:
    batches = list(loader)
    assert len(batches) == len(loader)
    return [
        pair
        for batch in batches
        for pair in zip(batch["condition"].tolist(), batch["seed"].tolist(), strict=True)
    ]


def test_images_come_by_class_with_seeds_that_count_up():
    expected = [(number, seed) for number in (3, 0, 7) for seed in (10, 11, 12, 13)]
    assert pairs(DrawLoader(DRAWS, 5)) == expected
    assert pairs(DrawLoader(ClassDraws(4, 2), 5)) == [(4, 0), (4, 1)]


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
@pytest.mark.parametrize("world_size", [1, 2, 5, 13])
def test_processes_draw_every_image_exactly_once(batch_size, world_size):
    shares = [pairs(DrawLoader(DRAWS, batch_size, rank, world_size)) for rank in range(world_size)]
    together = [pair for share in shares for pair in share]
    assert sorted(together) == sorted(pairs(DrawLoader(DRAWS, 12)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    sizes = [len(batch["seed"]) for batch in DrawLoader(DRAWS, batch_size, 0, world_size)]
    assert all(size == batch_size for size in sizes[:-1])


def test_a_loader_can_be_read_again():
    loader = DrawLoader(DRAWS, 5)
    assert pairs(loader) == pairs(loader)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"classes": 1, "num_per_class": 0}, "num_per_class must be at least 1, got 0"),
        ({"classes": 1, "seed": -1}, "seed must be at least 0, got -1"),
        ({"classes": 1, "seed": 2**63}, "seed must "),
        ({"classes": []}, "classes must "),
        ({"classes": [1, 2, 1]}, "classes must "),
        ({"classes": 1, "height": 0}, "height must "),
        ({"classes": 1, "width": -8}, "width must "),
    ],
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(UserError, match=words):
        DrawLoader(ClassDraws(**arguments), 4)
