"""PixelDiT's path of pixels: the noisy image again, pixel by pixel, steered by its patches."""

from collections.abc import Callable
from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from pixelhdm.errors import UserError, check_at_least, check_one_of
from pixelhdm.models.attention import NORM_EPS, plain_attention
from pixelhdm.models.blocks import PixelBlock, PixelModulation, TokenCompaction
from pixelhdm.models.layers import GeluMLP, patchify
from pixelhdm.models.linear import Linear
from pixelhdm.models.norm import RMSNorm
from pixelhdm.models.positions import sincos_positions
from pixelhdm.models.rope import grid_rotation


class PixelPath(nn.Module):
    """Linear(3 -> d) and fixed positions of every pixel, PixelBlocks, RMSNorm, Linear(d -> 3)
    (PixelDiT, arXiv:2511.20645, section 3).

    Args:
        dim: width D of the condition.
        pixel_dim: channels d of a pixel; a multiple of 4.
        patch_size: side p of a patch in pixels.
        depth: number of blocks.
        attention_dim: width of the attention over patches.
        num_heads: its heads.
        ends: rotary position of the last row and column, see grid_rotation.
        modulation: "full" (PixelDiT's) or "factored", see PixelModulator.
        post_modulation: modulate the branches' outputs, see PixelBlock.
    """

    def __init__(
        self,
        dim: int,
        pixel_dim: int,
        patch_size: int,
        depth: int,
        attention_dim: int,
        num_heads: int,
        ends: tuple[float, float] | None,
        modulation: PixelModulation,
        post_modulation: bool,
    ):
        super().__init__()
        check_at_least(1, pixel_dim=pixel_dim, pixel_depth=depth)
        if pixel_dim % 4:
            raise UserError(f"pixel_dim must be a multiple of 4, got {pixel_dim}.")
        check_one_of(PixelModulation, pixel_modulation=modulation)
        self.patch_size, self.ends = patch_size, ends
        area = patch_size**2
        self.embedding = Linear(3, pixel_dim)
        self.blocks = nn.ModuleList(
            PixelBlock(
                dim,
                pixel_dim,
                area,
                TokenCompaction(
                    pixel_dim,
                    area,
                    attention_dim,
                    plain_attention(attention_dim, num_heads),
                    expand_gain=None,
                    normed=False,
                ),
                GeluMLP(pixel_dim, 4 * pixel_dim),
                modulation,
                post_modulation,
            )
            for _ in range(depth)
        )
        self.head_dim = self.blocks[0].compaction.attention.head_dim
        self.norm = RMSNorm(pixel_dim, eps=NORM_EPS)
        self.final = Linear(pixel_dim, 3)

    def forward(
        self,
        patches: Float[Tensor, "B L Pc"],
        s: Float[Tensor, "B L D"],
        grid: tuple[int, int],
        run_block: Callable[..., Any],
    ) -> Float[Tensor, "B L Pc"]:
        """Output of the pixels, as patches.

        Args:
            patches: the noisy image.
            s: condition of each patch.
            grid: rows and columns of patches.
            run_block: runs a block on these inputs.
        """
        pixels = rearrange(patches, "b l (p c) -> b l p c", c=3)
        x = self.embedding(pixels)
        x = x + self.positions(grid, x.shape[-1], x).to(x.dtype)
        by = grid_rotation(*grid, self.head_dim, x.device, self.ends)
        for block in self.blocks:
            x = run_block(block, x, s, by)
        return rearrange(self.final(self.norm(x)), "b l p c -> b l (p c)")

    def positions(self, grid: tuple[int, int], dim: int, like: Tensor) -> Float[Tensor, "1 L P d"]:
        """Fixed positions of all pixels in the whole image, cut like it into patches."""
        height, width = (self.patch_size * side for side in grid)
        image = rearrange(sincos_positions(height, width, dim, like.device), "h w d -> 1 h w d")
        return rearrange(patchify(image, self.patch_size), "b l (p d) -> b l p d", d=dim)
