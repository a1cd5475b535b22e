"""MM-DiT on pixels, and MM-PixelDiT, PixelDiT's text-to-image network."""

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from pixelhdm.models.blocks import PixelModulation
from pixelhdm.models.dit_block import DualBlock, FinalLayer
from pixelhdm.models.network import GradCheckpoint
from pixelhdm.models.packing import joint_mask
from pixelhdm.models.patch_transformer import DiTFamily, Given, dit_block
from pixelhdm.models.pixel_path import PixelPath
from pixelhdm.models.rope import grid_rotation, line_rotation
from pixelhdm.models.routing import TokenRouting

THOUSAND = 1000.0  # steps of the noise's time in PixelDiT's text-to-image network


class MMDiT(DiTFamily):
    """DiT with two streams, of image and context tokens, that attend to each other, each with
    weights of its own (MM-DiT, arXiv:2403.03206, section 4).

    The context's tokens (a text's, or a class's registers) turn with their number, those of the
    image with row and column. Both are steered by time and pooled condition. Padding is masked. The
    last layer and all gates start at zero, so a new network predicts zero everywhere.

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
        noise_time: embed 1000 (1 - t) in the place of t, as PixelDiT's text-to-image weights ask.
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
        hidden_dim: int = 1536,
        patch_size: int = 16,
        depth: int = 14,
        num_heads: int = 24,
        mlp_ratio: float = 4.0,
        learned_grid: int | None = None,
        rope_extent: float | None = 16.0,
        noise_time: bool = False,
        feature_block: int = 6,
        grad_checkpoint: GradCheckpoint = "none",
        routing: TokenRouting | None = None,
        activation_offload: bool = False,
    ):
        super().__init__(
            hidden_dim,
            patch_size,
            depth,
            feature_block,
            grad_checkpoint,
            learned_grid,
            rope_extent,
            THOUSAND if noise_time else 1.0,
        )
        self.noise_time = noise_time
        self.blocks = nn.ModuleList(
            DualBlock(
                dit_block(hidden_dim, num_heads, mlp_ratio),
                dit_block(hidden_dim, num_heads, mlp_ratio),
                is_last=number == depth - 1,
            )
            for number in range(depth)
        )
        self.take_routing(routing, depth)
        self.activation_offload = activation_offload
        self.head_dim = self.blocks[0].image.attention.head_dim
        self.final = FinalLayer(hidden_dim, 3 * patch_size**2)
        self.reset_parameters()

    def embed_time(self, t: Float[Tensor, "B"]) -> Float[Tensor, "B D"]:
        return self.time_embedding(1 - t.float() if self.noise_time else t)

    def run_blocks(
        self, x: Float[Tensor, "B L D"], given: Given
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
        c, text = given.steering, given.context.tokens.to(x.dtype)
        by = grid_rotation(*given.grid, self.head_dim, x.device, self.ends)
        text_by = line_rotation(text.shape[1], self.head_dim, x.device)
        known = {"dtype": x.dtype, "head_dim": self.head_dim, "kernel": self.attention_kernel}
        mask_of = partial(joint_mask, given.context.mask, **known)
        detour, features = self.detour(given.context, x.shape[1]), x
        outside, inside = detour.sides(by, mask_of)
        for number, block in enumerate(self.blocks, start=1):
            again, x = self.grad_checkpoint == "all", detour.enter(number, x)
            by, mask = inside if detour.is_open else outside
            x, text = self.run_block(block, x, text, c, by, text_by, mask, again=again)
            x = detour.leave(number, x)
            if number == self.feature_block:
                features = detour.whole(x)
        return x, features


class MMPixelDiT(MMDiT):
    """PixelDiT with two streams, PixelDiT-T2I (arXiv:2511.20645, section 4): MM-DiT's image tokens
    after the last block and the time modulate every pixel of PixelPath, which never sees the text.

    The defaults are the published network, whose weights need noise_time: true.

    Args:
        hidden_dim: width D of the patch path.
        pixel_dim: channels d of a pixel in the pixel path; a multiple of 4.
        patch_size: side p of a patch in pixels.
        patch_depth: number N of patch blocks.
        pixel_depth: number M of pixel blocks.
        num_heads: attention heads of the patch path; must divide hidden_dim.
        pixel_attention_dim: width of the attention in the pixel path; empty takes hidden_dim.
        pixel_num_heads: its heads; must divide its width.
        mlp_ratio: width of the feed-forward layers over hidden_dim, before SwiGLU's two thirds.
        pixel_modulation: "full" (PixelDiT's) or "factored" (small) modulation of pixels.
        post_modulation: modulate the outputs of the pixel branches instead of their inputs;
            steadier, no gates.
        learned_grid: side, in patches, of the grid of learned absolute positions, which other grids
            take resized; empty: none.
        rope_extent: rotary position of the last row and of the last column, whatever the size;
            empty: rotary positions are the rows' and columns' numbers.
        noise_time: embed 1000 (1 - t) in the place of t, as PixelDiT's text-to-image weights ask.
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
        hidden_dim: int = 1536,
        pixel_dim: int = 16,
        patch_size: int = 16,
        patch_depth: int = 14,
        pixel_depth: int = 2,
        num_heads: int = 24,
        pixel_attention_dim: int | None = 1152,
        pixel_num_heads: int = 16,
        mlp_ratio: float = 4.0,
        pixel_modulation: PixelModulation = "full",
        post_modulation: bool = False,
        learned_grid: int | None = None,
        rope_extent: float | None = 16.0,
        noise_time: bool = False,
        feature_block: int = 6,
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
            noise_time,
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
            pixel_attention_dim or hidden_dim,
            pixel_num_heads,
            self.ends,
            pixel_modulation,
            post_modulation,
        )
        self.reset_parameters()
