"""Blocks on the pixels inside patches, and PixelHDM's block on patches."""

import os
from collections.abc import Callable
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pixelhdm.models.attention import NORM_EPS, Attention, Mask
from pixelhdm.models.layers import SwiGLU, zero
from pixelhdm.models.linear import Linear
from pixelhdm.models.norm import RMSNorm, modulated_norm
from pixelhdm.models.rope import Rotation

PixelModulation = Literal["factored", "full"]
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # kernels run on the CPU, in tests


class PatchBlock(nn.Module):
    """Transformer block with sandwich norms and time-driven modulation.

    x += g1 * RMSNorm(Attention(RMSNorm(x) (1 + a1) + b1)), then the same with SwiGLU and a2, b2,
    g2; a, b, g = Linear(SiLU(c)) start at zero (adaLN-Zero, arXiv:2212.09748), so the block starts
    as the identity.

    Args:
        dim: width of the tokens.
        attention: the attention layer.
        mlp_ratio: hidden width of the SwiGLU layer over dim.
    """

    def __init__(self, dim: int, attention: Attention, mlp_ratio: float):
        super().__init__()
        self.modulation = Linear(dim, 6 * dim)
        self.pre_attention = RMSNorm(dim, eps=NORM_EPS)
        self.attention = attention
        self.post_attention = RMSNorm(dim, eps=NORM_EPS)
        self.pre_mlp = RMSNorm(dim, eps=NORM_EPS)
        self.mlp = SwiGLU(dim, int(mlp_ratio * dim))
        self.post_mlp = RMSNorm(dim, eps=NORM_EPS)

    def init_special(self) -> None:
        """Close the gates; run after the generic initialisation."""
        nn.init.zeros_(self.modulation.weight)

    def forward(
        self,
        x: Float[Tensor, "B S D"],
        c: Float[Tensor, "B D"],
        by: Rotation,
        mask: Mask = None,
    ) -> Float[Tensor, "B S D"]:
        a1, b1, g1, a2, b2, g2 = rearrange(
            self.modulation(F.silu(c)), "b (six d) -> six b 1 d", six=6
        )
        h = self.attention(modulated_norm(self.pre_attention, x, 1 + a1, b1), by, mask)
        x = modulated_norm(self.post_attention, h, g1, x)
        h = self.mlp(modulated_norm(self.pre_mlp, x, 1 + a2, b2))
        return modulated_norm(self.post_mlp, h, g2, x)


class TokenCompaction(nn.Module):
    """Attention of pixels at the price of patches: one token a patch, attend, expand.

    p²d -> Linear -> D -> RMSNorm -> attention -> RMSNorm -> Linear -> p²d (PixelDiT,
    arXiv:2511.20645, section 3); the attention costs 1 / p^4 of one over all pixels. PixelDiT's own
    has biases in the place of the norms.

    Args:
        pixel_dim: channels d of a pixel.
        patch_area: pixels p² in a patch.
        dim: width D inside.
        attention: the attention layer of width D.
        expand_gain: gain of the Xavier initialisation of the last Linear; empty leaves its start to
            the network.
        normed: with norms and without biases, or the reverse.
    """

    def __init__(
        self,
        pixel_dim: int,
        patch_area: int,
        dim: int,
        attention: Attention,
        expand_gain: float | None = 0.1,
        normed: bool = True,
    ):
        super().__init__()
        self.compress = Linear(patch_area * pixel_dim, dim, bias=not normed)
        self.norm = RMSNorm(dim, eps=NORM_EPS) if normed else nn.Identity()
        self.attention = attention
        self.post_norm = RMSNorm(dim, eps=NORM_EPS) if normed else nn.Identity()
        self.expand = Linear(dim, patch_area * pixel_dim, bias=not normed)
        self.expand_gain = expand_gain

    def init_special(self) -> None:
        """Start the expansion small; run after the generic initialisation."""
        if self.expand_gain is not None:
            nn.init.xavier_uniform_(self.expand.weight, gain=self.expand_gain)

    def forward(self, x: Float[Tensor, "B L P d"], by: Rotation) -> Float[Tensor, "B L P d"]:
        tokens = self.norm(self.compress(rearrange(x, "b l p d -> b l (p d)")))
        tokens = self.post_norm(self.attention(tokens, by))
        return rearrange(self.expand(tokens), "b l (p d) -> b l p d", d=x.shape[-1])


