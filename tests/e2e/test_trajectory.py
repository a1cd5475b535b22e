"""predict --trajectory, as a person runs it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from pixelhdm.inference.noise import SeededNoise
from pixelhdm.inference.pixels import to_pixels
from tests.e2e.conftest import QUICKSTART

DRAW = ["predict", *QUICKSTART, "--ckpt_path=last", "--save_images.folder=out"]
DRAW += ["--model.sampler.num_steps=5"]
STEMS = {f"class000{number}_seed00000{seed}" for number in (1, 7) for seed in (0, 1)}


def files() -> set[str]:
    return {file.name for file in Path("out").iterdir()}


def read(name: str) -> list[np.ndarray]:
    with Image.open(Path("out") / name) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


def large(pixels: np.ndarray) -> np.ndarray:
    """8 x 8 pixels, as an animation shows them."""
    return pixels.repeat(16, axis=0).repeat(16, axis=1)


def test_every_picture_gets_the_way_that_leads_to_it(trained, run):
    run(*DRAW, "--save_images.folder=plain")
    assert "Drew 4 images" in run(*DRAW, "--trajectory", "webp")
    assert {f"{stem}.webp" for stem in STEMS} < files()
    page = Path("out/index.html").read_text(encoding="utf-8")
    assert all(f'<a href="{stem}.webp">' in page for stem in STEMS)
    for stem in STEMS:
        frames, picture = read(f"{stem}.webp"), read(f"{stem}.png")[0]
        noise = SeededNoise([int(stem[-1])], 8, 8).first.clamp(-1, 1).float()
        assert len(frames) == 6
        np.testing.assert_array_equal(frames[0], large(to_pixels(noise)[0].numpy()))
        np.testing.assert_array_equal(frames[-1], large(picture))
        plain = np.asarray(Image.open(f"plain/{stem}.png"))
        np.testing.assert_array_equal(plain, picture)  # watching changes nothing
    assert "Drew 0 images, 4 were there" in run(*DRAW, "--trajectory", "webp")
    Path("out/class0001_seed000000.webp").unlink()
    assert "Drew 1 images, 3 were there" in run(*DRAW, "--trajectory", "webp")
    assert "Drew 0 images, 4 were there" in run(*DRAW)
    assert "Drew 4 images" in run(*DRAW, "--trajectory.format=webp", "--trajectory.show=clean")
    clean = read("class0001_seed000000.webp")
    assert len(clean) == 6
    assert (clean[1] != frames[1]).any()


def test_a_grid_beside_the_pictures_by_a_file_of_settings(trained, run):
    Path("way.yaml").write_text("trajectory: {layout: both, format: webp}\n")
    flags = ["-c", "way.yaml", "--trajectory", "gif", "--trajectory.num_frames=3"]
    run(*DRAW, *flags)
    assert {f"{stem}.gif" for stem in STEMS} | {"trajectory.gif"} < files()
    grid = read("trajectory.gif")
    assert len(grid) == 3
    assert grid[0].shape == (19 * 8, 19 * 8, 3)
    np.testing.assert_array_equal(grid[-1][8 : 9 * 8, 8 : 9 * 8], enlarged_half())
    assert "Drew 0 images, 4 were there" in run(*DRAW, *flags)
    Path("out/trajectory.gif").unlink()
    assert "Drew 4 images" in run(*DRAW, *flags)


def enlarged_half() -> np.ndarray:
    """The first picture as it stands in a grid."""
    return read("class0001_seed000000.png")[0].repeat(8, axis=0).repeat(8, axis=1)


@pytest.mark.parametrize(("format", "ending"), [("mp4", ".mp4"), ("strip", "_strip.png")])
def test_mp4_and_strip_come_from_the_command_line_too(trained, run, format, ending):
    run(*DRAW, f"--trajectory={format}", "--trajectory.layout=both")
    assert {f"{stem}{ending}" for stem in STEMS} | {f"trajectory{ending}"} < files()
    assert "Drew 0 images" in run(*DRAW, f"--trajectory={format}", "--trajectory.layout=both")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            ["fit", *QUICKSTART, "--trajectory=gif"],
            "--trajectory.format=gif. It belongs to predict.",
        ),
        ([*DRAW, "--trajectory=png"], r"'gif', 'webp', 'mp4', 'strip'\].* png"),
        ([*DRAW, "--trajectory.num_frames=1"], "num_frames must be at least 2, got 1"),
        ([*DRAW, "--trajectory.frames=1"], "frames"),
        ([*DRAW, "-c", "word.yaml"], "trajectory: .* gif"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(trained, run, call, words):
    Path("word.yaml").write_text("trajectory: gif\n")
    with pytest.raises(SystemExit, match=words) as end:
        run(*call)
    assert str(end.value).startswith("error: ")
    assert not Path("out").exists()
