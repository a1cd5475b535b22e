from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelhdm.callbacks.image_facts import (
    digest_of_checkpoint,
    digest_of_model,
    has_facts,
    own_facts,
    settings_of,
    write_png,
)
from pixelhdm.data.draw_list import class_draws
from pixelhdm.data.draws import Draws
from pixelhdm.data.start_files import PictureFile, StartFiles
from pixelhdm.inference.draw import Drawing
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import AdamsSampler
from pixelhdm.inference.time_grid import TimeGrid

FACTS = {"prompt": "grün\nand <b> – 塔", "negative_prompt": "", "seed": "3"}
IMAGE = np.random.default_rng(0).integers(0, 255, (16, 12, 3), dtype=np.uint8)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_png(tmp_path / "sub/a.png", IMAGE, FACTS, "model: {}\n" * 500)
    return tmp_path / "sub/a.png"


def test_pixels_facts_and_config_come_back(file):
    image = Image.open(file)
    np.testing.assert_array_equal(np.asarray(image), IMAGE)
    assert image.info["pixelhdm.prompt"] == FACTS["prompt"]
    assert image.info["pixelhdm.config"] == "model: {}\n" * 500
    assert file.stat().st_size < 16 * 12 * 3 + 2000  # the config is compressed
    assert has_facts(file, FACTS)


@pytest.mark.parametrize(
    "facts", [FACTS | {"seed": "4"}, FACTS | {"more": ""}, {"seed": "3"}, FACTS | {"prompt": ""}]
)
def test_other_facts_are_told_from_each_other(file, facts):
    assert not has_facts(file, facts)


def test_a_torn_or_damaged_file_does_not_count(file):
    whole = file.read_bytes()
    for end in range(0, len(whole), 7):
        file.write_bytes(whole[:end])
        assert not has_facts(file, FACTS), end
    for at in range(8, len(whole), 11):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert not has_facts(file, FACTS), at
    file.unlink()
    assert not has_facts(file, FACTS)
    Image.fromarray(IMAGE).save(file)
    assert not has_facts(file, FACTS)


def test_class_draws_tell_their_class():
    item = class_draws(Draws(3, seed=5), (8, 6)).items[1]
    drawing = Drawing(AdamsSampler(5, 3), Guidance(2.0), TimeGrid())
    expected = {"class": "3", "seed": "6", "scale": "2", "size": "8x6"}
    expected |= {"sampler": "AdamsSampler order=3", "steps": "5", "calls": "6"}
    assert own_facts(item, drawing, 6) == expected


def test_images_that_begin_from_others_tell_from_which():
    (item, *_) = class_draws(Draws(3), (8, 6)).items
    start = StartFiles(PictureFile("sub/a.png", "12", (4, 4)), None, 0.25, None, 1.5)
    drawing = Drawing(AdamsSampler(5, 3), Guidance(2.0), TimeGrid())
    plain = own_facts(item, drawing, 6)
    told = own_facts(item._replace(start=start), drawing, 6)
    begun = {"image": "a.png", "image_digest": "12", "strength": "0.25"}
    assert told == plain | begun
    start = start._replace(mask=PictureFile("m.png", "34", (4, 4)), source=7)
    told = own_facts(item._replace(start=start), drawing, 6)
    masked = {"mask": "m.png", "mask_digest": "34", "source": "7", "source_scale": "1.5"}
    assert told == plain | begun | masked


def test_settings_that_are_not_the_plain_ones_are_told():
    assert settings_of(TimeGrid("full", 3.0), TimeGrid()) == "span=full shift=3.0"
    guided = Guidance(2.0, "linear", interval=(0.1, 0.9))
    assert settings_of(guided, Guidance(2.0)) == "schedule=linear interval=(0.1, 0.9)"
    assert settings_of(Guidance(2.0, routed=True), Guidance(2.0)) == "routed=True"
    assert settings_of(Guidance(2.0), Guidance(2.0)) == ""


def test_digests_see_what_drawing_depends_on(tmp_path):
    config = "model: {network: {a: 1}, loss: {b: 1}, weights: ema}\ndata: {c: 1}\n"
    for change, same in {"a: 2": False, "b: 2": True, "c: 2": True}.items():
        other = config.replace(change.replace("2", "1"), change)
        assert (digest_of_model(other) == digest_of_model(config)) == same
    (tmp_path / "torn.ckpt").write_bytes(b"PK")
    assert digest_of_checkpoint(tmp_path / "torn.ckpt") == ""
    assert digest_of_checkpoint(tmp_path / "missing.ckpt") == ""
