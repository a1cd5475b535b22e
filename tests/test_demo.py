from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixelhdm.demo import command
from pixelhdm.demo.picture import Picture
from pixelhdm.demo.settings import Settings, solvers
from pixelhdm.demo.start import StartPicture, for_editor, from_editor, unzoomed
from pixelhdm.demo.studio import Studio
from pixelhdm.demo.watcher import Progress, Stopped
from pixelhdm.errors import UserError
from pixelhdm.inference.draw import Drawing
from pixelhdm.inference.exports.exported import Description
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.model import Model
from pixelhdm.inference.samplers import EulerSampler, HeunSampler, SDESampler
from pixelhdm.inference.time_grid import TimeGrid
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.models.conditioners.conditioner import Conditioner
from pixelhdm.pipeline import PixelHDMPipeline
from pixelhdm.training.flow import FlowMatching
from tests.stubs import HashConditioner, perturb, tiny_network

ASKED = Settings(
    condition=3,
    negative=None,
    height=8,
    width=4,
    seed=5,
    num_images=2,
    solver="Heun",
    num_steps=3,
    scale=2.0,
    interval_start=0.2,
    interval_end=0.9,
    rescale=0.5,
    shift=2.0,
    is_animated=False,
    strength=0.6,
    source="",
)


def pipeline(kind: type[Conditioner] = ClassConditioner) -> PixelHDMPipeline:
    """A pipeline of random weights."""
    network = perturb(tiny_network())
    settings = {"num_classes": 10} if kind is ClassConditioner else {}
    torch.manual_seed(0)
    conditioner = kind(network.hidden_dim, **settings)
    drawing = Drawing(EulerSampler(4), Guidance(1.5), TimeGrid())
    model = Model(network.eval(), conditioner.eval(), FlowMatching())
    pipe = PixelHDMPipeline(model, drawing, Description({}, 8, 8, facts={"trained_steps": "7"}))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(pipeline(), tmp_path, "a model")


def drawn(studio: Studio, asked: Settings, start: StartPicture | None = None) -> list[Picture]:
    """The pictures that a studio draws in the end."""
    return list(studio.draw(asked, start, "somebody"))[-1]


def test_page_draws_what_the_pipeline_draws(studio: Studio) -> None:
    pictures = drawn(studio, ASKED)

    pipe = pipeline()
    pipe.sampler, pipe.time_grid = HeunSampler(3), TimeGrid(shift=2.0)
    pipe.guidance = Guidance(2.0, interval=(0.2, 0.9), rescale=0.5)
    for number, picture in enumerate(pictures):
        with Image.open(picture.file) as image:
            one = pipe(class_labels=3, height=8, width=4, seed=5 + number).images[0]
            assert np.array_equal(np.asarray(image), np.asarray(one))
            assert image.text["pixelhdm.seed"] == str(5 + number) == str(picture.settings.seed)
            assert image.text["pixelhdm.sampler"] == "HeunSampler"
    assert studio.pipe.sampler.num_steps == 4  # the model's own way is for the next one, too


