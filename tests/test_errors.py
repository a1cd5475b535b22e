"""What Python callers are told of a wrong word; here type checks would be before it."""

from typing import Literal

import pytest

from pixelhdm.errors import UserError, check_one_of
from tests.e2e.life import Life

CODE = """
from functools import partial

from pixelhdm.callbacks.ema import EMA
from pixelhdm.data.buckets import Buckets
from pixelhdm.data.digits import Digits
from pixelhdm.data.image_folder import ImageFolder
from pixelhdm.data.shards import Shards
from pixelhdm.errors import UserError
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.time_grid import TimeGrid
from pixelhdm.models.conditioners.text_conditioner import Qwen3Conditioner
from pixelhdm.models.encoders.dino import DINOv3
from pixelhdm.models.pixelhdm import PixelHDM
from pixelhdm.training.flow import FlowMatching
from pixelhdm.training.losses.repa import RepaLoss

for cls, name in (
    (EMA, "device"),
    (PixelHDM, "grad_checkpoint"), (PixelHDM, "pixel_modulation"), (FlowMatching, "prediction"),
    (DINOv3, "library"), (Digits, "split"), (Buckets, "too_small"),
    (partial(Shards, ""), "condition"), (partial(ImageFolder, ""), "crop"),
    (partial(Qwen3Conditioner, 8), "pooling"), (partial(Qwen3Conditioner, 8), "null"),
    (RepaLoss, "projector"), (RepaLoss, "resize"),
    (TimeGrid, "span"), (Guidance, "schedule"), (Guidance, "weak_weights"),
):
    try:
        cls(**({"teacher": DINOv3()} if cls is RepaLoss else {}), **{name: "ful"})
    except UserError as error:
        print(error)
"""


def test_a_word_that_is_none_of_the_choices_is_named_with_them():
    check_one_of(Literal["a", "b"], first="a", second="b")
    with pytest.raises(UserError, match=r"second must be one of a, b, got c\."):
        check_one_of(Literal["a", "b"], first="a", second="c")


def test_constructors_know_their_choices(tmp_path):
    script = tmp_path / "choices.py"
    script.write_text(CODE)
    printed = Life(folder=tmp_path, script=script).end()
    assert printed.splitlines() == [
        "device must be one of auto, cpu, got ful.",
        "grad_checkpoint must be one of none, pixel, selective, all, got ful.",
        "pixel_modulation must be one of factored, full, got ful.",
        "prediction must be one of v, x, got ful.",
        "library must be one of transformers, timm, got ful.",
        "split must be one of train, val, got ful.",
        "too_small must be one of drop, upscale, error, got ful.",
        "condition must be one of class, caption, none, got ful.",
        "crop must be one of center, random, got ful.",
        "pooling must be one of last, mean, got ful.",
        "null must be one of learned, empty, got ful.",
        "projector must be one of mlp, conv, got ful.",
        "resize must be one of teacher, student, got ful.",
        "span must be one of trained, full, got ful.",
        "schedule must be one of constant, linear, cosine, quadratic, got ful.",
        "weak_weights must be one of ema, raw, got ful.",
    ]
