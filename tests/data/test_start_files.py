from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixelhdm.data.draw_list import class_draws, prompt_draws
from pixelhdm.data.draw_loader import DrawLoader
from pixelhdm.data.draws import DrawItem, Draws
from pixelhdm.data.prompt_fields import Prompt
from pixelhdm.data.prompts import PromptList, read_prompts
from pixelhdm.data.start_files import Asked, StartFiles
from pixelhdm.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
MASK = np.zeros((8, 12), dtype=np.uint8)
MASK[:, 6:] = 255


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PIXELS).save("a.png")
    Image.fromarray(MASK).save("m.png")
    Image.fromarray(MASK[:4]).save("small.png")
    Path("torn.png").write_bytes(Path("a.png").read_bytes()[:-60])


def drawn(draws: Draws, *prompts: Prompt) -> list[DrawItem]:
    return prompt_draws(PromptList(list(prompts), "plain", ""), draws, (8, 12)).items


def test_images_and_masks_are_cut_from_the_centre_to_the_drawn_size():
    draws = Draws([1, 2], 2, image="a.png", mask="m.png")
    (batch,) = DrawLoader(class_draws(draws, (8, 8)).items, 9)
    start = batch["start"]
    assert start.pixels.shape == (4, 8, 8, 3)
    np.testing.assert_array_equal(start.pixels[3].numpy(), PIXELS[:, 2:10])
    np.testing.assert_array_equal(start.mask[3, ..., 0].numpy(), MASK[:, 2:10] / 255)
    assert (start.source, start.strength, start.source_scale) == (None, 1.0, 1.5)
    (batch,) = DrawLoader(class_draws(draws, (4, 6)).items, 9)
    assert batch["start"].pixels.shape == (4, 4, 6, 3)
    assert 0 < batch["start"].mask[0, 0, 3].item() <= 1


@pytest.mark.parametrize(
    ("given", "strength"),
    [({}, 0.7), ({"mask": "m.png"}, 1.0), ({"source": 3}, 0.66), ({"strength": 0.2}, 0.2)],
)
def test_strength_follows_what_is_asked_for(given, strength):
    for item in class_draws(Draws([1], 1, image="a.png", **given), (8, 12)).items:
        assert item.start.strength == strength


def test_what_a_prompt_does_not_ask_for_the_run_decides():
    Image.fromarray(255 - PIXELS).save("b.png")
    draws = Draws(image="a.png", strength=0.5, source=7)
    own = Asked("b.png", "m.png", 0.25, "a dog", 3.0)
    plain, asked = drawn(draws, Prompt("a", "1"), Prompt("b", "2", start=own))
    assert plain.start == StartFiles(plain.start.image, None, 0.5, "7", 1.5)
    assert (plain.start.image.path, plain.start.image.size) == ("a.png", (8, 12))
    assert asked.start[2:] == (0.25, "a dog", 3.0)
    assert asked.start.image.digest != plain.start.image.digest
    (noise,) = drawn(Draws(), Prompt("a", "1"))
    assert noise.start is None
    assert plain.texts == ["a", "", "7"]


def test_batches_are_of_one_kind_of_start():
    starts = [Asked(), Asked("a.png"), Asked("a.png", "m.png", 0.7), Asked("a.png", source="x")]
    starts += [Asked("a.png", strength=0.2), Asked("b.png")]
    Image.fromarray(255 - PIXELS).save("b.png")
    items = drawn(Draws(), *(Prompt(str(n), str(n), start=own) for n, own in enumerate(starts)))
    batches = [[item.condition for item in batch["items"]] for batch in DrawLoader(items, 9)]
    assert batches == [["0"], ["1", "5"], ["2"], ["3"], ["4"]]
    (_, both, *_) = DrawLoader(items, 9)
    assert torch.equal(both["start"].pixels[0], 255 - both["start"].pixels[1])


def test_files_of_a_jsonl_lie_beside_it_and_those_of_a_list_here():
    Path("sub").mkdir()
    line = '{"prompt": "p", "image": "a.png", "mask": "/m.png", "source_prompt": " s "}\n'
    Path("sub/own.jsonl").write_text(line)
    (prompt,) = read_prompts("sub/own.jsonl").prompts
    assert prompt.start == Asked("sub/a.png", "/m.png", None, "s")
    value = {"prompt": "p", "image": "a.png", "strength": 1, "source_scale": 2}
    (prompt,) = read_prompts([value]).prompts
    assert prompt.start == Asked("a.png", strength=1.0, source_scale=2.0)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"image": "no.png"}, r"image must be an image file, got no.png \(FileNotFoundError"),
        ({"image": "torn.png"}, r"image must be an image file, got torn.png \(OSError"),
        ({"image": "a.png", "mask": "no.png"}, "mask must be an image file, got no.png"),
        (
            {"image": "a.png", "mask": "small.png"},
            "mask must have the size of its image, .*, got 4x12 in small.png",
        ),
        ({"mask": "m.png"}, "mask must come with an image to begin from, got m.png alone"),
        ({"strength": 0.5}, "strength must come with an image"),
        ({"source": "3"}, "source must come with an image"),
        ({"source_scale": 2.0}, "source_scale must come with an image"),
        ({"image": "a.png", "strength": 1.5}, "strength must lie in 0 … 1, .*, got 1.5"),
        ({"image": "a.png", "strength": float("nan")}, "strength must lie in 0 … 1"),
        ({"image": "a.png", "source_scale": 2.0}, "source_scale must come with a source, got 2.0"),
        (
            {"image": "a.png", "source": "3", "source_scale": float("inf")},
            "source_scale must be a finite number",
        ),
        ({"image": ""}, "image must be an image file, got nothing"),
    ],
)
def test_what_cannot_be_begun_from_is_named_with_its_place(asked, words):
    with pytest.raises(UserError, match=f"data.draw: {words}|two: {words}"):
        drawn(Draws(**asked), Prompt("a", "two"))
    with pytest.raises(UserError, match=f"two: {words}"):
        drawn(Draws(), Prompt("a", "one"), Prompt("b", "two", start=Asked(**asked)))
    if "source" not in asked:
        with pytest.raises(UserError, match=f"data.draw: {words}"):
            class_draws(Draws(1, **asked), (8, 8))


def test_a_source_of_classes_is_a_class():
    with pytest.raises(UserError, match=r"source must be a class number where .* got 'dog'"):
        class_draws(Draws(1, image="a.png", source="dog"), (8, 8))
