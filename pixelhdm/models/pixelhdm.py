"""PixelHDM: a transformer over patches whose tokens steer a thin transformer over pixels."""

from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from pixelhdm.errors import UserError, check_at_least, check_one_of
from pixelhdm.models.attention import NORM_EPS, GatedAttention
from pixelhdm.models.blocks import PatchBlock, PixelBlock, PixelModulation, TokenCompaction
from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.layers import (
    SwiGLU,
    TimeEmbedding,
    init_linear,
    init_special,
    patchify,
    unpatchify,
)
from pixelhdm.models.linear import Linear
from pixelhdm.models.network import GradCheckpoint, Network, Prediction
from pixelhdm.models.norm import RMSNorm
from pixelhdm.models.packing import joint_mask
from pixelhdm.models.rope import check_rope_dims, image_positions, rotation, token_positions
from pixelhdm.models.routing import TokenRouting


class PixelHDM(Network):
    """PixelHDM, a dual-level pixel diffusion transformer.

    Patch path: bottleneck embedding of p x p patches, then `patch_depth` blocks on [context; image]
    with mRoPE. Pixel path: the same noisy image, pixel by pixel, through `pixel_depth` blocks
    steered by s = image tokens + time + pooled condition. Dual-level design after PixelDiT,
    arXiv:2511.20645. The last layer and all gates start at zero, so a new network predicts zero
    everywhere.

    Args:
        hidden_dim: width D of the patch path.
        pixel_dim: channels d of a pixel in the pixel path.
        patch_size: side p of a patch in pixels.
        patch_depth: number N of patch blocks.
        pixel_depth: number M of pixel blocks; 0 makes a plain patch transformer with a linear head.
        num_heads: query heads.
        num_kv_heads: key and value heads; must divide num_heads.
        head_dim: channels per head.
        rope_dims: channels of a head that turn with the context position, the row and the column.
        rope_theta: base of the rotary frequencies.
        mlp_ratio: hidden width of the feed-forward layers over their width.
        bottleneck_dim: width of the patch embedding's bottleneck.
        pixel_modulation: "factored" (small) or "full" (PixelDiT's) modulation of pixels.
        post_modulation: modulate the outputs of the pixel branches instead of their inputs;
            steadier, no gates.
        feature_block: number, from 1, of the patch block whose image tokens a representation loss
            sees.
        grad_checkpoint: blocks whose activations are computed again in the backward pass instead
            of kept: "none", "pixel" (the pixel path), "selective" (both paths, but long matrix
            products and attention are kept: most memory for least work) or "all". Losses stay the
            same to the bit.
        routing: which tokens go around the patch blocks in the middle in training; empty: none.
        activation_offload: move what is kept of the blocks to CPU memory until the backward pass;
            nothing changes on a CPU.
    """

    def __init__(
        self,
        hidden_dim: int = 1024,
        pixel_dim: int = 16,
        patch_size: int = 16,
        patch_depth: int = 16,
        pixel_depth: int = 4,
        num_heads: int = 16,
        num_kv_heads: int = 4,
        head_dim: int = 64,
        rope_dims: tuple[int, int, int] = (16, 24, 24),
        rope_theta: float = 10_000.0,
        mlp_ratio: float = 3.0,
        bottleneck_dim: int = 256,
        pixel_modulation: PixelModulation = "factored",
        post_modulation: bool = False,
        feature_block: int = 8,
        grad_checkpoint: GradCheckpoint = "none",
        routing: TokenRouting | None = None,
        activation_offload: bool = False,
    ):
        super().__init__(hidden_dim, patch_size, grad_checkpoint)
        check_at_least(1, pixel_dim=pixel_dim, num_heads=num_heads, head_dim=head_dim)
        check_at_least(1, bottleneck_dim=bottleneck_dim)
        check_at_least(0, pixel_depth=pixel_depth)
        check_one_of(PixelModulation, pixel_modulation=pixel_modulation)
        if mlp_ratio <= 0 or rope_theta <= 0:
            raise UserError(
                f"mlp_ratio and rope_theta must be above 0, got {mlp_ratio} and {rope_theta}."
            )
        check_rope_dims(rope_dims, head_dim)
        if not 1 <= feature_block <= patch_depth:
            raise UserError(
                f"feature_block must lie in 1 … patch_depth={patch_depth}, got {feature_block}."
            )
        self.take_routing(routing, patch_depth)
        self.activation_offload = activation_offload
        self.rope_dims, self.rope_theta, self.feature_block = rope_dims, rope_theta, feature_block
        area = patch_size**2

        self.patch_embedding = nn.Sequential(
            Linear(3 * area, bottleneck_dim, bias=False),
            nn.SiLU(),
            Linear(bottleneck_dim, hidden_dim, bias=False),
        )
        self.time_embedding = TimeEmbedding(hidden_dim)
        self.patch_blocks = nn.ModuleList(
            PatchBlock(
                hidden_dim, GatedAttention(hidden_dim, num_heads, num_kv_heads, head_dim), mlp_ratio
            )
            for _ in range(patch_depth)
        )
        self.pixel_embedding = Linear(3, pixel_dim) if pixel_depth else None
        self.pixel_blocks = nn.ModuleList(
            PixelBlock(
                hidden_dim,
                pixel_dim,
                area,
                TokenCompaction(
                    pixel_dim,
                    area,
                    hidden_dim,
                    GatedAttention(hidden_dim, num_heads, num_kv_heads, head_dim),
                ),
                SwiGLU(pixel_dim, int(mlp_ratio * pixel_dim)),
                pixel_modulation,
                post_modulation,
            )
            for _ in range(pixel_depth)
        )
        self.final_norm = RMSNorm(pixel_dim if pixel_depth else hidden_dim, eps=NORM_EPS)
        self.final = Linear(pixel_dim, 3) if pixel_depth else Linear(hidden_dim, 3 * area)
        self.reset_parameters()

    @property
    def last_layer(self) -> nn.Linear:
        return self.final

    def reset_parameters(self) -> None:
        """Initialise: Xavier everywhere, then the layers' special starts, then a zero output."""
        init_linear(self)
        init_special(self)
        nn.init.zeros_(self.final.weight)

    def forward(
        self, z: Float[Tensor, "B H W 3"], t: Float[Tensor, "B"], context: Context
    ) -> Prediction:
        height, width = z.shape[1:3]
        self.check_size(height, width)
        patches = patchify(z, self.patch_size).to(self.final.weight.dtype)
        c = self.time_embedding(t) + context.pooled
        tokens, features = self.run_patch_blocks(patches, c, context, height, width)
        if self.pixel_embedding is None:
            out = self.final(self.final_norm(tokens))
        else:
            out = self.run_pixel_blocks(
                patches, tokens + rearrange(c, "b d -> b 1 d"), height, width
            )
        kept = self.went_through(self.feature_block, context.route, patches.shape[1])
        return Prediction(unpatchify(out, height, width, self.patch_size), features, kept)

    def grid_positions(self, height: int, width: int, offset: Tensor) -> Tensor:
        """Positions of the image's patches for mRoPE (B L 3)."""
        return image_positions(height // self.patch_size, width // self.patch_size, offset)

    def run_patch_blocks(
        self, patches: Tensor, c: Tensor, context: Context, height: int, width: int
    ) -> tuple[Tensor, Tensor]:
        """Image tokens after the last block and after the feature block, both B L D."""
        length = context.tokens.shape[1]
        image = self.patch_embedding(patches)
        x = torch.cat([context.tokens.to(image.dtype), image], dim=1)
        known = {"dtype": x.dtype, "head_dim": sum(self.rope_dims), "kernel": self.attention_kernel}
        mask_of = partial(joint_mask, context.mask, **known)
        text_at = token_positions(length, c.device).expand(len(c), -1, -1)
        positions = torch.cat(
            [text_at, self.grid_positions(height, width, context.num_valid)], dim=1
        )
        by = rotation(positions, self.rope_dims, self.rope_theta)
        detour, features = self.detour(context, image.shape[1]), x
        outside, inside = detour.sides(by, mask_of)
        for number, block in enumerate(self.patch_blocks, start=1):
            x = detour.enter(number, x)
            by, mask = inside if detour.is_open else outside
            x = self.run_block(block, x, c, by, mask, again=self.grad_checkpoint == "all")
            x = detour.leave(number, x)
            if number == self.feature_block:
                features = detour.whole(x)
        return x[:, length:], features[:, length:]

    def run_pixel_blocks(self, patches: Tensor, s: Tensor, height: int, width: int) -> Tensor:
        """Output of the pixel path as patches (B L P*3)."""
        positions = self.grid_positions(
            height, width, torch.zeros(1, dtype=torch.long, device=s.device)
        )
        by = rotation(positions, self.rope_dims, self.rope_theta)
        x = self.pixel_embedding(rearrange(patches, "b l (p c) -> b l p c", c=3))
        for block in self.pixel_blocks:
            x = self.run_block(block, x, s, by, again=self.grad_checkpoint != "none")
        return rearrange(self.final(self.final_norm(x)), "b l p c -> b l (p c)")
