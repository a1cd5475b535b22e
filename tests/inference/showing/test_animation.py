import sys

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from pixelhdm.errors import UserError
from pixelhdm.inference.draw import Drawing, draw_images
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.model import Model
from pixelhdm.inference.noise import SeededNoise
from pixelhdm.inference.pixels import to_pixels
from pixelhdm.inference.request import Request, Start
from pixelhdm.inference.samplers import DPM2MSampler, EulerSampler, HeunSampler, SDESampler
from pixelhdm.inference.showing.animation import has_note, write_animation, write_strip
from pixelhdm.inference.showing.frames import Frames, chosen
from pixelhdm.inference.showing.side_by_side import fitted, side_by_side
from pixelhdm.inference.time_grid import TimeGrid
from pixelhdm.training.flow import FlowMatching
from tests.stubs import HashConditioner, perturb, tiny_network

NOTE = "pixelhdm.trajectory=0123456789abcdef"


def model() -> Model:
    conditioner = perturb(HashConditioner(32)).eval()
    return Model(perturb(tiny_network()).eval(), conditioner, FlowMatching())


def drawn(frames: Frames, sampler=EulerSampler, num_steps=6, start=None, span="trained"):
    """Two images, watched; their pixels."""
    drawing = Drawing(sampler(num_steps), Guidance(2.0), TimeGrid(span))
    request = Request(["a", "b"], [3, 4], 8, 8, start=start)
    return to_pixels(draw_images(model(), drawing, request, frames)).numpy()


def noise(num: int, height: int, width: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [*rng.integers(0, 256, (num, height, width, 3), dtype=np.uint8)]


def read(file) -> list[np.ndarray]:
    """The frames of a file."""
    if file.suffix == ".mp4":
        with av.open(str(file)) as container:
            return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with Image.open(file) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


def times(file) -> list[int]:
    """How long each frame of a file is seen, in milliseconds."""
    with Image.open(file) as image:
        found = []
        for number in range(image.n_frames):
            image.seek(number)
            image.load()
            found.append(image.info["duration"])
        return found


@pytest.mark.parametrize("show", ["noisy", "clean"])
@pytest.mark.parametrize("sampler", [EulerSampler, HeunSampler, DPM2MSampler, SDESampler])
@pytest.mark.parametrize("span", ["trained", "full"])
def test_the_way_leads_from_pure_noise_to_the_picture(sampler, show, span):
    frames = Frames(show=show)
    pictures = drawn(frames, sampler, span=span)
    pure = to_pixels(SeededNoise([3, 4], 8, 8).first.clamp(-1, 1).float()).numpy()
    for place in (0, 1):
        way = frames.images(place)
        assert len(way) == len(frames.times) == 7
        np.testing.assert_array_equal(way[0], pure[place])
        np.testing.assert_array_equal(way[-1], pictures[place])
    assert frames.times == sorted(frames.times)
    assert (frames.times[0], frames.times[-1]) == (0, 1)


def test_a_watched_picture_is_the_same_and_the_clean_view_is_nearer_to_it_at_once():
    noisy, clean = Frames(), Frames(show="clean")
    np.testing.assert_array_equal(drawn(noisy), drawn(clean))
    np.testing.assert_array_equal(drawn(noisy), drawn(lambda step: step.z))
    last = noisy.images(0)[-1].astype(int)
    far = [np.abs(frames.images(0)[2].astype(int) - last).mean() for frames in (noisy, clean)]
    assert far[1] < far[0]


def test_as_many_frames_as_are_asked_for_evenly_chosen():
    assert chosen(50, 6) == {0, 10, 20, 30, 40, 50}
    assert chosen(3, 30) == {0, 1, 2, 3}
    for num_steps in range(1, 40):
        for num_frames in range(2, 45):
            steps = chosen(num_steps, num_frames)
            assert len(steps) == min(num_frames, num_steps + 1)
            assert {0, num_steps} <= steps
    frames = Frames(4)
    drawn(frames, num_steps=9)
    assert len(frames.images(1)) == 4
    drawn(frames, num_steps=2)
    assert len(frames.images(1)) == 3
    with pytest.raises(UserError, match="num_frames must be at least 2, got 1"):
        Frames(1)


def test_from_an_image_the_way_begins_where_its_strength_says():
    image, frames = torch.rand(2, 8, 8, 3) * 2 - 1, Frames()
    drawn(frames, num_steps=10, start=Start(image, 0.5))
    assert frames.times[0] == 0.5
    drawn(frames, start=Start(image, 0.0))
    assert [len(frames.images(place)) for place in (0, 1)] == [1, 1]
    np.testing.assert_array_equal(frames.images(1)[0], to_pixels(image)[1].numpy())


@pytest.mark.parametrize("format", ["gif", "webp"])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 7), (130, 12)])
def test_frames_come_back_enlarged_without_smoothing_and_loop(tmp_path, format, height, width):
    frames, file = noise(5, height, width), tmp_path / f"a.{format}"
    write_animation(file, frames, format, 2.0, note=NOTE)
    zoom = -(-128 // min(height, width))
    found = read(file)
    assert len(found) == 5
    for frame, own in zip(found, frames, strict=True):
        large = own.repeat(zoom, axis=0).repeat(zoom, axis=1)
        if format == "webp" or height * width <= 256:
            np.testing.assert_array_equal(frame, large)
        assert np.abs(frame.astype(int) - large).mean() < 30
    assert times(file) == [500, 500, 500, 500, 1500]
    assert Image.open(file).info["loop"] == 0
    assert has_note(file, NOTE)
    assert not has_note(file, NOTE + "0")


def test_mp4_plays_everywhere(tmp_path):
    frames, file = noise(5, 129, 131), tmp_path / "a.mp4"
    write_animation(file, frames, "mp4", 2.0, note=NOTE)
    found = read(file)
    assert len(found) == 5 + 2  # the last one stands for a second more
    assert found[0].shape == (130, 132, 3)
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.duration * stream.time_base) == pytest.approx(3.5)
    assert has_note(file, NOTE)
    grey = [np.full((8, 8, 3), value, dtype=np.uint8) for value in (20, 200)]
    write_animation(file, grey, "mp4", 1.0)
    for frame, value in zip(read(file), (20, 200, 200), strict=True):
        assert frame.shape == (128, 128, 3)
        assert np.abs(frame.astype(int) - value).max() < 4


