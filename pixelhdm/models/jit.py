"""JiT, and what its text-to-image variant shares with it."""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from pixelhdm.errors import UserError, check_at_least
from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.dit_block import FinalLayer
from pixelhdm.models.layers import (
    SwiGLU,
    TimeEmbedding,
    init_linear,
    init_special,
    zero,
)
from pixelhdm.models.linear import Linear
from pixelhdm.models.network import GradCheckpoint
from pixelhdm.models.patch_transformer import Given, PatchTransformer, dit_block
from pixelhdm.models.positions import sincos_positions
from pixelhdm.models.rope import grid_rotation
from pixelhdm.models.routing import TokenRouting

STD = 0.02


class FixedPatches(PatchTransformer):
    """Base of the JiT family: patches through a bottleneck, with fixed absolute positions; all
    matrices start by Xavier's rule.

    Args:
        hidden_dim: width D of the tokens.
        patch_size: side p of a patch in pixels.
        depth: number of blocks.
        bottleneck_dim: width of the patch embedding's bottleneck; empty: none.
        time_period: longest period of the time's sinusoids over 2 pi.
        feature_block: number, from 1, of the block whose image tokens a representation loss sees.
        grad_checkpoint: see Network.
    """

    def __init__(
        self,
        hidden_dim: int,
        patch_size: int,
        depth: int,
        bottleneck_dim: int | None,
        time_period: float,
        feature_block: int,
        grad_checkpoint: GradCheckpoint,
    ):
        super().__init__(hidden_dim, patch_size, depth, feature_block, grad_checkpoint)
        numbers = 3 * patch_size**2
        if bottleneck_dim is None:
            self.patch_embedding = Linear(numbers, hidden_dim)
        else:
            check_at_least(1, bottleneck_dim=bottleneck_dim)
            self.patch_embedding = nn.Sequential(
                Linear(numbers, bottleneck_dim, bias=False), Linear(bottleneck_dim, hidden_dim)
            )
        self.time_embedding = TimeEmbedding(
            hidden_dim, scale=1.0, max_period=time_period, cosines_first=True, std=STD
        )

    def embed(self, given: Given) -> Float[Tensor, "B L D"]:
        tokens = super().embed(given)
        places = sincos_positions(*given.grid, self.hidden_dim, tokens.device)
        return tokens + rearrange(places, "h w d -> (h w) d").to(tokens.dtype)

    def reset_parameters(self) -> None:
        """Initialise: Xavier everywhere, then the layers' special starts, then a zero output.

        As the first two layers of a SwiGLU are one matrix in JiT, its bound is theirs.
        """
        init_linear(self)
        for layer in self.modules():
            if isinstance(layer, SwiGLU):
                outputs, inputs = layer.gate.weight.shape
                bound = math.sqrt(6 / (inputs + 2 * outputs))
                for half in (layer.gate, layer.up):
                    nn.init.uniform_(half.weight, -bound, bound)
        init_special(self)
        zero(self.last_layer)


class JiT(FixedPatches):
    """Just image transformer (JiT, arXiv:2511.13720), a plain transformer on large patches.

    From block `in_context_start` on, counted from 0, `in_context_len` copies of the pooled class,
    each with a learned position, stand before the image's tokens; they do not turn. Blocks are
    steered by time and class. Meant to predict x. The defaults are JiT-L/16, which is PixelGen-L
    too; PixelGen-XL has no bottleneck.

    Args:
        hidden_dim: width D of the tokens.
        patch_size: side p of a patch in pixels.
        depth: number of blocks.
        num_heads: attention heads; must divide hidden_dim.
        bottleneck_dim: width of the patch embedding's bottleneck; empty: none.
        mlp_ratio: width of the feed-forward layers over hidden_dim, before SwiGLU's two thirds.
        in_context_len: tokens of the class in the sequence; 0: none.
        in_context_start: number, from 0, of the first block that sees them.
        dropout: probability of dropping a number of attention and feed-forward layers in training,
            in the middle half of the blocks.
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
        hidden_dim: int = 1024,
        patch_size: int = 16,
        depth: int = 24,
        num_heads: int = 16,
        bottleneck_dim: int | None = 128,
        mlp_ratio: float = 4.0,
        in_context_len: int = 32,
        in_context_start: int = 8,
        dropout: float = 0.0,
        feature_block: int = 8,
        grad_checkpoint: GradCheckpoint = "none",
        routing: TokenRouting | None = None,
        activation_offload: bool = False,
    ):
        super().__init__(
            hidden_dim, patch_size, depth, bottleneck_dim, 10_000.0, feature_block, grad_checkpoint
        )
        check_at_least(0, in_context_len=in_context_len)
        if not 0 <= in_context_start < depth:
            raise UserError(
                f"in_context_start must lie in 0 … {depth - 1}, below depth={depth}, got "
                f"{in_context_start}."
            )
        if not 0 <= dropout < 1:
            raise UserError(f"dropout must be at least 0 and below 1, got {dropout}.")
        self.in_context_start = in_context_start
        self.in_context_position = nn.Parameter(torch.empty(in_context_len, hidden_dim))
        middle = range(depth // 4, depth // 4 * 3)
        self.blocks = nn.ModuleList(
            dit_block(hidden_dim, num_heads, mlp_ratio, True, dropout if number in middle else 0.0)
            for number in range(depth)
        )
        self.take_routing(routing, depth)
        self.activation_offload = activation_offload
        self.head_dim = self.blocks[0].attention.head_dim
        self.final = FinalLayer(hidden_dim, 3 * patch_size**2)
        self.reset_parameters()

    @property
    def last_layer(self) -> nn.Linear:
        return self.final.linear

    def init_special(self) -> None:
        """Start the positions of the class small; run after the generic initialisation."""
        nn.init.normal_(self.in_context_position, std=STD)

    def run_blocks(
        self, x: Float[Tensor, "B L D"], given: Given
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
        self.check_context(given.context)
        c, length, num_patches = given.steering, len(self.in_context_position), x.shape[1]
        whole = grid_rotation(*given.grid, self.head_dim, x.device, num_context=length)
        detour, features, num_before = self.detour(given.context, num_patches), x, 0
        outside, inside = detour.sides(whole, lambda num: None)
        for number, block in enumerate(self.blocks):
            x = detour.enter(number + 1, x)
            if number == self.in_context_start and length:
                tokens = rearrange(given.context.pooled, "b d -> b 1 d") + self.in_context_position
                # Under autocast they are float32, and so is all that follows: twice the digits.
                x, num_before = torch.cat([tokens, x], dim=1), length
            turns, _ = inside if detour.is_open else outside
            by = tuple(part[:, length - num_before :] for part in turns)
            x = self.run_block(block, x, c, by, again=self.grad_checkpoint == "all")
            x = detour.leave(number + 1, x)
            if number + 1 == self.feature_block:
                features = detour.whole(x)[:, -num_patches:]
        return x[:, -num_patches:], features

    def check_context(self, context: Context) -> None:
        """Raise where the condition has tokens of its own."""
        if context.tokens.shape[1]:
            raise UserError(
                f"JiT makes its tokens of the pooled class, got {context.tokens.shape[1]} context "
                "tokens. Set model.conditioner.num_tokens to 0, or use TextJiT for texts."
            )

    def head(self, tokens: Float[Tensor, "B L D"], given: Given) -> Float[Tensor, "B L Pc"]:
        return self.final(tokens, given.steering)
