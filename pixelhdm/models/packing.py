"""Attention over texts and images of different lengths, without a mask and without padding."""

import inspect
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from pixelhdm.models.attention_kernels import (
    CAPABILITY,
    MAX_HEAD_DIM,
    AttentionKernel,
    takes_flash,
)
from pixelhdm.models.precision import HALF, product_dtype

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # a torch that was built without it
    varlen_attn = None
# torch 2.11 has no such argument.
IS_GROUPED = varlen_attn is not None and "enable_gqa" in inspect.signature(varlen_attn).parameters


class Packing(NamedTuple):
    """Where the valid tokens of a batch lie, one sequence after the other.

    Attributes:
        index: place of each valid token in the flattened batch.
        starts: number of the first valid token of each sequence, and their count at the end.
    """

    index: Int[Tensor, "n"]
    starts: Int[Tensor, "B+1"]


def packed(
    mask: Bool[Tensor, "B S"] | None,
    dtype: torch.dtype,
    head_dim: int,
    kernel: AttentionKernel = "auto",
) -> Bool[Tensor, "B S"] | Packing | None:
    """The packing of a mask where the device has a variable-length kernel; else the mask itself.

    It costs one wait for the device, to learn how many tokens there are; use it for all layers.

    Args:
        mask: true where a token is valid; none: all are.
        dtype: type of the matrix products, autocast apart.
        head_dim: channels of a head.
        kernel: which kernels may be taken.
    """
    if mask is None or not has_kernel(mask.device, dtype, head_dim, kernel):
        return mask
    return packing(mask)


def joint_mask(
    mask: Bool[Tensor, "B T"] | None,
    num_patches: int,
    dtype: torch.dtype,
    head_dim: int,
    kernel: AttentionKernel = "auto",
) -> Bool[Tensor, "B S"] | Packing | None:
    """The mask of [context; image] from that of the context, packed where that is faster."""
    if mask is not None:
        mask = F.pad(mask, (0, num_patches), value=True)
    return packed(mask, dtype, head_dim, kernel)


def packing(mask: Bool[Tensor, "B S"]) -> Packing:
    """Where the valid tokens lie."""
    starts = F.pad(mask.sum(dim=1).cumsum(dim=0), (1, 0))
    return Packing(mask.flatten().nonzero().squeeze(1), starts.int())


def has_kernel(
    device: torch.device, dtype: torch.dtype, head_dim: int, kernel: AttentionKernel = "auto"
) -> bool:
    """Whether the device computes attention over packed sequences: CUDA in half precision."""
    dtype = product_dtype(device, dtype)
    if kernel == "sdpa" or takes_flash(kernel, device, dtype, head_dim):
        return kernel != "sdpa"
    if varlen_attn is None or device.type != "cuda" or torch.version.cuda is None:
        return False
    fits = head_dim % 8 == 0 and head_dim <= MAX_HEAD_DIM and dtype in HALF
    return fits and torch.cuda.get_device_capability(device) >= CAPABILITY


def attend_packed(
    q: Float[Tensor, "B heads S d"],
    k: Float[Tensor, "B kv _ d"],
    v: Float[Tensor, "B kv _ d"],
    where: Packing,
    kernel: AttentionKernel = "auto",
) -> Float[Tensor, "B heads S d"]:
    """Attention to each sequence's valid keys.

    As many queries as keys are packed like them, and zero comes out where a token is not valid.
    Otherwise the queries, such as an image's that look at a text too, are all valid.
    """
    batch, _, num_queries, head_dim = q.shape
    num_keys = k.shape[2]
    # The kernels have no autocast rule.
    dtype = product_dtype(q.device, q.dtype)
    q, k, v = (rearrange(part, "b n s d -> (b s) n d").to(dtype) for part in (q, k, v))
    k, v = k.index_select(0, where.index), v.index_select(0, where.index)
    starts, is_packed = where.starts, num_queries == num_keys
    if is_packed:
        q = q.index_select(0, where.index)
    else:
        starts = torch.arange(batch + 1, dtype=torch.int32, device=q.device) * num_queries
    run = flash_varlen if takes_flash(kernel, q.device, dtype, head_dim) else torch_varlen
    values = run(q, k, v, starts, where.starts, num_queries, num_keys)
    if is_packed:
        whole = values.new_zeros(batch * num_keys, *values.shape[1:])
        values = whole.index_copy(0, where.index, values)
    return rearrange(values, "(b s) n d -> b n s d", b=batch)


def flash_varlen(
    q: Float[Tensor, "nq heads d"],
    k: Float[Tensor, "nk kv d"],
    v: Float[Tensor, "nk kv d"],
    starts_q: Int[Tensor, "starts"],
    starts_k: Int[Tensor, "starts"],
    longest_q: int,
    longest_k: int,
) -> Float[Tensor, "nq heads d"]:
    """flash-attn's kernel, which takes fewer key heads as they are."""
    from flash_attn import flash_attn_varlen_func

    again = torch.are_deterministic_algorithms_enabled()
    return flash_attn_varlen_func(
        q, k, v, starts_q, starts_k, longest_q, longest_k, deterministic=again
    )


def torch_varlen(
    q: Float[Tensor, "nq heads d"],
    k: Float[Tensor, "nk kv d"],
    v: Float[Tensor, "nk kv d"],
    starts_q: Int[Tensor, "starts"],
    starts_k: Int[Tensor, "starts"],
    longest_q: int,
    longest_k: int,
) -> Float[Tensor, "nq heads d"]:
    """PyTorch's kernel; where it cannot take fewer key heads, they are repeated."""
    groups = q.shape[1] // k.shape[1]
    if groups == 1:
        return varlen_attn(q, k, v, starts_q, starts_k, longest_q, longest_k)
    if IS_GROUPED:
        return varlen_attn(q, k, v, starts_q, starts_k, longest_q, longest_k, enable_gqa=True)
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return varlen_attn(q, k, v, starts_q, starts_k, longest_q, longest_k)
