import pytest
import torch

from pixelhdm.data.draw_list import class_draws, prompt_draws
from pixelhdm.data.draw_loader import DrawLoader
from pixelhdm.data.draws import DrawItem, DrawList, Draws
from pixelhdm.data.prompt_fields import Prompt
from pixelhdm.data.prompts import Layout, PromptList
from pixelhdm.errors import UserError

DRAWS = Draws([3, 0, 7], num_images=4, seed=10)
ITEMS = class_draws(DRAWS, (8, 8)).items
MIXED = [
    Prompt("a", "1"),
    Prompt("b", "2", height=4),
    Prompt("c", "3", scale=2.0),
    Prompt("d", "4"),
    Prompt("e", "5", height=4, negative="x"),
]


def pairs(loader: DrawLoader) -> list[tuple[int, int]]:
    batches = list(loader)
    assert len(batches) == len(loader)
    return [
        pair
        for batch in batches
        for pair in zip(batch["condition"].tolist(), batch["seed"].tolist(), strict=True)
    ]


def drawn(draws: Draws = Draws(), layout: Layout = "plain", prompts: list[Prompt] = MIXED):
    return prompt_draws(PromptList(prompts, layout, "own"), draws, (8, 6))


def test_images_come_by_class_with_seeds_that_count_up():
    expected = [(number, seed) for number in (3, 0, 7) for seed in (10, 11, 12, 13)]
    assert pairs(DrawLoader(ITEMS, 5)) == expected
    assert pairs(DrawLoader(class_draws(Draws(4, 2), (8, 8)).items, 5)) == [(4, 0), (4, 1)]
    assert ITEMS[4].file == "class0000_seed000010.png"
    assert len(class_draws(Draws(4), (8, 8)).items) == 10


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
@pytest.mark.parametrize("world_size", [1, 2, 5, 13])
def test_processes_draw_every_image_exactly_once(batch_size, world_size):
    shares = [pairs(DrawLoader(ITEMS, batch_size, rank, world_size)) for rank in range(world_size)]
    together = [pair for share in shares for pair in share]
    assert sorted(together) == sorted(pairs(DrawLoader(ITEMS, 12)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    sizes = [len(batch["seed"]) for batch in DrawLoader(ITEMS, batch_size, 0, world_size)]
    assert all(size == batch_size for size in sizes[:-1])


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_batches_are_of_one_kind_and_each_process_has_as_many_of_it(batch_size, world_size):
    items = drawn(Draws(num_images=6)).items
    shares = []
    for rank in range(world_size):
        batches = list(DrawLoader(items, batch_size, rank, world_size))
        for batch in batches:
            assert len({item.kind for item in batch["items"]}) == 1
            assert len(batch["items"]) <= batch_size
            assert batch["condition"] == [item.condition for item in batch["items"]]
            assert batch["seed"].tolist() == [item.seed for item in batch["items"]]
        shares.append([item for batch in batches for item in batch["items"]])
    assert sorted(item for share in shares for item in share) == sorted(items)
    for kind in {item.kind for item in items}:
        counts = [sum(item.kind == kind for item in share) for share in shares]
        assert max(counts) - min(counts) <= 1


def test_a_loader_can_be_read_again():
    loader = DrawLoader(ITEMS, 5)
    assert pairs(loader) == pairs(loader)


def test_what_a_prompt_does_not_ask_for_the_settings_decide():
    asked = Prompt("a", "1", "not", 5, 4, 2, 3.0, "own/name")
    items = drawn(Draws(seed=9, width=10), prompts=[asked, Prompt("b", "2")]).items
    assert items == [
        DrawItem("a", 5, 4, 2, "own/name.png", 0, "1", "not", 3.0),
        DrawItem("b", 9, 8, 10, "00001_seed000009.png", 1, "2"),
    ]


def test_several_images_of_a_prompt_count_up_from_its_seed():
    prompts = [Prompt("a", "1", seed=5, file_name="own"), Prompt("b", "2"), Prompt("c", "3")]
    items = drawn(Draws(seed=9, num_images=2), prompts=prompts).items
    assert [item.seed for item in items] == [5, 6, 9, 10, 9, 10]
    assert [item.file for item in items[1:4]] == [
        "own_seed000006.png",
        "00001_seed000009.png",
        "00001_seed000010.png",
    ]


@pytest.mark.parametrize(("num", "expected"), [(None, 4), (2, 2), (7, 7)])
@pytest.mark.parametrize("layout", ["geneval", "dpg"])
def test_every_image_of_a_benchmark_has_its_own_seed(num, expected, layout):
    prompts = [Prompt(text, text, file_name=text) for text in "abc"]
    items = drawn(Draws(seed=3, num_images=num), layout, prompts).items
    assert [item.seed for item in items] == list(range(3, 3 + 3 * expected))
    assert [item.group for item in items] == [g for g in range(3) for _ in range(expected)]


def test_benchmarks_find_their_files():
    prompts = [Prompt(text, text, file_name=f"p{text}") for text in "ab"]
    geneval = [item.file for item in drawn(layout="geneval", prompts=prompts).items]
    assert geneval[3:5] == ["00000/samples/00003.png", "00001/samples/00000.png"]
    dpg = [item.file for item in drawn(layout="dpg", prompts=prompts).items]
    assert dpg[3:5] == ["samples/pa_seed000003.png", "samples/pb_seed000004.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"classes": 1, "num_images": 0}, "num_images must be at least 1, got 0"),
        ({"classes": 1, "seed": -1}, "seed must be at least 0, got -1"),
        ({"classes": 1, "seed": 2**63}, "data.draw: seed must be below 2\\^63"),
        ({"classes": 1, "seed": 2**63 - 9}, "data.draw: seed must be below 2\\^63"),
        ({"classes": []}, "classes must "),
        ({"classes": [1, 2, 1]}, "classes must "),
        ({"classes": 1, "height": 0}, "height must "),
        ({"classes": 1, "width": -8}, "width must "),
    ],
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(UserError, match=words):
        class_draws(Draws(**arguments), (8, 8))


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"file_name": "a"}, "b: every image must have its own file, got a.png again, as in a"),
        ({"seed": 2**63}, "b: seed must be below 2\\^63 for every image"),
    ],
)
def test_images_that_cannot_be_saved_or_seeded(second, words):
    with pytest.raises(UserError, match=words):
        drawn(prompts=[Prompt("a", "a", file_name="a"), Prompt("b", "b", **second)])


def test_an_index_and_a_file_name_may_not_meet():
    prompts = [Prompt("a", "a", file_name="00001_seed000000"), Prompt("b", "b")]
    with pytest.raises(UserError, match=r"got 00001_seed000000.png again"):
        drawn(prompts=prompts)


def test_nothing_to_draw_is_an_empty_list():
    assert class_draws(Draws(), (8, 8)) == DrawList([], "classes", "", [])
    assert list(DrawLoader([], 4)) == []
    assert torch.equal(next(iter(DrawLoader(ITEMS, 1)))["seed"], torch.tensor([10]))
