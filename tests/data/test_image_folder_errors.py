from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelhdm.data.image_folder import ImageFolder
from pixelhdm.data.source import BadSample
from pixelhdm.errors import UserError


def opened(folder: Path) -> ImageFolder:
    source = ImageFolder(str(folder))
    source.open()
    return source


def picture(folder: Path, ending: str) -> Path:
    (folder / "a").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    file = folder / f"a/1.{ending}"
    Image.fromarray(pixels).save(file)
    return file


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.1, 0.5, 0.9])
def test_a_torn_image_is_a_bad_sample(tmp_path, ending, keep):
    file = picture(tmp_path, ending)
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(BadSample, match="decode: "):
        opened(tmp_path).load(0, 0, 8, 8)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp"])
def test_damaged_bytes_give_an_image_or_a_reason(tmp_path, ending):
    """Nothing but a BadSample leaves load, whatever byte is wrong."""
    file = picture(tmp_path, ending)
    data, source = file.read_bytes(), opened(tmp_path)

    def is_honest() -> bool:
        try:
            return source.load(0, 0, 8, 8).image.shape == (8, 8, 3)
        except BadSample as error:
            return error.reason == "decode"

    for at in [*range(0, 64), *range(64, len(data), 37)]:
        file.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
        assert is_honest(), at


def test_an_image_too_large_to_be_honest_is_named(tmp_path, monkeypatch):
    picture(tmp_path, "png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # 24 x 24 is more than twice of it
    with pytest.raises(BadSample, match="decode: "):
        opened(tmp_path).load(0, 0, 8, 8)


def test_a_text_file_with_an_image_ending_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.png").write_text("hello")
    with pytest.raises(BadSample, match="decode: "):
        opened(tmp_path).load(0, 0, 8, 8)


def test_an_image_that_vanished_is_named(tmp_path):
    file, source = picture(tmp_path, "png"), opened(tmp_path)
    file.unlink()
    with pytest.raises(BadSample, match="missing: "):
        source.load(0, 0, 8, 8)


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"got .*nowhere, which does not exist"):
        opened(tmp_path / "nowhere")
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=r"which has none\. Expected <folder>/<class>/<image>"):
        opened(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "loose.png")  # images without a class folder
    with pytest.raises(UserError, match="which has none"):
        opened(tmp_path)


def test_wrong_flip_prob_is_named():
    with pytest.raises(UserError, match=r"flip_prob must lie in 0 … 1, got 1\.5"):
        ImageFolder("anywhere", flip_prob=1.5)


def test_fingerprint_depends_on_names_and_classes(tmp_path):
    file = picture(tmp_path, "png")
    before = opened(tmp_path).fingerprint()
    assert opened(tmp_path).fingerprint() == before
    file.rename(tmp_path / "a/2.png")
    assert opened(tmp_path).fingerprint() != before
