"""Self-attention with QK-norm and rotary positions, and its gated form."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from pixelhdm.errors import UserError
from pixelhdm.models.attention_kernels import AttentionKernel, attend_flash, takes_flash
from pixelhdm.models.linear import Linear
from pixelhdm.models.norm import RMSNorm
from pixelhdm.models.packing import Packing, attend_packed
from pixelhdm.models.precision import product_dtype
from pixelhdm.models.rope import Rotation, rotate

NORM_EPS = 1e-6
Mask = Bool[Tensor, "B _"] | Packing | None


class Attention(nn.Module):
    """Self-attention, out = W_o softmax(q k^T / sqrt(head_dim)) v, with RMSNorm and rotation on q
    and k.

    Grouped queries: arXiv:2305.13245. Gate after the attention: arXiv:2505.06708 (headwise form).

    Args:
        dim: width of the tokens.
        num_heads: number of query heads.
        num_kv_heads: number of key and value heads; must divide num_heads.
        head_dim: channels per head.
        qkv_bias: whether queries, keys and values have a bias.
        out_bias: whether the output has one.
        gated: multiply each head's values by sigmoid(x W_gate), which starts at 0.5.
        dropout: probability of dropping a number of the output in training.

    Attributes:
        kernel: which kernel computes it, see Network.choose_attention.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        qkv_bias: bool = False,
        out_bias: bool = True,
        gated: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise UserError(f"num_kv_heads must divide num_heads={num_heads}, got {num_kv_heads}.")
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.qkv = Linear(dim, (num_heads + 2 * num_kv_heads) * head_dim, bias=qkv_bias)
        self.gate = Linear(dim, num_heads, bias=False) if gated else None
        self.out = Linear(num_heads * head_dim, dim, bias=out_bias)
        self.q_norm = RMSNorm(head_dim, eps=NORM_EPS)
        self.k_norm = RMSNorm(head_dim, eps=NORM_EPS)
        self.dropout = dropout
        self.kernel: AttentionKernel = "auto"

    def init_special(self) -> None:
        """Set the gate to 0.5; run after the generic initialisation."""
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)

    def forward(
        self,
        x: Float[Tensor, "B S D"],
        by: Rotation | None,
        mask: Mask = None,
    ) -> Float[Tensor, "B S D"]:
        """Attend over all tokens, or over those that are valid; without a rotation where their
        places do not matter.
        """
        q, k, v = self.rotated_heads(x, by)
        return self.output(x, attend(q, k, v, mask, self.kernel))

    @property
    def stacked(self) -> dict[nn.Parameter, tuple[int, ...]]:
        """Weights that hold several matrices above each other, with the rows of each."""
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        return {self.qkv.weight: tuple(num * self.head_dim for num in heads)}

    def rotated_heads(self, x: Tensor, by: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, B heads S head_dim."""
        heads = rearrange(self.qkv(x), "b s (n d) -> b n s d", d=self.head_dim)
        q, k, v = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        q, k = self.q_norm(q), self.k_norm(k)
        if by is not None:
            q, k = rotate(q, by), rotate(k, by)
        return q.to(v.dtype), k.to(v.dtype), v  # CUDA's autocast norms in float32

    def output(self, x: Tensor, values: Float[Tensor, "B heads S d"]) -> Float[Tensor, "B S D"]:
        """Gate, join and project what the heads of tokens x attended to."""
        if self.gate is not None:
            values = values * rearrange(torch.sigmoid(self.gate(x)), "b s n -> b n s 1")
        out = self.out(rearrange(values, "b n s d -> b s (n d)"))
        return F.dropout(out, self.dropout, self.training) if self.dropout else out


class GatedAttention(Attention):
    """Self-attention with grouped keys and values, a sigmoid head gate and no biases, see
    Attention.

    Args:
        dim: width of the tokens.
        num_heads: number of query heads.
        num_kv_heads: number of key and value heads; must divide num_heads.
        head_dim: channels per head.
    """

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int, head_dim: int):
        super().__init__(dim, num_heads, num_kv_heads, head_dim, out_bias=False, gated=True)


def plain_attention(
    dim: int, num_heads: int, qkv_bias: bool = False, dropout: float = 0.0
) -> Attention:
    """Attention with as many keys as queries, whose heads share the width."""
    head_dim = whole_head_dim(dim, num_heads)
    return Attention(dim, num_heads, num_heads, head_dim, qkv_bias, dropout=dropout)


def whole_head_dim(dim: int, num_heads: int) -> int:
    """Channels of a head, where all of them share `dim`.

    Raises:
        UserError: num_heads does not divide it into heads of whole channel quadruples.
    """
    if num_heads < 1 or dim % (4 * num_heads):
        raise UserError(
            f"num_heads must divide the width {dim} into heads of a multiple of 4 channels (two "
            f"axes turn pairs of them), got {num_heads}."
        )
    return dim // num_heads


class ContextAttention(Attention):
    """Attention of tokens to a text and to themselves; the text's keys do not turn (PixelGen,
    arXiv:2602.02493, its text-to-image network).

    Args:
        dim: width of tokens and text.
        num_heads: number of heads, dim / num_heads channels each.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__(dim, num_heads, num_heads, whole_head_dim(dim, num_heads))
        self.kv_context = Linear(dim, 2 * dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        by: Rotation | None,
        mask: Mask = None,
        context: Float[Tensor, "B T D"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """`mask` tells which of [context; x] are valid."""
        q, k, v = self.rotated_heads(x, by)
        if context is not None:
            text_k, text_v = rearrange(
                self.kv_context(context), "b t (two n d) -> two b n t d", two=2, d=self.head_dim
            )
            k = torch.cat([self.k_norm(text_k).to(k.dtype), k], dim=2)
            v = torch.cat([text_v, v], dim=2)
        return self.output(x, attend(q, k, v, mask, self.kernel))

    @property
    def stacked(self) -> dict[nn.Parameter, tuple[int, ...]]:
        rows = self.num_heads * self.head_dim
        return super().stacked | {self.kv_context.weight: (rows, rows)}


def attend(
    q: Float[Tensor, "B heads S d"],
    k: Float[Tensor, "B kv _ d"],
    v: Float[Tensor, "B kv _ d"],
    mask: Mask,
    kernel: AttentionKernel = "auto",
) -> Float[Tensor, "B heads S d"]:
    """Scaled dot-product attention with fewer key/value heads than query heads.

    A mask is for PyTorch's kernel alone, and the keys and values are repeated, because no fused
    CUDA kernel takes both a mask and groups. With a packing the device's variable-length kernel
    sees the valid tokens alone.
    """
    if isinstance(mask, Packing):
        return attend_packed(q, k, v, mask, kernel)
    if mask is None:
        if takes_flash(kernel, q.device, product_dtype(q.device, q.dtype), q.shape[-1]):
            return attend_flash(q, k, v)
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=k.shape[1] != q.shape[1])
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=rearrange(mask, "b s -> b 1 1 s"))
