"""PixelGen's text-to-image network: JiT beside a text."""

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pixelhdm.errors import check_at_least
from pixelhdm.models.attention import NORM_EPS, ContextAttention
from pixelhdm.models.dit_block import ContextBlock
from pixelhdm.models.jit import FixedPatches
from pixelhdm.models.layers import SwiGLU, swiglu_dim
from pixelhdm.models.linear import Linear
from pixelhdm.models.network import GradCheckpoint
from pixelhdm.models.packing import joint_mask, packed
from pixelhdm.models.patch_transformer import TIME_PERIOD, Given, dit_block
from pixelhdm.models.rope import grid_rotation
from pixelhdm.models.routing import TokenRouting


class TextJiT(FixedPatches):
    """PixelGen's text-to-image network (arXiv:2602.02493; class JiT_T2I of its repository): JiT
    whose image tokens also attend to a text that a few blocks of its own have refined.

    All blocks are steered by time and pooled condition. Padding is masked. Meant to predict x. The
    defaults are PixelGen-XXL.

    Args:
        hidden_dim: width D of the tokens.
        patch_size: side p of a patch in pixels.
        depth: number of image blocks.
        text_depth: number of text blocks.
        num_heads: attention heads; must divide hidden_dim.
        bottleneck_dim: width of the patch embedding's bottleneck; empty: none.
        mlp_ratio: width of the SwiGLU layers over hidden_dim, without the two thirds.
        feature_block: number, from 1, of the image block whose tokens a representation loss sees.
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
        depth: int = 16,
        text_depth: int = 4,
        num_heads: int = 24,
        bottleneck_dim: int | None = 256,
        mlp_ratio: float = 4.0,
        feature_block: int = 8,
        grad_checkpoint: GradCheckpoint = "none",
        routing: TokenRouting | None = None,
        activation_offload: bool = False,
    ):
        super().__init__(
            hidden_dim,
            patch_size,
            depth,
            bottleneck_dim,
            TIME_PERIOD,
            feature_block,
            grad_checkpoint,
        )
        check_at_least(0, text_depth=text_depth)
        self.text_blocks = nn.ModuleList(
            dit_block(hidden_dim, num_heads, 1.5 * mlp_ratio) for _ in range(text_depth)
        )
        self.blocks = nn.ModuleList(
            ContextBlock(
                hidden_dim,
                ContextAttention(hidden_dim, num_heads),
                SwiGLU(hidden_dim, swiglu_dim(hidden_dim, 1.5 * mlp_ratio)),
            )
            for _ in range(depth)
        )
        self.take_routing(routing, depth)
        self.activation_offload = activation_offload
        self.head_dim = self.blocks[0].attention.head_dim
        self.final = Linear(hidden_dim, 3 * patch_size**2)
        self.reset_parameters()

    @property
    def last_layer(self) -> nn.Linear:
        return self.final

    def run_blocks(
        self, x: Float[Tensor, "B L D"], given: Given
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
        c, text, mask = given.steering, given.context.tokens.to(x.dtype), given.context.mask
        again = self.grad_checkpoint == "all"
        known = {"dtype": x.dtype, "head_dim": self.head_dim, "kernel": self.attention_kernel}
        text_mask = packed(mask, **known)
        for block in self.text_blocks:
            text = self.run_block(block, text, c, None, text_mask, again=again)
        rows, columns = given.grid
        by = grid_rotation(
            rows, columns, self.head_dim, x.device, ends=(float(rows), float(columns))
        )
        detour, features = self.detour(given.context, x.shape[1]), x
        outside, inside = detour.sides(by, partial(joint_mask, mask, **known))
        for number, block in enumerate(self.blocks, start=1):
            x = detour.enter(number, x)
            side = inside if detour.is_open else outside
            x = self.run_block(block, x, text, c, *side, again=again)
            x = detour.leave(number, x)
            if number == self.feature_block:
                features = detour.whole(x)
        return x, features

    def head(self, tokens: Float[Tensor, "B L D"], given: Given) -> Float[Tensor, "B L Pc"]:
        return self.final(F.layer_norm(tokens, tokens.shape[-1:], eps=NORM_EPS))
