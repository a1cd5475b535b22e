"""Attention over texts and images of different lengths, without a mask and without padding."""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # a torch that was built without it
    varlen_attn = None

HALF = (torch.bfloat16, torch.float16)
CAPABILITY = (8, 0)  # of the device, which flash attention asks for
MAX_HEAD_DIM = 256


class Packing(NamedTuple):
    """Where the valid tokens of a batch lie, one sequence after the other.

    Attributes:
        index: place of each valid token in the flattened batch.
        starts: number of the first valid token of each sequence, and their count at the end.
    """

    index: Int[Tensor, "n"]
    starts: Int[Tensor, "B+1"]


def packed(
    mask: Bool[Tensor, "B S"], dtype: torch.dtype, head_dim: int
) -> Bool[Tensor, "B S"] | Packing:
    """The packing of a mask where the device has a variable-length kernel; else the mask itself.

    It costs one wait for the device, to learn how many tokens there are; use it for all layers.

    Args:
        mask: true where a token is valid.
        dtype: type of the matrix products, autocast apart.
        head_dim: channels of a head.
    """
    return packing(mask) if has_kernel(mask.device, dtype, head_dim) else mask


def joint_mask(
    mask: Bool[Tensor, "B T"] | None, num_patches: int, dtype: torch.dtype, head_dim: int
) -> Bool[Tensor, "B S"] | Packing | None:
    """The mask of [context; image] from that of the context, packed where that is faster."""
    if mask is None:
        return None
    return packed(torch.nn.functional.pad(mask, (0, num_patches), value=True), dtype, head_dim)


def packing(mask: Bool[Tensor, "B S"]) -> Packing:
    """Where the valid tokens lie."""
    starts = torch.nn.functional.pad(mask.sum(dim=1).cumsum(dim=0), (1, 0))
    return Packing(mask.flatten().nonzero().squeeze(1), starts.int())


def has_kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the device computes attention over packed sequences: CUDA in half precision."""
    if varlen_attn is None or device.type != "cuda" or torch.version.cuda is None:
        return False
    fits = head_dim % 8 == 0 and head_dim <= MAX_HEAD_DIM and product_dtype(device, dtype) in HALF
    return fits and torch.cuda.get_device_capability(device) >= CAPABILITY


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The type in which matrices of a type are multiplied, under autocast too."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return dtype


def attend_packed(
    q: Float[Tensor, "B heads S d"],
    k: Float[Tensor, "B heads S d"],
    v: Float[Tensor, "B heads S d"],
    where: Packing,
) -> Float[Tensor, "B heads S d"]:
    """Attention of each sequence's valid tokens; zero where a token is not valid."""
    batch, _, length, _ = q.shape
    # The kernel has no autocast rule, and CUDA's autocast norms q and k in float32.
    dtype = product_dtype(q.device, q.dtype)
    rows = [rearrange(part, "b n s d -> (b s) n d")[where.index].to(dtype) for part in (q, k, v)]
    values = varlen_attn(*rows, where.starts, where.starts, length, length)
    whole = values.new_zeros(batch * length, *values.shape[1:]).index_copy(0, where.index, values)
    return rearrange(whole, "(b s) n d -> b n s d", b=batch)
