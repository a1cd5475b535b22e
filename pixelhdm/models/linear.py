"""A linear layer that takes the faster of PyTorch's two float32 matrix libraries on a CPU."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pixelhdm.models.cpu import is_eager_float32_cpu

MIN_ROWS, MIN_PRODUCTS = 256, 2**25
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Linear(nn.Linear):
    """nn.Linear, computed by oneDNN where that is faster: float32 on a CPU, and not small.

    PyTorch gives float32 products to MKL and keeps oneDNN for bfloat16. On an AMD core with AVX-512
    oneDNN is 8 % faster on square products and up to 15 % on those of the network; a training step
    takes a tenth less time. Everywhere else (CUDA, autocast, torch.compile, torch.func, small
    products) this is nn.Linear.
    """

    def forward(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        if self.takes_onednn(x):
            return OneDnnLinear.apply(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)

    def takes_onednn(self, x: Tensor) -> bool:
        """Whether the product is large, eager, float32 and on a CPU."""
        return (
            HAS_ONEDNN
            and is_eager_float32_cpu(x)  # first: a compiler would tie its graph to the size below
            and x.numel() * self.out_features >= MIN_PRODUCTS
            and self.weight.dtype == torch.float32
        )


class OneDnnLinear(torch.autograd.Function):
    """x W^T + bias whose three products (output, dx, dW) go through `product`.

    It exists because PyTorch's operator for oneDNN has no derivative. It keeps what F.linear keeps:
    x and W.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x.flatten(0, -2), weight.t(), bias).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        dx = product(rows, weight).unflatten(0, x.shape[:-1]) if ctx.needs_input_grad[0] else None
        dw = product(rows.t(), x.flatten(0, -2)) if ctx.needs_input_grad[1] else None
        return dx, dw, rows.sum(0) if ctx.needs_input_grad[2] else None


def product(
    a: Float[Tensor, "n m"], b: Float[Tensor, "m k"], bias: Float[Tensor, "k"] | None = None
) -> Float[Tensor, "n k"]:
    """Multiply and add a bias; by oneDNN where it is faster and no second derivative is wanted."""
    wide = a.shape[0] >= MIN_ROWS and a.numel() * b.shape[1] >= MIN_PRODUCTS
    if wide and not torch.is_grad_enabled():
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")
    return a @ b if bias is None else torch.addmm(bias, a, b)
