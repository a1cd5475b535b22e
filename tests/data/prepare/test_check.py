"""What is stored of one image, and why one is left out."""

import io
import json
import os
import zlib
from pathlib import Path

import pytest
from PIL import Image

from pixelhdm.data.decode import decode
from pixelhdm.data.prepare.check import Checked, Rules, check
from pixelhdm.data.prepare.items import FilePlace, Item, Rejection
from tests.data.prepare.conftest import picture, save

RULES = Rules(min_side=16, max_aspect=4.5, require_captions=False, reencode=None, quality=95)
ORIENTATION = 0x0112


def checked(file: Path, rules: Rules = RULES, **known: object) -> Checked | Rejection:
    size = file.stat().st_size if file.exists() else 5
    return check(Item(file.name, size, FilePlace(str(file)), **known), rules)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.png"


def story(result: Checked | Rejection) -> dict:
    return json.loads(result.text)


def make_bytes(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture(0).save(stream, kind, **options)
    return stream.getvalue()


BROKEN = {
    "empty": b"",
    "text": b"hello, this is no image",
    "jpeg": make_bytes("JPEG")[:-400],
    "png": make_bytes("PNG")[:-400],
    "webp": make_bytes("WEBP")[:-400],
    "gif": make_bytes("GIF")[:-400],
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_images_are_left_out(file, name):
    file.write_bytes(BROKEN[name])
    result = checked(file)
    assert isinstance(result, Rejection)
    assert result.reason == ("empty" if name == "empty" else "broken")
    assert "0x" not in result.detail
    assert "/" not in result.detail


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_are_left_out(file, kind):
    picture(0).save(file, kind, save_all=True, append_images=[picture(1), picture(2)])
    assert checked(file)[1:] == ("animated", f"{kind} of 3 frames")


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((16, 16), None),
        ((15, 40), "too_small"),
        ((16, 72), None),
        ((73, 16), "extreme"),
        ((200, 110), "too_large"),
    ],
)
def test_sizes_have_limits(file, monkeypatch, size, reason):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # Pillow refuses twice as many
    Image.new("1", size).save(file)
    result = checked(file)
    assert isinstance(result, Checked) if reason is None else result.reason == reason


def test_a_side_beyond_the_index_is_too_large(file):
    Image.new("1", (65536, 2)).save(file)
    assert checked(file).detail == "65536 x 2, a side above 65535"


def test_a_vanished_and_an_unreadable_file_are_told_apart(tmp_path):
    assert checked(tmp_path / "gone.png").reason == "missing"
    (tmp_path / "folder.png").mkdir()
    assert checked(tmp_path / "folder.png")[1:] == ("unreadable", "Is a directory")


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may read all")
def test_a_forbidden_file_is_left_out(file):
    save(file).chmod(0)
    assert checked(file)[1:] == ("unreadable", "Permission denied")


def test_a_format_that_training_cannot_read_is_left_out_or_reencoded(file):
    picture(0).save(file, "PPM")
    assert checked(file).reason == "unsupported"
    result = checked(file, Rules(16, 4.5, False, "webp", 90))
    assert result.ending == "webp"
    assert Image.open(io.BytesIO(result.data)).format == "WEBP"


def test_bytes_stay_and_the_size_is_upright(file):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture(0).save(file, "JPEG", exif=exif)
    result = checked(file)
    assert result.data == file.read_bytes()
    assert (result.ending, result.width, result.height) == ("jpg", 30, 40)
    assert result.crc32 == zlib.crc32(result.data)
    assert (story(result)["width"], story(result)["height"]) == (30, 40)
    assert decode(result.data).shape == (40, 30, 3)


def test_cmyk_transparency_and_camera_pairs_are_kept(file):
    picture(0).convert("CMYK").save(file, "JPEG")
    assert checked(file).tags == ("JPEG", "CMYK")
    picture(0).convert("RGBA").save(file, "PNG")
    assert checked(file).data == file.read_bytes()
    picture(0).save(file, "MPO", save_all=True, append_images=[picture(1)])
    assert checked(file).ending == "jpg"


def test_reencoding_is_of_the_others_alone(file):
    rules = Rules(16, 4.5, False, "jpeg", 95)
    picture(0).convert("RGBA").save(file, "PNG")
    result = checked(file, rules)
    assert result.ending == "jpg"
    assert result.tags == ("PNG", "reencoded")
    assert abs(decode(result.data).astype(int) - decode(file.read_bytes())).mean() < 4
    save(file, format="JPEG")
    assert checked(file, rules).data == file.read_bytes()


def test_captions_come_from_all_texts_once_each(file):
    save(file)
    texts = {
        ".json": json.dumps({"captions": ["one", "two"], "url": "here"}),
        ".caption": " two \n",
        ".txt": "\ufeffthree",
    }
    places = []
    for ending, text in texts.items():
        file.with_suffix(ending).write_text(text, encoding="utf-8")
        places.append((ending, FilePlace(str(file.with_suffix(ending)))))
    result = checked(file, captions=("zero", "one"), texts=tuple(places), label=3, class_name="cat")
    assert result.captions == ("zero", "one", "two", "three")
    assert story(result)["metadata"] == {"url": "here"}
    assert (story(result)["label"], story(result)["class"], result.label) == (3, "cat", 3)


def test_a_text_that_cannot_be_read_is_told(file):
    save(file)
    file.with_suffix(".json").write_text("{")
    texts = ((".json", FilePlace(str(file.with_suffix(".json")))),)
    assert checked(file, texts=texts).bad_texts.startswith(".json beside it: Expecting")
    strict = Rules(16, 4.5, True, None, 95)
    assert checked(file, strict)[1:] == ("no_caption", "none is given")
    assert checked(file, strict, texts=texts).detail.startswith(".json beside it: Expecting")


def test_half_a_character_in_a_caption_does_not_stop_the_run(file):
    save(file)
    assert checked(file, captions=("a \ud800 b",)).captions == ("a ? b",)


def test_floats_of_unknown_range_are_left_out(file):
    Image.new("F", (40, 40), 0.5).save(file, "TIFF")
    for rules in (RULES, Rules(16, 4.5, False, "jpeg", 95)):
        assert checked(file, rules).reason == "unsupported"
