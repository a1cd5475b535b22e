"""Sizes that are read from published shapes, and the settings that follow."""

import inspect
import math

import pytest
import torch
import yaml

from pixelhdm.converting.families import kind_of, plan_of
from pixelhdm.converting.files import Copies
from pixelhdm.converting.instruction import read_text
from pixelhdm.converting.plan import Plan
from pixelhdm.converting.settings import config_text, drawing_of
from pixelhdm.errors import UserError
from pixelhdm.models.presets import PUBLISHED
from tests.published import jit, pixeldit

# Name, family, published shapes, their number and that of the parameters.
SIZES = [
    ("PixelDiT-B", "pixeldit", pixeldit.shapes(pixeldit.B), 190, 184_749_155),
    ("PixelDiT-L", "pixeldit", pixeldit.shapes(pixeldit.L), 344, 569_648_963),
    ("PixelDiT-XL", "pixeldit", pixeldit.shapes(pixeldit.XL), 392, 797_383_203),
    ("PixelDiT-T2I", "pixeldit_t2i", pixeldit.shapes(pixeldit.T2I), 385, 1_302_470_787),
    ("JiT-B", "jit", jit.shapes(jit.JIT_B), 183, 131_320_320),
    ("JiT-L", "jit", jit.shapes(jit.JIT_L), 351, 459_139_808),
    ("JiT-H", "jit", jit.shapes(jit.JIT_H), 463, 952_842_048),
    ("PixelGen-XL", "pixelgen", jit.shapes(jit.PIXELGEN_XL), 406, 676_994_112),
    ("PixelGen-XXL", "pixelgen", jit.shapes(jit.PIXELGEN_T2I), 250, 1_122_132_736),
]


def planned(family: str, shapes: dict) -> tuple[str, Plan]:
    """The plan of a file of these shapes."""
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    kind = kind_of(Copies(state, None, 0, "plain").best)
    return kind, plan_of(family, kind, state, None)


@pytest.mark.parametrize(("name", "family", "shapes", "count", "size"), SIZES)
def test_published_shapes_tell_the_published_network(name, family, shapes, count, size):
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == (count, size)
    _, plan = planned(family, shapes)
    assert {move.theirs: move.shape for move in plan.moves} == {
        key: shape for key, shape in shapes.items() if key not in plan.fixed
    }
    preset, settings = PUBLISHED[name], plan.network["init_args"]
    assert plan.network["class_path"].endswith(f".{preset.network.__name__}")
    arguments = inspect.signature(preset.network).parameters
    defaults = {key: value.default for key, value in arguments.items()}
    assert defaults | settings == defaults | preset.settings


@pytest.mark.parametrize(
    ("sizes", "family", "side", "step", "expected"),
    [
        (pixeldit.XL, "pixeldit", 256, 1_600_000, ("AdamsSampler", 100, 2.75, [0.101, 0.899], 1.0)),
        (pixeldit.XL, "pixeldit", 256, 0, ("AdamsSampler", 100, 2.75, [0.101, 0.899], 1.0)),
        (pixeldit.XL, "pixeldit", 256, 400_000, ("AdamsSampler", 100, 3.25, [0.101, 1.0], 1.0)),
        (pixeldit.XL, "pixeldit", 512, 9, ("AdamsSampler", 100, 3.5, [0.1, 1.0], 2.0)),
        (pixeldit.T2I, "pixeldit_t2i", 1024, 0, ("DPM2MSampler", 50, 3.5, [0.0, 1.0], 4.0)),
        (pixeldit.T2I, "pixeldit_t2i", 512, 0, ("DPM2MSampler", 50, 3.5, [0.0, 1.0], 3.0)),
        (jit.JIT_B, "jit", 256, 0, ("HeunSampler", 50, 2.9, [0.101, 1.0], 1.0)),
        (jit.PIXELGEN_XL, "pixelgen", 256, 0, ("HeunSampler", 50, 2.25, [0.1, 0.9], 2.0)),
        (jit.PIXELGEN_XL, "pixelgen", 256, 400_000, ("HeunSampler", 50, 1.0, [0.0, 1.0], 2.0)),
        (jit.JIT_L, "pixelgen", 256, 0, ("EulerSampler", 50, 1.0, [0.0, 1.0], 1.0)),
        (jit.PIXELGEN_T2I, "pixelgen", 512, 0, ("AdamsSampler", 25, 4.0, [0.0, 1.0], 3.0)),
    ],
)
def test_the_config_draws_as_the_authors_do(sizes, family, side, step, expected):
    shapes = (pixeldit if isinstance(sizes, pixeldit.Sizes) else jit).shapes(sizes)
    kind, plan = planned(family, shapes)
    drawing = drawing_of(family, kind, plan, side, step)
    text = config_text(family, plan, drawing, side, "out", "file.ckpt")
    assert text.startswith("# Converted from file.ckpt")
    config = yaml.safe_load(text)
    model, guidance = config["model"], config["model"]["guidance"]["init_args"]
    assert model["flow"]["squeeze_time"] is False
    assert (
        model["sampler"]["class_path"],
        model["sampler"]["init_args"]["num_steps"],
        guidance["scale"],
        guidance["interval"],
        model["time_grid"]["shift"],
    ) == expected
    assert config["data"]["image_size"] == side
    assert ("prompts" in config["data"]) == (sizes.text_width is not None)


def test_jit_for_512_pixels_was_trained_with_twice_the_noise():
    sizes = jit.JIT_B._replace(patch=32, image=512)
    kind, plan = planned("jit", jit.shapes(sizes))
    assert plan.side == 512
    assert drawing_of("jit", kind, plan, 512, 0).flow["noise_scale"] == 2.0


def test_an_instruction_is_read_from_the_authors_yaml_or_a_text(tmp_path):
    lines = ["Make it richer:", "- colours", "User Prompt: "]
    stage = tmp_path / "stage3.yaml"
    stage.write_text(yaml.safe_dump({"text_encoder": {"chi_prompt": lines}}))
    assert read_text(stage) == "\n".join(lines)
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n")
    assert read_text(tmp_path / "text.txt") == "\n".join(lines)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "other.yaml").write_text("a: 1")
    for name, words in (("empty.txt", "without one"), ("other.yaml", "KeyError"), ("no", "FileNo")):
        with pytest.raises(UserError, match=words):
            read_text(tmp_path / name)
