from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from pixelhdm.callbacks.sample_images import SampleImages
from pixelhdm.data.draws import Draws
from pixelhdm.datamodule import PixelHDMDataModule
from pixelhdm.errors import UserError
from pixelhdm.inference.showing.grid import GAP
from pixelhdm.module import PixelHDMModule
from tests.test_module import text_module

PROMPTS = ["a red barn", {"prompt": "the sea", "size": "32x96"}, "a red barn"]


class Asked(Trainer):
    """A trainer of which the callback asks these alone."""

    datamodule, global_step = None, 0
    precision_plugin = SimpleNamespace(forward_context=nullcontext)

    def __init__(self, draws: Draws, prompts: list | None):
        self.datamodule = PixelHDMDataModule(64, 4, draws, prompts=prompts)
        self.datamodule.draw_list = self.datamodule.to_draw()


def test_a_row_a_prompt_each_in_its_own_size(monkeypatch):
    module = text_module()
    monkeypatch.setattr(
        PixelHDMModule,
        "draw",
        lambda self, request, *_: torch.stack(
            [
                torch.full((request.height, request.width, 3), seed, dtype=torch.uint8)
                for seed in request.seeds
            ]
        ),
    )
    trainer = Asked(Draws(num_images=2, seed=7), PROMPTS)
    picture = np.asarray(SampleImages().grid(trainer, module, "raw"))
    for row, (height, width) in enumerate([(64, 64), (32, 96), (64, 64)]):
        top = GAP + row * (64 + GAP) + (64 - height) // 2
        for column, seed in enumerate((7, 8)):
            left = picture.shape[1] - (2 - column) * (96 + GAP) + (96 - width) // 2
            assert (picture[top : top + height, left : left + width] == seed).all()
            assert (picture[top - 1, left : left + width] == 255).all()
            assert (picture[top : top + height, left - 1] == 255).all()


def test_what_cannot_be_drawn_ends_training_before_it_starts():
    module = text_module()
    with pytest.raises(UserError, match=r"entry 1: image height .* got 63x64"):
        SampleImages().on_train_start(Asked(Draws(), [{"prompt": "a", "height": 63}]), module)
    with pytest.raises(UserError, match="got neither"):
        SampleImages().on_train_start(Asked(Draws(), None), module)
    SampleImages(0).on_train_start(Asked(Draws(), None), module)
