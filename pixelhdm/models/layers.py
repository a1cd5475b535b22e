"""Layers that every network of the package is built from."""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pixelhdm.models.linear import Linear
from pixelhdm.models.silu_product import silu_product


class SwiGLU(nn.Module):
    """Gated feed-forward layer W_out (SiLU(W_gate x) * W_up x) (arXiv:2002.05202, eq. 6).

    Args:
        dim: width in and out.
        hidden_dim: width inside.
        bias: whether the layers have biases.
        dropout: probability of dropping a number inside in training.
    """

    def __init__(self, dim: int, hidden_dim: int, bias: bool = False, dropout: float = 0.0):
        super().__init__()
        self.gate = Linear(dim, hidden_dim, bias=bias)
        self.up = Linear(dim, hidden_dim, bias=bias)
        self.out = Linear(hidden_dim, dim, bias=bias)
        self.dropout = dropout

    def forward(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
        hidden = silu_product(self.gate(x), self.up(x))
        if self.dropout:
            hidden = F.dropout(hidden, self.dropout, self.training)
        return self.out(hidden)


def swiglu_dim(dim: int, mlp_ratio: float) -> int:
    """Width inside a SwiGLU layer with the parameters of a plain layer mlp_ratio times as wide:
    two thirds of it, rounded down (arXiv:2002.05202, section 3).
    """
    return int(2 * int(mlp_ratio * dim) / 3)


class GeluMLP(nn.Module):
    """Feed-forward layer W_out GELU(W_up x) with biases and the exact GELU.

    Args:
        dim: width in and out.
        hidden_dim: width inside.
    """

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.up = Linear(dim, hidden_dim)
        self.out = Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
        return self.out(F.gelu(self.up(x)))


class TimeEmbedding(nn.Module):
    """Embedding of t: sinusoids of scale times t, then Linear, SiLU, Linear.

    The sinusoids sin(scale t f_i), cos(scale t f_i) with f_i = max_period^(-i / half) are computed
    in float32 under any precision: in bfloat16 their error exceeds their amplitude.

    Args:
        dim: width out.
        num_frequencies: number of sinusoids, sines and cosines together.
        scale: factor of t.
        max_period: the longest period over 2 pi.
        cosines_first: order of sines and cosines.
        std: standard deviation that the weights start from; empty leaves it to the network.
    """

    def __init__(
        self,
        dim: int,
        num_frequencies: int = 256,
        scale: float = 1000.0,
        max_period: float = 10_000.0,
        cosines_first: bool = False,
        std: float | None = None,
    ):
        super().__init__()
        self.half, self.scale, self.max_period = num_frequencies // 2, scale, max_period
        self.cosines_first, self.std = cosines_first, std
        self.mlp = nn.Sequential(nn.Linear(num_frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    def init_special(self) -> None:
        """Start small where a deviation is given; run after the generic initialisation."""
        if self.std is not None:
            for layer in (self.mlp[0], self.mlp[2]):
                nn.init.normal_(layer.weight, std=self.std)

    def forward(self, t: Float[Tensor, "B"]) -> Float[Tensor, "B D"]:
        index = torch.arange(self.half, device=t.device, dtype=torch.float32)
        frequency = torch.exp(-math.log(self.max_period) * index / self.half)
        angle = self.scale * rearrange(t.float(), "b -> b 1") * frequency
        waves = [angle.cos(), angle.sin()] if self.cosines_first else [angle.sin(), angle.cos()]
        return self.mlp(torch.cat(waves, dim=-1).to(self.mlp[0].weight.dtype))


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


def init_torch(module: nn.Module) -> None:
    """Generic initialisation as PyTorch's own: every Linear's numbers in ± 1 / sqrt(inputs)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()


def zero(layer: nn.Linear) -> None:
    """Let a layer start at zero, its bias too."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def init_special(module: nn.Module) -> None:
    """Run each layer's own `init_special` where it has one; to be called after `init_linear`."""
    for layer in module.modules():
        if hasattr(layer, "init_special"):
            layer.init_special()
