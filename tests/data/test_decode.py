import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from pixelhdm.data.decode import cover, decode, is_plain_jpeg, read_header


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.integers(0, 255, (height, width, channels), dtype=np.uint8)


def smooth(width: int, height: int) -> np.ndarray:
    """A picture without details, which survives any good resize."""
    x, y = np.linspace(0, 3, width)[None], np.linspace(0, 2, height)[:, None]
    waves = [np.sin(x + y), np.cos(x - y), np.sin(2 * x) * np.cos(y)]
    return ((np.stack(waves, axis=-1) + 1) * 127.5).round().astype(np.uint8)


def encoded(pixels: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels.squeeze())
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_files_give_their_pixels(kind):
    pixels = noise(7, 5)
    assert np.array_equal(decode(encoded(pixels, kind)), pixels)


def test_the_fast_path_takes_plain_jpegs_alone():
    plain = encoded(noise(9, 8), "JPEG")
    grey = encoded(noise(9, 8, 1), "JPEG")
    cmyk = encoded(Image.fromarray(noise(9, 8)).convert("CMYK"), "JPEG")
    progressive = encoded(noise(9, 8), "JPEG", progressive=True)
    assert [is_plain_jpeg(data) for data in (plain, grey, cmyk, progressive)] == [
        True,
        True,
        False,
        True,
    ]
    assert not is_plain_jpeg(encoded(noise(9, 8), "PNG"))
    assert not is_plain_jpeg(plain[:20])


@pytest.mark.parametrize("kind", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpegs_are_those_of_pillow(kind, subsampling):
    picture = Image.fromarray(smooth(33, 21)).convert(kind)
    data = encoded(picture, "JPEG", quality=90, subsampling=subsampling)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode(data) - expected).max() <= 4  # another rounding of the chroma
    assert decode(data).shape == (21, 33, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpegs_are_turned_upright_as_pillow_does(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(32, 16), "JPEG", exif=exif, subsampling=0, quality=95)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))).astype(int)
    assert np.abs(decode(data).astype(int) - expected).max() <= 4
    header = read_header(data)
    assert (header.height, header.width) == decode(data).shape[:2]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_headers_say_what_decoding_gives(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(32, 16), kind, exif=exif)
    header = read_header(data)
    assert (header.height, header.width) == decode(data).shape[:2]
    assert (header.kind, header.num_frames) == (kind, 1)


def test_headers_of_animations_count_their_frames():
    frames = [Image.fromarray(noise(8, 8)) for _ in range(3)]
    data = encoded(smooth(8, 8), "GIF", save_all=True, append_images=frames)
    assert read_header(data).num_frames > 1


def test_an_image_of_the_right_size_is_not_touched():
    pixels = noise(12, 8)
    assert np.array_equal(cover(pixels, 8, 12, (0.5, 0.5)), pixels)


@pytest.mark.parametrize(
    ("where", "corner"), [((0.0, 0.0), (0, 0)), ((1.0, 1.0), (4, 0)), ((0.5, 0.5), (2, 0))]
)
def test_cutting_alone_takes_the_part_asked_for(where, corner):
    pixels = noise(12, 12)
    top, left = corner
    expected = pixels[top : top + 8, left : left + 12]
    assert np.array_equal(cover(pixels, 8, 12, where), expected)


@pytest.mark.parametrize("size", [(16, 16), (24, 16), (16, 40), (100, 30)])
def test_resizing_is_that_of_pillow_to_a_grey_level_or_two(size):
    pixels, (height, width) = smooth(90, 60), size
    scale = max(height / 60, width / 90)
    whole = max(width, round(90 * scale)), max(height, round(60 * scale))
    resized = np.asarray(Image.fromarray(pixels).resize(whole, Image.Resampling.BICUBIC))
    top, left = round((whole[1] - height) / 2), round((whole[0] - width) / 2)
    expected = resized[top : top + height, left : left + width].astype(int)
    assert np.abs(cover(pixels, height, width, (0.5, 0.5)) - expected).max() <= 2


def test_a_header_that_claims_too_much_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for kind in ("JPEG", "PNG"):
        with pytest.raises(Image.DecompressionBombError):
            decode(encoded(noise(20, 20), kind))
