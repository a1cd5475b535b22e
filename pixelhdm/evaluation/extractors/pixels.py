"""Images as pretrained networks for photographs want them."""

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from pixelhdm.models.encoders.resized import resized

Colour = tuple[float, float, float]


def like_pil(pixels: UInt8[Tensor, "B H W 3"], size: int) -> Float[Tensor, "B size size 3"]:
    """Images of 0 … 255 in a square, as PIL's bicubic resize gives them.

    Like PIL's it goes along the rows, then along the columns, and leaves whole numbers each time.
    """
    rows = whole(resized(pixels.float(), pixels.shape[1], size, "bicubic"))
    return whole(resized(rows, size, size, "bicubic"))


def whole(pixels: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The nearest whole numbers of 0 … 255."""
    return pixels.clamp(0, 255).round()


def normalised(
    pixels: Float[Tensor, "B H W 3"], mean: Colour, std: Colour
) -> Float[Tensor, "B 3 H W"]:
    """Images of 0 … 255 as (x / 255 - mean) / std, for a network of other layout."""
    means, stds = (torch.tensor(x, device=pixels.device) for x in (mean, std))
    return rearrange((pixels / 255 - means) / stds, "b h w c -> b c h w")


def centre_square(pixels: UInt8[Tensor, "B H W 3"]) -> UInt8[Tensor, "B s s 3"]:
    """The largest square from the middle of each image."""
    height, width = pixels.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[:, top : top + side, left : left + side]
