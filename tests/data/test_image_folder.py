from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelhdm.data.image_folder import ImageFolder

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def save(folder: Path, name: str, image: Image.Image, **options: object) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **options)
    return file


def halves(left: tuple, right: tuple, size: tuple[int, int] = (8, 8)) -> Image.Image:
    image = Image.new("RGB", size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def opened(folder: Path, **options: float) -> ImageFolder:
    source = ImageFolder(str(folder), **options)
    source.open()
    return source


def loaded(folder: Path, size: int = 8) -> np.ndarray:
    image = opened(folder).load(0, 0, size, size).image
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    return image


def test_classes_are_numbered_by_their_sorted_names(tmp_path):
    for name in ("b/2.png", "c/x.JPG", "a/z/9.webp", "a/1.bmp", "b/1.jpeg"):
        save(tmp_path, name, Image.new("RGB", (8, 8)))
    (tmp_path / "a/notes.txt").write_text("no image")
    (tmp_path / "0.txt").write_text("no class")
    source = opened(tmp_path)
    found = [(str(file.relative_to(tmp_path)), label) for file, label in source.items]
    names = ["a/1.bmp", "a/z/9.webp", "b/1.jpeg", "b/2.png", "c/x.JPG"]
    assert found == list(zip(names, [0, 0, 1, 1, 2], strict=True))
    assert [source.load(i, 0, 8, 8).condition for i in range(len(source))] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path, orientation):
    corners = Image.new("RGB", (2, 2))
    for at, color in zip([(0, 0), (1, 0), (0, 1), (1, 1)], [RED, GREEN, BLUE, WHITE], strict=True):
        corners.putpixel(at, color)
    stored = {  # how a camera stores the upright picture, by the EXIF standard
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation](np.asarray(corners))
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path, "a/1.png", Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(loaded(tmp_path, 2), np.asarray(corners))


def transparent(mode: str) -> Image.Image:
    """Left half red or black and opaque, right half transparent."""
    if mode == "P":
        image = Image.new("P", (8, 8), 1)
        image.putpalette([*BLUE, *RED])
        image.paste(0, (4, 0, 8, 8))
        image.info["transparency"] = 0
        return image
    opaque = {"RGBA": (*RED, 255), "LA": (0, 255)}[mode]
    image = Image.new(mode, (8, 8), opaque)
    image.paste((*opaque[:-1], 0), (4, 0, 8, 8))
    return image


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    save(tmp_path, "a/1.png", transparent(mode))
    image = loaded(tmp_path)
    assert (image[:, :4] == ((0, 0, 0) if mode == "LA" else RED)).all()
    assert (image[:, 4:] == WHITE).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "I;16"])
def test_other_colour_modes_become_rgb(tmp_path, mode):
    if mode == "I;16":
        wide = Image.fromarray(np.full((8, 8), 128 * 257, dtype=np.uint16))
        save(tmp_path, "a/1.png", wide)
        expected = (128, 128, 128)
    else:
        expected = {"1": WHITE, "L": (100, 100, 100)}.get(mode, GREEN)
        ending = {"CMYK": "jpg"}.get(mode, "png")
        save(tmp_path, f"a/1.{ending}", Image.new("RGB", (8, 8), expected).convert(mode))
    assert np.abs(loaded(tmp_path).astype(int) - expected).max() <= 2


def test_sizes_are_upright_and_zero_where_there_is_no_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path, "a/1.jpg", Image.new("RGB", (20, 10)), exif=exif)
    save(tmp_path, "a/2.png", Image.new("RGB", (20, 10)))
    (tmp_path / "a/3.png").write_text("no image")
    assert opened(tmp_path).sizes().tolist() == [[10, 20], [20, 10], [0, 0]]


@pytest.mark.parametrize("size", [(40, 8), (8, 40), (81, 16), (20, 9)])
def test_the_centre_is_cut_out(tmp_path, size):
    stripes = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    stripes[..., 0] = np.linspace(0, 255, size[0])[None]
    stripes[..., 1] = np.linspace(0, 255, size[1])[:, None]
    save(tmp_path, "a/1.png", Image.fromarray(stripes))
    image = loaded(tmp_path).astype(float)
    shares = [min(size) / side for side in size]  # of the whole range that is kept
    for channel, (share, axis) in enumerate(zip(shares, (1, 0), strict=True)):
        profile = image[..., channel].mean(axis=1 - axis)
        assert profile.mean() == pytest.approx(127.5, abs=255 * 0.51 / max(size) + 2)
        step = 255 * share / 8 * (max(size) / (max(size) - 1))
        assert np.diff(profile)[2:-2].mean() == pytest.approx(step, rel=0.2)


def test_a_small_image_is_enlarged(tmp_path):
    save(tmp_path, "a/1.png", halves(RED, BLUE, (2, 3)))
    image = loaded(tmp_path, 16)
    assert (image[:, 0] == RED).all()
    assert (image[:, -1] == BLUE).all()


def test_flips_are_decided_by_the_seed(tmp_path):
    save(tmp_path, "a/1.png", halves(RED, BLUE))
    plain = opened(tmp_path).load(0, 0, 8, 8).image
    always, never, half = (opened(tmp_path, flip_prob=p) for p in (1.0, 0.0, 0.5))
    flipped = 0
    for seed in range(200):
        assert np.array_equal(always.load(0, seed, 8, 8).image, plain[:, ::-1])
        assert np.array_equal(never.load(0, seed, 8, 8).image, plain)
        image = half.load(0, seed, 8, 8).image
        assert np.array_equal(image, half.load(0, seed, 8, 8).image)
        flipped += bool((image[0, 0] == BLUE).all())
    assert 70 < flipped < 130
