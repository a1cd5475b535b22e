"""Between images in [-1, 1] and pixels of 8 bits."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def to_pixels(image: Float[Tensor, "B H W 3"]) -> UInt8[Tensor, "B H W 3"]:
    """Pixels of images in [-1, 1], rounded."""
    return ((image + 1) * 127.5).round().to(torch.uint8)


def from_pixels(pixels: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B H W 3"]:
    """Images in [-1, 1], float64, whose pixels are just these."""
    return pixels.double() / 127.5 - 1
