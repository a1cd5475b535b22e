"""Gated grouped-query attention."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from pixelhdm.errors import UserError
from pixelhdm.models.linear import Linear
from pixelhdm.models.norm import RMSNorm
from pixelhdm.models.packing import Packing, attend_packed
from pixelhdm.models.rope import Rotation, rotate

NORM_EPS = 1e-6
Mask = Bool[Tensor, "B S"] | Packing | None


class GatedAttention(nn.Module):
    """Self-attention with grouped keys and values, QK-norm, mRoPE and a sigmoid head gate.

    out = W_o [ sigmoid(x W_gate) * softmax(q k^T / sqrt(head_dim)) v ], with RMSNorm and rotation
    on q and k. Grouped queries: arXiv:2305.13245. Gate after the attention: arXiv:2505.06708
    (headwise form). The gate starts at 0.5 (zero weights). No biases.

    Args:
        dim: width of the tokens.
        num_heads: number of query heads.
        num_kv_heads: number of key and value heads; must divide num_heads.
        head_dim: channels per head.
    """

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int, head_dim: int):
        super().__init__()
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise UserError(f"num_kv_heads must divide num_heads={num_heads}, got {num_kv_heads}.")
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.qkv = Linear(dim, (num_heads + 2 * num_kv_heads) * head_dim, bias=False)
        self.gate = Linear(dim, num_heads, bias=False)
        self.out = Linear(num_heads * head_dim, dim, bias=False)
        self.q_norm = RMSNorm(head_dim, eps=NORM_EPS)
        self.k_norm = RMSNorm(head_dim, eps=NORM_EPS)

    def init_special(self) -> None:
        """Set the gate to 0.5; run after the generic initialisation."""
        nn.init.zeros_(self.gate.weight)

    def forward(
        self,
        x: Float[Tensor, "B S D"],
        by: Rotation,
        mask: Mask = None,
    ) -> Float[Tensor, "B S D"]:
        """Attend over all tokens, or over those that are valid."""
        heads = rearrange(self.qkv(x), "b s (n d) -> b n s d", d=self.head_dim)
        q, k, v = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        q, k = rotate(self.q_norm(q), by), rotate(self.k_norm(k), by)
        values = attend(q, k, v.to(q.dtype), mask)
        gate = rearrange(torch.sigmoid(self.gate(x)), "b s n -> b n s 1")
        return self.out(rearrange(values * gate, "b n s d -> b s (n d)"))


def attend(
    q: Float[Tensor, "B heads S d"],
    k: Float[Tensor, "B kv S d"],
    v: Float[Tensor, "B kv S d"],
    mask: Mask,
) -> Float[Tensor, "B heads S d"]:
    """Scaled dot-product attention with fewer key/value heads than query heads.

    With a mask the keys and values are repeated, because no fused CUDA kernel takes both a mask and
    groups. With a packing the device's variable-length kernel sees the valid tokens alone.
    """
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=k.shape[1] != q.shape[1])
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if isinstance(mask, Packing):
        return attend_packed(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=rearrange(mask, "b s -> b 1 1 s"))
