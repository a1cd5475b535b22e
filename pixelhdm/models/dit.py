"""DiT on pixels, and PixelDiT: DiT whose tokens steer a path of pixels."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pixelhdm.models.blocks import PixelModulation
from pixelhdm.models.dit_block import FinalLayer
from pixelhdm.models.network import GradCheckpoint
from pixelhdm.models.packing import joint_mask
from pixelhdm.models.patch_transformer import DiTFamily, Given, dit_block
from pixelhdm.models.pixel_path import PixelPath
from pixelhdm.models.rope import grid_rotation
from pixelhdm.models.routing import TokenRouting


class DiT(DiTFamily):
    """Diffusion transformer on patches of pixels (DiT, arXiv:2212.09748), with the parts of
    PixelDiT's and DeCo's plain baseline: RMSNorm, SwiGLU, QK-norm and 2-D rotary positions.

    Blocks are steered by time and pooled condition. Context tokens, where there are some, join the
    sequence before the image's and do not turn: registers, one set a class. The last layer and all
    gates start at zero, so a new network predicts zero everywhere.

    Args:
        hidden_dim: width D of the tokens.
        patch_size: side p of a patch in pixels.
        depth: number of blocks.
        num_heads: attention heads; must divide hidden_dim.
        mlp_ratio: width of the feed-forward layers over hidden_dim, before SwiGLU's two thirds.
        learned_grid: side, in patches, of the grid of learned absolute positions, which other grids
            take resized; empty: none.
        rope_extent: rotary position of the last row and of the last column, whatever the size;
            empty: rotary positions are the rows' and columns' numbers.
        feature_block: number, from 1, of the block whose image tokens a representation loss sees.
        grad_checkpoint: "all": compute the blocks' activations again in the backward pass instead
            of keeping them; "selective": all but long matrix products and attention; "none",
            "pixel": keep them.
        routing: which tokens go around the blocks in the middle in training; empty: none.
        activation_offload: move what is kept of the blocks to CPU memory until the backward pass;
            nothing changes on a CPU.
    """

    def __init__(
        self,
        hidden_dim: int = 1152,
        patch_size: int = 16,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        learned_grid: int | None = None,
        rope_extent: float | None = 16.0,
        feature_block: int = 8,
        grad_checkpoint: GradCheckpoint = "none",
        routing: TokenRouting | None = None,
        activation_offload: bool = False,
    ):
        super().__init__(
            hidden_dim, patch_size, depth, feature_block, grad_checkpoint, learned_grid, rope_extent
        )
        self.blocks = nn.ModuleList(
            dit_block(hidden_dim, num_heads, mlp_ratio) for _ in range(depth)
        )
        self.take_routing(routing, depth)
        self.activation_offload = activation_offload
        self.head_dim = self.blocks[0].attention.head_dim
        self.final = FinalLayer(hidden_dim, 3 * patch_size**2)
        self.reset_parameters()

    def run_blocks(
        self, x: Float[Tensor, "B L D"], given: Given
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
        c, context = given.steering, given.context
        length = context.tokens.shape[1]
        by = grid_rotation(*given.grid, self.head_dim, x.device, self.ends, num_context=length)
        known = {"dtype": x.dtype, "head_dim": self.head_dim, "kernel": self.attention_kernel}
        mask_of = partial(joint_mask, context.mask, **known)
        detour = self.detour(context, x.shape[1])
        outside, inside = detour.sides(by, mask_of)
        x = features = torch.cat([context.tokens.to(x.dtype), x], dim=1)
        for number, block in enumerate(self.blocks, start=1):
            x = detour.enter(number, x)
            by, mask = inside if detour.is_open else outside
            x = self.run_block(block, x, c, by, mask, again=self.grad_checkpoint == "all")
            x = detour.leave(number, x)
            if number == self.feature_block:
                features = detour.whole(x)
        return x[:, length:], features[:, length:]


class PixelDiT(DiT):
    """Dual-level pixel diffusion transformer (PixelDiT, arXiv:2511.20645), class-conditional.

    DiT's tokens after the last block and the time, SiLU(tokens + time), modulate every pixel of
    PixelPath. The defaults are PixelDiT-XL. Context tokens, which the published networks do not
    have, work as in DiT.

    Args:
        hidden_dim: width D of the patch path.
        pixel_dim: channels d of a pixel in the pixel path; a multiple of 4.
        patch_size: side p of a patch in pixels.
        patch_depth: number N of patch blocks.
        pixel_depth: number M of pixel blocks.
        num_heads: attention heads of both paths; must divide hidden_dim.
        mlp_ratio: width of the feed-forward layers over hidden_dim, before SwiGLU's two thirds.
        pixel_modulation: "full" (PixelDiT's) or "factored" (small) modulation of pixels.
        post_modulation: modulate the outputs of the pixel branches instead of their inputs;
            steadier, no gates (pull request 8 of PixelDiT's repository).
        learned_grid: side, in patches, of the grid of learned absolute positions, which other grids
            take resized; empty: none.
        rope_extent: rotary position of the last row and of the last column, whatever the size;
            empty: rotary positions are the rows' and columns' numbers.
        feature_block: number, from 1, of the patch block whose image tokens a representation loss
            sees.
        grad_checkpoint: blocks whose activations are computed again in the backward pass instead
            of kept: "none", "pixel" (the pixel path), "selective" (both paths, but long matrix
            products and attention are kept) or "all".
        routing: which tokens go around the patch blocks in the middle in training; empty: none.
        activation_offload: move what is kept of the blocks to CPU memory until the backward pass;
            nothing changes on a CPU.
    """

    def __init__(
        self,
        hidden_dim: int = 1152,
        pixel_dim: int = 16,
        patch_size: int = 16,
        patch_depth: int = 26,
        pixel_depth: int = 4,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        pixel_modulation: PixelModulation = "full",
        post_modulation: bool = False,
        learned_grid: int | None = None,
        rope_extent: float | None = 16.0,
        feature_block: int = 8,
        grad_checkpoint: GradCheckpoint = "none",
        routing: TokenRouting | None = None,
        activation_offload: bool = False,
    ):
        super().__init__(
            hidden_dim,
            patch_size,
            patch_depth,
            num_heads,
            mlp_ratio,
            learned_grid,
            rope_extent,
            feature_block,
            grad_checkpoint,
            routing,
            activation_offload,
        )
        self.final = None  # the path of pixels takes its place
        self.pixel_path = PixelPath(
            hidden_dim,
            pixel_dim,
            patch_size,
            pixel_depth,
            hidden_dim,
            num_heads,
            self.ends,
            pixel_modulation,
            post_modulation,
        )
        self.reset_parameters()
