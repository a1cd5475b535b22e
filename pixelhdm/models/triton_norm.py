"""A Triton kernel for the modulated norm of pixels: one pass forwards, one backwards.

Import it only where Triton is installed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

ROWS = 128  # pixels that a program holds at once
MAX_PROGRAMS = 2048  # of the backward pass; each leaves one part of the weight's gradient


@triton.jit
def load_rows(start, num_rows, stride, dim: tl.constexpr, width: tl.constexpr, rows: tl.constexpr):
    """Places and mask of a tile of rows."""
    row = start + tl.arange(0, rows).to(tl.int64)
    column = tl.arange(0, width)
    place = row[:, None] * stride + column[None, :]
    return place, (row < num_rows)[:, None] & (column < dim)[None, :]


@triton.jit
def forward_kernel(
    x, weight, scale, shift, y, num_rows, scale_stride, shift_stride, eps,
    dim: tl.constexpr, width: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    """y = x r weight (1 + scale) + shift."""
    start = tl.program_id(0).to(tl.int64) * rows
    at, inside = load_rows(start, num_rows, dim, dim, width, rows)
    scale_at, _ = load_rows(start, num_rows, scale_stride, dim, width, rows)
    shift_at, _ = load_rows(start, num_rows, shift_stride, dim, width, rows)
    column = tl.arange(0, width)
    w = tl.load(weight + column, mask=column < dim, other=0.0).to(tl.float32)[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    a = tl.load(scale + scale_at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(shift + shift_at, mask=inside, other=0.0).to(tl.float32)
    r = 1 / tl.sqrt(tl.sum(value * value, axis=1) / dim + eps)
    out = value * r[:, None] * (w * (1 + a)) + b
    tl.store(y + at, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    grad, x, weight, scale, dx, dscale, dweight, num_rows, scale_stride, eps,
    dim: tl.constexpr, width: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    """With n = x r and g = grad weight (1 + scale): dx = r (g - n mean(g n)), dscale = grad n
    weight, and of each program a part of dweight = sum(grad n (1 + scale)).
    """
    column = tl.arange(0, width)
    w = tl.load(weight + column, mask=column < dim, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros([width], dtype=tl.float32)
    first, step = tl.program_id(0).to(tl.int64) * rows, tl.num_programs(0) * rows
    for start in range(first, num_rows, step):
        at, inside = load_rows(start, num_rows, dim, dim, width, rows)
        scale_at, _ = load_rows(start, num_rows, scale_stride, dim, width, rows)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        a = tl.load(scale + scale_at, mask=inside, other=0.0).to(tl.float32)
        r = (1 / tl.sqrt(tl.sum(value * value, axis=1) / dim + eps))[:, None]
        n = value * r
        g = up * w * (1 + a)
        along = (tl.sum(g * n, axis=1) / dim)[:, None]
        tl.store(dx + at, (r * (g - n * along)).to(dx.dtype.element_ty), mask=inside)
        tl.store(dscale + at, (up * n * w).to(dscale.dtype.element_ty), mask=inside)
        total += tl.sum(up * n * (1 + a), axis=0)
    place = tl.program_id(0) * dim + column
    tl.store(dweight + place, total, mask=column < dim)


@triton_op("pixelhdm::modulated_rms_norm", mutates_args={})
def modulated_rms_norm(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, eps: float
) -> Tensor:
    """RMSNorm(x) weight (1 + scale) + shift over the last axis, in float32 inside and in x's type
    outside; scale and shift have x's shape.
    """
    (scale, scale_stride), (shift, shift_stride), x = by_rows(scale), by_rows(shift), x.contiguous()
    y, dim = torch.empty_like(x), x.shape[-1]
    num_rows = x.numel() // dim
    wrap_triton(forward_kernel)[(triton.cdiv(num_rows, ROWS),)](
        x, weight, scale, shift, y, num_rows, scale_stride, shift_stride, eps, *tile(dim)
    )
    return y


@triton_op("pixelhdm::modulated_rms_norm_backward", mutates_args={})
def modulated_rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives by x, weight and scale."""
    grad, (scale, scale_stride), x = grad.contiguous(), by_rows(scale), x.contiguous()
    dx, dim = torch.empty_like(x), x.shape[-1]
    num_rows = x.numel() // dim
    dscale = torch.empty(x.shape, dtype=scale.dtype, device=x.device)
    num_programs = min(triton.cdiv(num_rows, ROWS), MAX_PROGRAMS)
    parts = torch.empty(num_programs, dim, dtype=torch.float32, device=x.device)
    wrap_triton(backward_kernel)[(num_programs,)](
        grad, x, weight, scale, dx, dscale, parts, num_rows, scale_stride, eps, *tile(dim)
    )
    return dx, parts.sum(0).to(weight.dtype), dscale


def keep(ctx, inputs: tuple, output: Tensor) -> None:
    """Keep x, weight and scale: no result of the forward pass."""
    x, weight, scale, shift, ctx.eps = inputs
    ctx.shift_dtype = shift.dtype
    ctx.save_for_backward(x, weight, scale)


def derive(ctx, grad: Tensor) -> tuple:
    """Derivatives by all inputs."""
    dx, dweight, dscale = modulated_rms_norm_backward(grad, *ctx.saved_tensors, ctx.eps)
    return dx, dweight, dscale, grad.to(ctx.shift_dtype), None


modulated_rms_norm.register_autograd(derive, setup_context=keep)


def by_rows(part: Tensor) -> tuple[Tensor, int]:
    """A tensor as rows of channels, and how far apart they lie: a chunk of a larger one is not
    copied.
    """
    rows = part.reshape(-1, part.shape[-1])
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    return rows, rows.stride(0)


def tile(dim: int) -> tuple[int, int, int]:
    """Channels, the same as a power of two, and rows."""
    return dim, triton.next_power_of_2(dim), ROWS