class PixelModulator(nn.Module):
    """Modulation of every pixel from the condition of its patch: D -> `num` vectors of d each.

    factored: Linear(D -> p²d), SiLU, Linear(d -> num d) shared by all pixels; full: SiLU,
    Linear(D -> p² num d), as in PixelDiT (arXiv:2511.20645). Both start at zero.

    Args:
        dim: width D of the condition.
        pixel_dim: channels d of a pixel.
        patch_area: pixels p² in a patch.
        num: vectors per pixel.
        form: "factored" or "full".
    """

    def __init__(self, dim: int, pixel_dim: int, patch_area: int, num: int, form: PixelModulation):
        super().__init__()
        self.pixel_dim, self.num, self.factored = pixel_dim, num, form == "factored"
        if self.factored:
            self.to_pixels = Linear(dim, patch_area * pixel_dim, bias=False)
            self.out = Linear(pixel_dim, num * pixel_dim)
        else:
            self.out = Linear(dim, patch_area * num * pixel_dim)

    def init_special(self) -> None:
        """Start without modulation; run after the generic initialisation."""
        zero(self.out)

    def forward(self, s: Float[Tensor, "B L D"]) -> tuple[Tensor, ...]:
        """`num` tensors B L P d."""
        if self.factored:
            pixels = F.silu(rearrange(self.to_pixels(s), "b l (p d) -> b l p d", d=self.pixel_dim))
            return self.out(pixels).chunk(self.num, dim=-1)
        pixels = self.out(F.silu(s))
        return rearrange(pixels, "b l (p nd) -> b l p nd", nd=self.num * self.pixel_dim).chunk(
            self.num, dim=-1
        )


class PixelBlock(nn.Module):
    """Block on the pixels: compaction attention and a small MLP, modulated pixel by pixel.

    x += g1 * Compaction(RMSNorm(x) (1 + a1) + b1), then the same with the MLP: the identity at the
    start. With `post_modulation` (PixelDiT's remedy against loss spikes, pull request 8 of its
    repository) the branch outputs are modulated and there is no gate: x += Compaction(RMSNorm(x))
    (1 + a1) + b1.

    Args:
        dim: width D of the condition.
        pixel_dim: channels d of a pixel.
        patch_area: pixels p² in a patch.
        compaction: the attention over patches.
        mlp: the feed-forward layer on each pixel.
        modulation: "factored" or "full", see PixelModulator.
        post_modulation: modulate the branches' outputs instead of their inputs.

    Attributes:
        kernel: computes the modulated norms on a GPU from x, weight, a, b and eps, see
            choose_pixel_kernel; none for the plain form.
    """

    def __init__(
        self,
        dim: int,
        pixel_dim: int,
        patch_area: int,
        compaction: TokenCompaction,
        mlp: nn.Module,
        modulation: PixelModulation,
        post_modulation: bool,
    ):
        super().__init__()
        self.post_modulation = post_modulation
        self.modulator = PixelModulator(
            dim, pixel_dim, patch_area, 4 if post_modulation else 6, modulation
        )
        self.norm1 = RMSNorm(pixel_dim, eps=NORM_EPS)
        self.compaction = compaction
        self.norm2 = RMSNorm(pixel_dim, eps=NORM_EPS)
        self.mlp = mlp
        self.kernel: Callable[..., Tensor] | None = None

    def forward(
        self,
        x: Float[Tensor, "B L P d"],
        s: Float[Tensor, "B L D"],
        by: Rotation,
    ) -> Float[Tensor, "B L P d"]:
        if self.post_modulation:
            a1, b1, a2, b2 = self.modulator(s)
            x = torch.addcmul(x + b1, self.compaction(self.norm1(x), by), 1 + a1)
            return torch.addcmul(x + b2, self.mlp(self.norm2(x)), 1 + a2)
        a1, b1, g1, a2, b2, g2 = self.modulator(s)
        x = x + g1 * self.compaction(self.modulated(self.norm1, x, a1, b1), by)
        return x + g2 * self.mlp(self.modulated(self.norm2, x, a2, b2))

    def modulated(self, norm: RMSNorm, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """norm(x) (1 + a) + b."""
        if self.kernel is not None and (x.is_cuda or IS_INTERPRETED):
            return self.kernel(x, norm.weight, a, b, norm.eps)
        return modulated_norm(norm, x, 1 + a, b)
