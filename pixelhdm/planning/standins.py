"""Frozen networks without their files: of the same sizes, or known by their published ones."""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pixelhdm.models.encoders.frozen import Frozen
from pixelhdm.models.encoders.lpips import Lpips, VggDistance
from pixelhdm.models.encoders.teacher import Teacher
from pixelhdm.models.layers import GeluMLP

# Depth and heads of DINOv2 (arXiv:2304.07193) and DINOv3 (arXiv:2508.10104) by their widths.
VITS = {384: (12, 6), 768: (12, 12), 1024: (24, 16), 1280: (32, 20), 1536: (40, 24), 4096: (40, 32)}
NUM_EXTRA = 5  # CLS and registers
VGG_WIDTHS = (64, 128, 256, 512, 512)


class TextModel(NamedTuple):
    """Sizes of a text encoder, as its config.json and its model card have them.

    Attributes:
        parameters: all of them.
        embeddings: those that no token is multiplied with.
        depth: number of layers.
        attention_dim: channels of all query heads together.
        width: channels of a state.
    """

    parameters: int
    embeddings: int
    depth: int
    attention_dim: int
    width: int

    def flop(self, num_tokens: int) -> int:
        """FLOP of a text of so many tokens, every token with every other."""
        linear = 2 * (self.parameters - self.embeddings) * num_tokens
        return linear + 4 * self.depth * num_tokens**2 * self.attention_dim


TEXTS = {
    "Qwen3-0.6B": TextModel(596_049_920, 155_582_464, 28, 2048, 1024),
    "Qwen3-1.7B": TextModel(1_720_574_976, 311_164_928, 28, 2048, 2048),
    "Qwen3-4B": TextModel(4_022_468_096, 388_956_160, 36, 4096, 2560),
    "gemma-2-2b-it": TextModel(2_614_341_888, 589_824_000, 26, 2048, 2304),
    "minilm-l6-v2": TextModel(22_713_216, 11_720_448, 6, 384, 384),
}


def known_text(source: str) -> TextModel | None:
    """The sizes of a text encoder by its source; None where they are not known."""
    name = source.lower().replace("_", "-")
    return next((model for known, model in TEXTS.items() if known.lower() in name), None)


class PlainViT(nn.Module):
    """A vision transformer of a teacher's sizes, which does as much as the teacher; of a width that
    is not known it has no blocks.

    Args:
        dim: width.
        patch_size: side of a patch in pixels.
    """

    def __init__(self, dim: int, patch_size: int):
        super().__init__()
        depth, self.num_heads = VITS.get(dim, (0, 1))
        self.patches = nn.Conv2d(3, dim, patch_size, patch_size)
        self.extra = nn.Parameter(torch.empty(NUM_EXTRA, dim))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(dim),
                    "qkv": nn.Linear(dim, 3 * dim),
                    "out": nn.Linear(dim, dim),
                    "norm2": nn.LayerNorm(dim),
                    "mlp": GeluMLP(dim, 4 * dim),
                }
            )
            for _ in range(depth)
        )

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L D"]:
        x = rearrange(self.patches(pixels.to(self.patches.weight.dtype)), "b d h w -> b (h w) d")
        x = torch.cat([self.extra.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            heads = rearrange(
                block["qkv"](block["norm1"](x)),
                "b s (three n d) -> three b n s d",
                three=3,
                n=self.num_heads,
            )
            values = F.scaled_dot_product_attention(*heads)
            x = x + block["out"](rearrange(values, "b n s d -> b s (n d)"))
            x = x + block["mlp"](block["norm2"](x))
        return x[:, NUM_EXTRA:]


def vgg() -> VggDistance:
    """The network of LPIPS without its weights."""
    from torchvision.models.vgg import cfgs, make_layers

    heads = [torch.empty(width) for width in VGG_WIDTHS]
    return VggDistance(make_layers(cfgs["D"]).state_dict(), heads)


def stand_in(frozen: Frozen) -> nn.Module | None:
    """A network on the meta device that does what `frozen` would; None where that is not known."""
    with torch.device("meta"):
        if isinstance(frozen, Lpips):
            return vgg()
        if isinstance(frozen, Teacher):
            return PlainViT(frozen.dim, frozen.patch_size)
    return None


def is_known(frozen: Frozen) -> bool:
    """Whether its stand-in does as much as it does."""
    return isinstance(frozen, Lpips) or (isinstance(frozen, Teacher) and frozen.dim in VITS)
