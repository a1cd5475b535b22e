"""RMSNorm with a short derivative on CPUs, and its fusion with scale and shift."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pixelhdm.models.cpu import is_eager_float32_cpu


class RMSNorm(nn.RMSNorm):
    """nn.RMSNorm over the last axis: x / sqrt(mean(x²) + eps) * weight.

    The weight is applied apart and in x's precision: PyTorch has no fused kernel for bfloat16 x and
    float32 weight.
    """

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return rms_normalize(x, self.eps) * self.weight.to(x.dtype)


def modulated_norm(norm: RMSNorm, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """norm(x) * scale + shift; the weight goes into the scale, which is small if it broadcasts."""
    return rms_normalize(x, norm.eps) * (norm.weight * scale) + shift


def rms_normalize(x: Float[Tensor, "... d"], eps: float) -> Float[Tensor, "... d"]:
    """Divide x by sqrt(mean(x²) + eps)."""
    if is_eager_float32_cpu(x):
        return RmsNormalize.apply(x, eps)[0]
    return F.rms_norm(x, x.shape[-1:], eps=eps)


class RmsNormalize(torch.autograd.Function):
    """y = x r with r = 1 / sqrt(mean(x²) + eps), and r.

    It exists because PyTorch has a fused RMSNorm on CUDA only: on a CPU it records five operators
    and keeps x and y. Here the derivative r (g - y mean(g y)) takes four passes and keeps y, which
    the next layer keeps too.
    """

    @staticmethod
    def forward(ctx, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        r = square.div_(x.shape[-1]).add_(eps).rsqrt_()
        y = x * r
        ctx.save_for_backward(y, r)
        ctx.set_materialize_grads(False)
        return y, r

    @staticmethod
    def backward(ctx, grad: Tensor | None, grad_r: Tensor | None) -> tuple[Tensor | None, None]:
        y, r = ctx.saved_tensors
        if grad is None and grad_r is None:
            return None, None
        along = 0.0 if grad is None else (grad * y).mean(-1, keepdim=True)
        if grad_r is not None:  # only in a second derivative
            along = along + grad_r * r / y.shape[-1]
        dx = -y * along if grad is None else torch.addcmul(grad, y, along, value=-1)
        return dx * r, None
