"""Layers that every network of the package is built from."""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from pixelhdm.models.linear import Linear
from pixelhdm.models.silu_product import silu_product


class SwiGLU(nn.Module):
    """Gated feed-forward layer W_out (SiLU(W_gate x) * W_up x) (arXiv:2002.05202, eq. 6).

    Args:
        dim: width in and out.
        hidden_dim: width inside.
    """

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.gate = Linear(dim, hidden_dim, bias=False)
        self.up = Linear(dim, hidden_dim, bias=False)
        self.out = Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
        return self.out(silu_product(self.gate(x), self.up(x)))


class TimeEmbedding(nn.Module):
    """Embedding of t: sinusoids of 1000 t, then Linear, SiLU, Linear.

    The sinusoids sin(1000 t f_i), cos(1000 t f_i) with f_i = 10000^(-i / half) are computed in
    float32 under any precision: in bfloat16 their error exceeds their amplitude.

    Args:
        dim: width out.
        num_frequencies: number of sinusoids, sines and cosines together.
    """

    def __init__(self, dim: int, num_frequencies: int = 256):
        super().__init__()
        self.half = num_frequencies // 2
        self.mlp = nn.Sequential(nn.Linear(num_frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Float[Tensor, "B"]) -> Float[Tensor, "B D"]:
        index = torch.arange(self.half, device=t.device, dtype=torch.float32)
        frequency = torch.exp(-math.log(10_000.0) * index / self.half)
        angle = 1000.0 * rearrange(t.float(), "b -> b 1") * frequency
        return self.mlp(torch.cat([angle.sin(), angle.cos()], dim=-1).to(self.mlp[0].weight.dtype))


def patchify(image: Float[Tensor, "B H W c"], patch_size: int) -> Float[Tensor, "B L Pc"]:
    """Cut an image into patches, row by row; features are ordered (row, column, channel)."""
    return rearrange(image, "b (h p) (w q) c -> b (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify(
    patches: Float[Tensor, "B L Pc"], height: int, width: int, patch_size: int
) -> Float[Tensor, "B H W c"]:
    """Put the patches of a `height` x `width` image together again: the inverse of `patchify`."""
    h, w = height // patch_size, width // patch_size
    return rearrange(
        patches, "b (h w) (p q c) -> b (h p) (w q) c", h=h, w=w, p=patch_size, q=patch_size
    )


def init_linear(module: nn.Module) -> None:
    """Generic initialisation: Xavier-uniform weights and zero biases on every Linear."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def init_special(module: nn.Module) -> None:
    """Run each layer's own `init_special` where it has one; to be called after `init_linear`."""
    for layer in module.modules():
        if hasattr(layer, "init_special"):
            layer.init_special()
