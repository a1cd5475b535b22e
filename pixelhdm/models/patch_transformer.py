"""What DiT, PixelDiT, MM-DiT, JiT and their kin share: a way from patches to an image."""

from abc import abstractmethod
from functools import partial
from typing import NamedTuple

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from pixelhdm.errors import UserError, check_at_least
from pixelhdm.models.attention import plain_attention
from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.dit_block import DiTBlock, FinalLayer
from pixelhdm.models.layers import (
    SwiGLU,
    TimeEmbedding,
    init_special,
    init_torch,
    patchify,
    swiglu_dim,
    unpatchify,
)
from pixelhdm.models.linear import Linear
from pixelhdm.models.network import GradCheckpoint, Network, Prediction
from pixelhdm.models.pixel_path import PixelPath
from pixelhdm.models.positions import LearnedPositions

TIME_PERIOD, TIME_STD = 10.0, 0.02  # of PixelDiT's time embedding


class Given(NamedTuple):
    """What a forward pass works on.

    Attributes:
        patches: the noisy image.
        time: the time's embedding.
        context: the embedded condition.
        grid: rows and columns of patches.
    """

    patches: Float[Tensor, "B L Pc"]
    time: Float[Tensor, "B D"]
    context: Context
    grid: tuple[int, int]

    @property
    def steering(self) -> Float[Tensor, "B D"]:
        """What steers the blocks: time and pooled condition."""
        return self.time + self.context.pooled


class PatchTransformer(Network):
    """Base of networks that embed patches and time, run blocks, and make an image of the tokens.

    Args:
        hidden_dim: width D of the tokens.
        patch_size: side p of a patch in pixels.
        depth: number of blocks.
        feature_block: number, from 1, of the block whose image tokens a representation loss sees.
        grad_checkpoint: see Network.
    """

    patch_embedding: nn.Module
    time_embedding: nn.Module

    def __init__(
        self,
        hidden_dim: int,
        patch_size: int,
        depth: int,
        feature_block: int,
        grad_checkpoint: GradCheckpoint,
    ):
        super().__init__(hidden_dim, patch_size, grad_checkpoint)
        check_at_least(1, depth=depth)
        if not 1 <= feature_block <= depth:
            raise UserError(f"feature_block must lie in 1 … {depth}, got {feature_block}.")
        self.feature_block = feature_block

    def forward(
        self, z: Float[Tensor, "B H W 3"], t: Float[Tensor, "B"], context: Context
    ) -> Prediction:
        height, width = z.shape[1:3]
        self.check_size(height, width)
        patches = patchify(z, self.patch_size).to(self.last_layer.weight.dtype)
        grid = height // self.patch_size, width // self.patch_size
        given = Given(patches, self.embed_time(t), context, grid)
        tokens, features = self.run_blocks(self.embed(given), given)
        out = self.head(tokens, given)
        kept = self.went_through(self.feature_block, context.route, patches.shape[1])
        return Prediction(unpatchify(out, height, width, self.patch_size), features, kept)

    def embed_time(self, t: Float[Tensor, "B"]) -> Float[Tensor, "B D"]:
        """The time's embedding."""
        return self.time_embedding(t)

    def embed(self, given: Given) -> Float[Tensor, "B L D"]:
        """The first tokens."""
        return self.patch_embedding(given.patches)

    @abstractmethod
    def run_blocks(
        self, x: Float[Tensor, "B L D"], given: Given
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
        """Image tokens after the last block and after the feature block."""

    @abstractmethod
    def head(self, tokens: Float[Tensor, "B L D"], given: Given) -> Float[Tensor, "B L Pc"]:
        """The output as patches."""

    def reset_parameters(self) -> None:
        """Initialise: as PyTorch does, then the layers' special starts, then a zero output."""
        init_torch(self)
        if isinstance(self.patch_embedding, nn.Linear):
            nn.init.xavier_uniform_(self.patch_embedding.weight)
            nn.init.zeros_(self.patch_embedding.bias)
        init_special(self)
        nn.init.zeros_(self.last_layer.weight)
        nn.init.zeros_(self.last_layer.bias)


class DiTFamily(PatchTransformer):
    """Base of DiT, PixelDiT, MM-DiT and MM-PixelDiT: linear patch embedding, learned or no absolute
    positions, and at the end a layer on the patches or a path of pixels.

    Args:
        hidden_dim: width D of the tokens.
        patch_size: side p of a patch in pixels.
        depth: number of blocks.
        feature_block: number, from 1, of the block whose image tokens a representation loss sees.
        grad_checkpoint: see Network.
        learned_grid: side, in patches, of the grid of learned absolute positions; empty: none.
        rope_extent: rotary position of the last row and of the last column, whatever the size;
            empty: rotary positions are the rows' and columns' numbers.
        time_scale: factor of the time before its sinusoids.

    Attributes:
        final: layer that makes patches of tokens; the path of pixels takes its place.
        pixel_path: the path of pixels.
    """

    def __init__(
        self,
        hidden_dim: int,
        patch_size: int,
        depth: int,
        feature_block: int,
        grad_checkpoint: GradCheckpoint,
        learned_grid: int | None,
        rope_extent: float | None,
        time_scale: float = 1.0,
    ):
        super().__init__(hidden_dim, patch_size, depth, feature_block, grad_checkpoint)
        if rope_extent is not None and not rope_extent > 0:
            raise UserError(f"rope_extent must be above 0 or empty, got {rope_extent}.")
        self.ends = None if rope_extent is None else (rope_extent, rope_extent)
        self.patch_embedding = Linear(3 * patch_size**2, hidden_dim)
        self.time_embedding = TimeEmbedding(
            hidden_dim, scale=time_scale, max_period=TIME_PERIOD, cosines_first=True, std=TIME_STD
        )
        self.positions = None
        if learned_grid is not None:
            self.positions = LearnedPositions(learned_grid, hidden_dim)
        self.final: FinalLayer | None = None
        self.pixel_path: PixelPath | None = None

    @property
    def last_layer(self) -> nn.Linear:
        return self.final.linear if self.pixel_path is None else self.pixel_path.final

    def embed(self, given: Given) -> Float[Tensor, "B L D"]:
        tokens = super().embed(given)
        if self.positions is None:
            return tokens
        return tokens + self.positions(*given.grid).to(tokens.dtype)

    def head(self, tokens: Float[Tensor, "B L D"], given: Given) -> Float[Tensor, "B L Pc"]:
        if self.pixel_path is None:
            return self.final(tokens, given.steering)
        s = tokens + rearrange(given.time, "b d -> b 1 d")
        run = partial(self.run_block, again=self.grad_checkpoint != "none")
        return self.pixel_path(given.patches, s, given.grid, run)


def dit_block(
    dim: int, num_heads: int, mlp_ratio: float, bias: bool = False, dropout: float = 0.0
) -> DiTBlock:
    """A DiTBlock with plain attention and SwiGLU.

    Args:
        dim: width of the tokens.
        num_heads: attention heads; must divide dim.
        mlp_ratio: see swiglu_dim.
        bias: whether queries, keys, values and the SwiGLU have biases.
        dropout: probability of dropping a number of either layer in training.
    """
    if not mlp_ratio > 0:
        raise UserError(f"mlp_ratio must be above 0, got {mlp_ratio}.")
    mlp = SwiGLU(dim, swiglu_dim(dim, mlp_ratio), bias, dropout)
    return DiTBlock(dim, plain_attention(dim, num_heads, bias, dropout), mlp)
