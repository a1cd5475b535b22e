"""The transformer block of DiT and its kin, alone, with a text beside it, or in two streams."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pixelhdm.models.attention import NORM_EPS, Attention, ContextAttention, Mask, attend
from pixelhdm.models.layers import zero
from pixelhdm.models.linear import Linear
from pixelhdm.models.norm import RMSNorm, modulated_norm
from pixelhdm.models.rope import Rotation


class DiTBlock(nn.Module):
    """x += g1 Attention(RMSNorm(x) (1 + a1) + b1), then the same with the MLP and a2, b2, g2.

    b1, a1, g1, b2, a2, g2 = Linear(SiLU(c)) start at zero (adaLN-Zero, arXiv:2212.09748), so that
    the block starts as the identity.

    Args:
        dim: width of the tokens.
        attention: the attention layer.
        mlp: the feed-forward layer.
    """

    def __init__(self, dim: int, attention: Attention, mlp: nn.Module):
        super().__init__()
        self.modulation = Linear(dim, 6 * dim)
        self.norm1 = RMSNorm(dim, eps=NORM_EPS)
        self.attention = attention
        self.norm2 = RMSNorm(dim, eps=NORM_EPS)
        self.mlp = mlp

    def init_special(self) -> None:
        """Close the gates; run after the generic initialisation."""
        zero(self.modulation)

    def forward(
        self,
        x: Float[Tensor, "B S D"],
        c: Float[Tensor, "B D"],
        by: Rotation | None,
        mask: Mask = None,
    ) -> Float[Tensor, "B S D"]:
        steering = self.steering(c)
        return self.leave(x, self.attention(self.enter(x, steering), by, mask), steering)

    def steering(self, c: Float[Tensor, "B D"]) -> Float[Tensor, "6 B 1 D"]:
        """b1, a1, g1, b2, a2, g2."""
        return rearrange(self.modulation(F.silu(c)), "b (six d) -> six b 1 d", six=6)

    def enter(self, x: Tensor, steering: Tensor) -> Tensor:
        """What the attention sees of x."""
        return modulated_norm(self.norm1, x, 1 + steering[1], steering[0])

    def leave(self, x: Tensor, attended: Tensor, steering: Tensor) -> Tensor:
        """x after what its attention gave, and after the feed-forward layer."""
        x = torch.addcmul(x, steering[2], attended.to(x.dtype))
        h = self.mlp(modulated_norm(self.norm2, x, 1 + steering[4], steering[3]))
        return torch.addcmul(x, steering[5], h.to(x.dtype))


class ContextBlock(DiTBlock):
    """A DiTBlock whose tokens also attend to a text that stays as it is.

    Args:
        dim: width of the tokens.
        attention: the attention layer.
        mlp: the feed-forward layer.
    """

    def __init__(self, dim: int, attention: ContextAttention, mlp: nn.Module):
        super().__init__(dim, attention, mlp)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        text: Float[Tensor, "B T D"],
        c: Float[Tensor, "B D"],
        by: Rotation,
        mask: Mask = None,
    ) -> Float[Tensor, "B L D"]:
        """`mask` tells which of [text; x] are valid."""
        steering = self.steering(c)
        attended = self.attention(self.enter(x, steering), by, mask, text)
        return self.leave(x, attended, steering)


class DualBlock(nn.Module):
    """Text and image attend to each other, each with weights of its own (MM-DiT, arXiv:2403.03206,
    section 4).

    Args:
        image: block of the image's tokens.
        text: block of the text's tokens.
        is_last: whether the text's tokens end here: only their keys and values are computed, and
            what would go on with them is kept, frozen, so that weights of the published shape fit.
    """

    def __init__(self, image: DiTBlock, text: DiTBlock, is_last: bool = False):
        super().__init__()
        self.image, self.text, self.is_last = image, text, is_last
        if is_last:
            for part in (text.attention.out, text.attention.q_norm, text.norm2, text.mlp):
                part.requires_grad_(False)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        text: Float[Tensor, "B T D"],
        c: Float[Tensor, "B D"],
        by: Rotation,
        text_by: Rotation,
        mask: Mask = None,
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B T D"]]:
        """`mask` tells which of [text; image] are valid."""
        image_steering, text_steering = self.image.steering(c), self.text.steering(c)
        own, other = self.image.enter(x, image_steering), self.text.enter(text, text_steering)
        q, k, v = self.image.attention.rotated_heads(own, by)
        text_q, text_k, text_v = self.text.attention.rotated_heads(other, text_by)
        length = 0 if self.is_last else text.shape[1]
        if not self.is_last:
            q = torch.cat([text_q, q], dim=2)
        k, v = torch.cat([text_k, k], dim=2), torch.cat([text_v, v], dim=2)
        values = attend(q, k, v, mask, self.image.attention.kernel)
        attended = self.image.attention.output(own, values[:, :, length:])
        x = self.image.leave(x, attended, image_steering)
        if not self.is_last:
            attended = self.text.attention.output(other, values[:, :, :length])
            text = self.text.leave(text, attended, text_steering)
        return x, text


class FinalLayer(nn.Module):
    """Linear(RMSNorm(x) (1 + a) + b) with b, a = Linear(SiLU(c)); all but the norm starts at zero
    (DiT, arXiv:2212.09748).

    Args:
        dim: width of the tokens.
        out_dim: numbers of a patch.
    """

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.norm = RMSNorm(dim, eps=NORM_EPS)
        self.modulation = Linear(dim, 2 * dim)
        self.linear = Linear(dim, out_dim)

    def init_special(self) -> None:
        """Start at zero; run after the generic initialisation."""
        zero(self.modulation)
        zero(self.linear)

    def forward(self, x: Float[Tensor, "B L D"], c: Float[Tensor, "B D"]) -> Tensor:
        shift, scale = rearrange(self.modulation(F.silu(c)), "b (two d) -> two b 1 d", two=2)
        return self.linear(modulated_norm(self.norm, x, 1 + scale, shift))
