"""The gate of SwiGLU with less memory."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pixelhdm.models.cpu import is_eager


def silu_product(
    gate: Float[Tensor, "... d"], up: Float[Tensor, "... d"]
) -> Float[Tensor, "... d"]:
    """SiLU(gate) * up."""
    return SiluProduct.apply(gate, up) if is_eager() else F.silu(gate) * up


class SiluProduct(torch.autograd.Function):
    """SiLU(gate) * up that keeps gate and up alone.

    It exists because autograd would keep SiLU(gate) too, a quarter of what a SwiGLU layer keeps;
    computing it once more is one pass over the memory. torch.compile finds that by itself.
    """

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative, which silu_backward does not have
            sigmoid = torch.sigmoid(gate)
            return grad * up * sigmoid * (1 + gate * (1 - sigmoid)), F.silu(gate) * grad
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)
