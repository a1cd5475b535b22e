"""Absolute positions of patches and pixels."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pixelhdm.errors import check_at_least

STD = 0.02


def sincos_positions(
    height: int, width: int, dim: int, device: torch.device
) -> Float[Tensor, "H W dim"]:
    """Fixed sinusoids of a grid's columns and rows, a half of the channels each; in each half first
    the sines, then the cosines of position * 10000^(-i / (dim / 4)) (arXiv:2010.11929's 2-D form
    in DiT, arXiv:2212.09748).
    """
    columns = waves(width, dim // 2, device)
    rows = waves(height, dim // 2, device)
    return torch.cat(
        [
            rearrange(columns, "w d -> 1 w d").expand(height, -1, -1),
            rearrange(rows, "h d -> h 1 d").expand(-1, width, -1),
        ],
        dim=-1,
    )


def waves(length: int, dim: int, device: torch.device) -> Float[Tensor, "length dim"]:
    """Sines and cosines of the positions 0, 1, … at dim / 2 frequencies, in float32."""
    index = torch.arange(dim // 2, device=device, dtype=torch.float32)
    frequency = 10_000.0 ** -(index / (dim // 2))
    angle = rearrange(torch.arange(length, device=device).float(), "n -> n 1") * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class LearnedPositions(nn.Module):
    """One learned vector for each patch of a square grid; other grids take them resized, bicubic.

    Args:
        side: patches along a side of the grid.
        dim: width.
    """

    def __init__(self, side: int, dim: int):
        super().__init__()
        check_at_least(1, side=side)
        self.table = nn.Parameter(torch.empty(side, side, dim))
        self.init_special()

    def init_special(self) -> None:
        """Start small; run after the generic initialisation."""
        nn.init.normal_(self.table, std=STD)

    def forward(self, height: int, width: int) -> Float[Tensor, "L D"]:
        """The vectors of a grid of this size, row by row."""
        table = self.table
        if table.shape[:2] != (height, width):
            planes = rearrange(table, "h w d -> 1 d h w")
            planes = F.interpolate(planes, (height, width), mode="bicubic", antialias=False)
            table = rearrange(planes, "1 d h w -> h w d")
        return rearrange(table, "h w d -> (h w) d")