def test_random_seed_is_told_and_draws_the_same_again(studio: Studio) -> None:
    first = drawn(studio, ASKED._replace(seed=-1, num_images=1))[0]

    again = drawn(studio, first.settings)[0]

    assert first.settings.seed >= 0
    assert first.file.read_bytes() == again.file.read_bytes()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"height": 7}, "multiples of patch_size=2, got 7x4"),
        ({"height": None}, "height must be a whole number, got nothing"),
        ({"width": 4.5}, "width must be a whole number, got 4.5"),
        ({"height": 2**20}, "pixels together"),
        ({"condition": 10}, "class must lie in 0 … 9"),
        ({"condition": None}, "class must be a whole number, got nothing"),
        ({"num_steps": 0}, "steps must lie in 1 … 1000, got 0"),
        ({"num_images": 65}, "images must lie in 1 … 64, got 65"),
        ({"seed": -2}, "seed must lie in"),
        ({"scale": None}, "guidance scale must be a number"),
        ({"interval_start": 0.9, "interval_end": 0.2}, "two rising times"),
        ({"shift": 0.0}, "shift must be above 0"),
    ],
)
def test_bad_input_has_a_reason(studio: Studio, change: dict, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        drawn(studio, ASKED._replace(**change))

    assert drawn(studio, ASKED._replace(num_images=1))  # and the next drawing goes well


def test_texts_are_drawn_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    studio = Studio(pipeline(HashConditioner), tmp_path, "a model")
    asked = ASKED._replace(condition=" a red barn ", negative="snow", num_images=1)

    picture = drawn(studio, asked)[0]

    assert picture.facts["prompt"] == "a red barn"
    assert picture.facts["negative_prompt"] == "snow"
    with pytest.raises(UserError, match="prompt must not be empty"):
        drawn(studio, asked._replace(condition="  "))


def test_progress_is_shown_and_stopping_ends_it(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixelhdm.demo.watcher.PREVIEW_SECONDS", 0.0)
    news: Iterator = studio.draw(ASKED._replace(num_steps=1000), None, "somebody")

    first = next(news)
    studio.stop("somebody else")
    second = next(news)
    studio.stop("somebody")

    assert isinstance(first, Progress)
    assert 0 < first.part < second.part
    assert first.images[0].size == (4, 8)
    with pytest.raises(Stopped):
        list(news)
    assert len(drawn(studio, ASKED)) == 2


def test_animation_ends_with_the_picture(studio: Studio) -> None:
    picture = drawn(studio, ASKED._replace(is_animated=True))[1]

    with Image.open(picture.animation) as way, Image.open(picture.file) as image:
        way.seek(way.n_frames - 1)
        end = way.convert("RGB").resize(image.size, Image.Resampling.NEAREST)
        assert way.n_frames == 3
        assert np.array_equal(np.asarray(end), np.asarray(image))


def test_unpainted_part_of_a_picture_stays(studio: Studio) -> None:
    before = drawn(studio, ASKED._replace(num_images=1))[0]
    with Image.open(before.file) as image:
        large = for_editor(image)
        background, paint = large.convert("RGBA"), Image.new("RGBA", large.size)
    paint.paste((255, 0, 0, 255), (0, 0, large.width, large.height // 2))

    start = from_editor({"background": background, "layers": [paint], "composite": None})
    after = drawn(studio, ASKED._replace(seed=6, strength=1.0, num_images=1), start)[0]

    old, new = (np.asarray(Image.open(picture.file)) for picture in (before, after))
    assert np.array_equal(old[4:], new[4:])
    assert not np.array_equal(old[:4], new[:4])
    assert after.facts["strength"] == "1"


def test_picture_of_another_size_is_not_taken_for_an_enlarged_one() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 18, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)

    assert np.array_equal(np.asarray(unzoomed(for_editor(image), image.size)), pixels)
    assert unzoomed(image, (4, 4)) is image
    assert from_editor({"background": None, "layers": [], "composite": None}) is None


def test_own_solver_is_offered_as_it_is_set() -> None:
    offered = solvers(SDESampler(7, eta=0.5))

    assert list(offered) == [
        *("Euler", "Heun", "Adams 1", "Adams 2", "Adams 3", "Adams 4"),
        *("DPM++ 2M", "DPM++ 2S", "SDE"),
    ]
    assert offered["SDE"].eta == 0.5


def test_missing_gradio_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)

    with pytest.raises(UserError, match="Run pip install 'gradio>=6,<7'"):
        command.demo("nowhere")


def test_loopback_addresses_are_known() -> None:
    assert all(map(command.is_loopback, ("127.0.0.1", "127.0.0.9", "::1", "localhost")))
    assert not any(map(command.is_loopback, ("0.0.0.0", "192.168.0.1", "::", "example.org")))


def test_device_out_of_reach_is_named() -> None:
    with pytest.raises(UserError, match="device must be one that PyTorch reaches, got cuda:99"):
        command.check_device("cuda:99")
