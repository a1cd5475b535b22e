"""Random convolutions of VGG16, saved as torchvision's weights are."""

import math
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models.vgg import cfgs


def vgg_weights() -> dict[str, Tensor]:
    """Random weights that keep the features' size through all layers."""
    generator, (width, weights) = torch.Generator().manual_seed(0), (3, {})
    widths = iter(cfgs["D"])
    for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28):
        given, width = width, next(number for number in widths if number != "M")
        weight = torch.randn(width, given, 3, 3, generator=generator)
        weights[f"features.{i}.weight"] = weight * math.sqrt(2 / (9 * given))
        weights[f"features.{i}.bias"] = 0.1 * torch.randn(width, generator=generator)
    return weights


def save_vgg(path: Path) -> Path:
    """Write them beside a classifier, which LPIPS does not read."""
    torch.save(vgg_weights() | {"classifier.0.weight": torch.zeros(2, 2)}, path)
    return path
