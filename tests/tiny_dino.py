"""Tiny random DINO models, saved as their libraries save real ones, and a teacher without files."""

import contextlib
import os
from pathlib import Path

import torch
from einops.layers.torch import Rearrange
from torch import nn

from pixelhdm.models.encoders.dino import DINOv2, DINOv3, Library
from pixelhdm.models.encoders.teacher import Teacher
from tests.stubs import perturb

DIM = 32


def save_dinov3(folder: Path, library: Library = "transformers") -> DINOv3:
    """Write a random two-layer DINOv3 of width 32 into `folder`; a teacher that reads it."""
    if library == "timm":
        save_timm(folder, "vit_small_patch16_dinov3", init_values=1.0)
    else:
        from transformers import DINOv3ViTConfig, DINOv3ViTModel

        config = DINOv3ViTConfig(
            hidden_size=DIM,
            intermediate_size=2 * DIM,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_register_tokens=4,
        )
        save_transformers(folder, DINOv3ViTModel(config))
    return DINOv3(str(folder), DIM, library)


def save_dinov2(folder: Path, library: Library = "transformers", num_registers: int = 0) -> DINOv2:
    """Write a random two-layer DINOv2 of width 32 into `folder`; a teacher that reads it."""
    if library == "timm":
        name = "vit_small_patch14_reg4_dinov2" if num_registers else "vit_small_patch14_dinov2"
        save_timm(folder, name, init_values=1.0, img_size=56)
    else:
        save_transformers(folder, new_dinov2(num_registers))
    return DINOv2(str(folder), DIM, library)


def new_dinov2(num_registers: int) -> nn.Module:
    """A random DINOv2 of transformers, with or without registers."""
    from transformers import (
        Dinov2Config,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
    )

    sizes = {
        "hidden_size": DIM,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 14,
        "image_size": 56,
    }
    if num_registers:
        config = Dinov2WithRegistersConfig(num_register_tokens=num_registers, **sizes)
        return Dinov2WithRegistersModel(config)
    return Dinov2Model(Dinov2Config(**sizes))


def save_transformers(folder: Path, network: nn.Module) -> None:
    """Save as save_pretrained does, with weights that all matter."""
    with quiet():
        perturb(network).save_pretrained(folder)


def save_timm(folder: Path, name: str, **settings: object) -> None:
    """Save as timm's own export does, with weights that all matter."""
    import timm

    network = timm.create_model(name, embed_dim=DIM, depth=2, num_heads=2, **settings)
    timm.models.save_for_hf(perturb(network), folder, safe_serialization=True)


@contextlib.contextmanager
def quiet():
    """Without progress bars on the terminal."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


class PatchMeans(Teacher):
    """A teacher without files: the mean colour of each patch, normalised, and whether it was read.

    Args:
        patch_size: side of a patch in pixels.
    """

    def __init__(self, patch_size: int = 4):
        super().__init__(3, patch_size)
        self.num_reads = 0

    def read(self) -> nn.Module:
        self.num_reads += 1
        torch.rand(1)  # real networks draw weights before they read theirs
        return nn.Sequential(nn.AvgPool2d(self.patch_size), Rearrange("b c h w -> b (h w) c"))