def test_a_missing_package_is_one_sentence_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match="pip install av"):
        write_animation(tmp_path / "a.mp4", noise(2, 8, 8), "mp4")
    assert not list(tmp_path.iterdir())


def test_a_strip_shows_frames_with_their_times(tmp_path):
    frames, file = noise(3, 8, 8), tmp_path / "a_strip.png"
    write_strip(file, [("a", frames), ("b", frames[::-1])], [0.0, 0.5, 1.0], NOTE)
    picture = np.asarray(Image.open(file))
    for row, own in enumerate((frames, frames[::-1])):
        for column, frame in enumerate(own):
            top, left = 4 + row * 68, picture.shape[1] - (3 - column) * 68
            cell = picture[top : top + 64, left : left + 64]
            np.testing.assert_array_equal(cell, frame.repeat(8, axis=0).repeat(8, axis=1))
    below = picture[4 + 2 * 68 :] < 100
    for column in range(3):
        left = picture.shape[1] - (3 - column) * 68
        assert below[:, left : left + 64].any()
    assert has_note(file, NOTE)


def test_many_stand_side_by_side():
    small, wide = noise(2, 8, 8), noise(2, 8, 16)
    whole, zoom = side_by_side([small, wide, small[1:]])
    assert (zoom, len(whole)) == (8, 2)
    for number in (0, 1):
        picture = whole[number]
        assert picture.shape == (2 * 9 + 1, 2 * 17 + 1, 3)
        np.testing.assert_array_equal(picture[1:9, 18:34], wide[number])
        np.testing.assert_array_equal(picture[1:9, 5:13], small[number])
        np.testing.assert_array_equal(picture[10:18, 5:13], small[1])
        assert (picture[10:, 18:] == 255).all()


def test_large_pictures_are_made_smaller_among_many():
    assert fitted(noise(1, 512, 256)[0]).shape == (128, 64, 3)
    frame = noise(1, 128, 100)[0]
    np.testing.assert_array_equal(fitted(frame), frame)
