"""CUDA's kernels in the place of the CPU's, for tensors that hold no numbers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelhdm.models import linear, norm
from pixelhdm.models.precision import product_dtype

PLAIN_LAYER_NORM = F.layer_norm


def attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
    """The fused attention in the place of F.scaled_dot_product_attention."""
    rows = (part.to(product_dtype(part.device, part.dtype)) for part in (q, k, v))
    return torch.ops.aten._scaled_dot_product_flash_attention(*rows)[0]


class FusedRmsNorm(torch.autograd.Function):
    """The memory and traffic of CUDA's fused RMSNorm, in one operation each way, without its
    numbers: it keeps x and one number a row.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        r = x.new_empty(*x.shape[:-1], 1)
        ctx.save_for_backward(x, r)
        return x * r

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.addcmul(grad, *ctx.saved_tensors)


def rms_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """The fused norm in the place of F.rms_norm."""
    y = FusedRmsNorm.apply(widened(x))
    return y if weight is None else y * weight


def layer_norm(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """F.layer_norm, in float32 under autocast."""
    return PLAIN_LAYER_NORM(widened(x), *args, **kwargs)


def widened(x: Tensor) -> Tensor:
    """`x` in float32 where autocast is on."""
    return x.float() if torch.is_autocast_enabled("cpu") else x


def never(x: Tensor) -> bool:
    """That the CPU's fast paths are not taken."""
    return False


KERNELS = {
    "scaled_dot_product_attention": attention,
    "rms_norm": rms_norm,
    "layer_norm": layer_norm,
}


@contextmanager
def cuda_kernels() -> Iterator[None]:
    """Let PyTorch do on fake CPU tensors what it does on CUDA ones: one fused attention, and norms
    in float32, as CUDA's autocast has them and the CPU's has not.

    Fake CUDA tensors have no backward pass where there is no GPU; what autograd keeps of these is
    the same to the byte. PyTorch's functions are replaced, not overridden by a TorchFunctionMode:
    that is off in the backward pass, where checkpointed blocks are computed again.
    """
    replaced = [(F, name, kernel) for name, kernel in KERNELS.items()]
    replaced += [(module, "is_eager_float32_cpu", never) for module in (linear, norm)]
    plain = [(place, name, getattr(place, name)) for place, name, _ in replaced]
    try:
        for place, name, function in replaced:
            setattr(place, name, function)
        yield
    finally:
        for place, name, function in plain:
            setattr(place, name, function)


@contextmanager
def autocast(dtype: torch.dtype) -> Iterator[None]:
    """Autocast as Lightning's mixed precision has it, without a cache of cast weights; nothing for
    float32.
    """
    on = dtype in (torch.bfloat16, torch.float16)
    with torch.autocast("cpu", dtype if on else None, enabled=on, cache_enabled=False):
        yield
