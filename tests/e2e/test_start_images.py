"""predict that begins from images: image to image, inpainting and editing, as a person runs it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelhdm.inference.model import Model
from tests.e2e.conftest import QUICKSTART
from tests.e2e.drawn import TEXT, facts, files, pixels, save_text_checkpoint

PIXELS = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
CLASSES = ["predict", *QUICKSTART, "--ckpt_path=last", "--save_images.folder=out"]
CLASSES += ["--data.draw={classes: [1, 7], num_images: 1}", "--model.sampler.num_steps=10"]
BEGIN = ["--data.draw.image=in/a.png"]


@pytest.fixture(autouse=True)
def here(run_folder: Path) -> None:
    Path("in").mkdir()
    Image.fromarray(PIXELS).save("in/a.png")
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[4:] = 255
    Image.fromarray(mask).save("in/m.png")
    Path("in/torn.png").write_bytes(Path("in/a.png").read_bytes()[:-60])


def one(folder: str = "out") -> np.ndarray:
    return pixels(folder)["class0007_seed000000.png"]


def test_strength_leads_from_the_image_to_a_picture_from_noise(trained, run):
    run(*CLASSES)
    noise, differences = one(), []
    for strength in (0, 0.5, 1):
        assert "Drew 2 images" in run(*CLASSES, *BEGIN, f"--data.draw.strength={strength}")
        differences.append(np.abs(one() - PIXELS).mean())
    assert differences[0] == 0
    assert sorted(differences) == differences
    np.testing.assert_array_equal(one(), noise)
    told = facts("out/class0007_seed000000.png")
    assert (told["image"], told["strength"], told["calls"]) == ("a.png", "1", "20")


def test_other_files_are_drawn_again_and_the_same_are_not(trained, run):
    masked = [*BEGIN, "--data.draw.mask=in/m.png"]
    assert "Drew 2 images, 0 were" in run(*CLASSES, *masked)
    np.testing.assert_array_equal(one()[:4], PIXELS[:4])
    assert (one()[4:] != PIXELS[4:]).any()
    assert facts("out/class0007_seed000000.png")["strength"] == "1"
    assert "Drew 0 images, 2 were" in run(*CLASSES, *masked)
    Image.fromarray(255 - PIXELS).save("in/a.png")
    assert "Drew 2 images, 0 were" in run(*CLASSES, *masked)
    np.testing.assert_array_equal(one()[:4], 255 - PIXELS[:4].astype(int))
    run(*CLASSES, *BEGIN, "--save_images.folder=null")
    (folder,) = Path("runs/quickstart/predict").iterdir()
    assert folder.name.endswith("_size=8x8_image=a_strength=0.7")


@pytest.mark.parametrize(
    ("flags", "calls"),
    [
        ([], 20),
        ([*BEGIN, "--data.draw.strength=0.5"], 11),
        ([*BEGIN, "--data.draw.strength=0.5", "--data.draw.source=3"], 22),
    ],
)
def test_calls_of_the_network_are_told_truly(trained, run, monkeypatch, flags, calls):
    seen, velocity = [], Model.velocity
    monkeypatch.setattr(
        Model, "velocity", lambda *given: seen.append(len(given[1])) or velocity(*given)
    )
    run(*CLASSES, *flags)
    assert facts("out/class0007_seed000000.png")["calls"] == str(calls)
    assert seen == [4] * calls  # two images, each with and without its class


def test_prompts_begin_from_images_of_their_own(run):
    save_text_checkpoint()
    edit = {"prompt": "a barn", "image": "a.png", "source_prompt": "the sea", "file_name": "edit"}
    lines = [
        {"prompt": "a barn"},
        {"prompt": "a barn", "image": "a.png", "file_name": "over"},
        {"prompt": "a barn", "image": "a.png", "mask": "m.png", "file_name": "inside"},
        edit | {"source_scale": 2},
        edit | {"source_prompt": "a barn", "source_scale": 1, "scale": 1, "file_name": "same"},
    ]
    Path("in/own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--data.prompts=in/own.jsonl", "--save_images.folder=out"]
    assert "Drew 5 images" in run("predict", *TEXT, *flags)
    drawn = pixels("out")
    assert len({str(image.tolist()) for image in drawn.values()}) == 5
    np.testing.assert_array_equal(drawn["inside.png"][:4], PIXELS[:4])
    assert np.abs(drawn["same.png"] - PIXELS).max() <= 1  # there is nothing to change
    told = facts("out/edit.png")
    assert (told["source"], told["source_scale"], told["strength"]) == ("the sea", "2", "0.66")
    assert "image" not in facts("out/00000_seed000000.png")
    page = Path("out/index.html").read_text()
    assert "image a.png · mask m.png · strength 1" in page
    assert "Drew 0 images, 5 were" in run("predict", *TEXT, *flags)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data.draw.image=in/torn.png"], "image must be an image file, got in/torn.png"),
        ([*BEGIN, "--data.draw.source=10"], "class must lie in 0 … 9"),
        (
            [*BEGIN, "--data.draw.source=3", "--model.sampler=SDESampler"],
            "data.draw: sampler must add no noise to edit an image from a source, got SDESampler",
        ),
    ],
)
def test_what_cannot_be_begun_from_is_one_sentence_before_anything_is_drawn(
    trained, run, flags, words
):
    with pytest.raises(SystemExit, match=re.compile(f"error: .*{words}")):
        run(*CLASSES, *flags)
    assert files("out") == []
