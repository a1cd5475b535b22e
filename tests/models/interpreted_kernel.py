"""The Triton kernel of pixels beside its formula, as a script that Triton interprets on the CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelhdm.models import blocks, triton_norm
from pixelhdm.models.pixel_kernel import choose_pixel_kernel
from tests.models.compiled_networks import batch, pixelhdm, results

SHAPES = ((2, 3, 5, 16), (1, 7, 37, 16), (3, 4, 33, 12), (1, 1, 1, 8))


def plain(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, eps: float) -> Tensor:
    normed = F.rms_norm(x.float(), x.shape[-1:], eps=eps)
    return (normed * (weight * (1 + a.float())) + b.float()).to(x.dtype)


def check(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    """Values and gradients, of modulations that are chunks of one tensor."""
    six = torch.randn(*shape[:-1], 6 * shape[-1]).to(dtype).requires_grad_()
    x, weight = torch.randn(shape).to(dtype).requires_grad_(), torch.randn(shape[-1])
    inputs = (x, weight.requires_grad_(), six)
    found = []
    for form in (triton_norm.modulated_rms_norm, plain):
        _, a, b, *_ = six.chunk(6, dim=-1)
        y = form(x, weight, a, b, 1e-6)
        ramp = torch.linspace(-1, 1, y.numel()).view_as(y).to(dtype)
        found.append((y, *torch.autograd.grad(y, inputs, ramp)))
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        size = float(theirs.detach().abs().max())
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * size)


def check_network() -> None:
    """All pixel blocks use it where it was chosen."""
    network, inputs = pixelhdm(), batch(2, 8, 16, 3, False)
    for own in network.parameters():
        nn.init.normal_(own, std=0.05)
    expected, calls = results(network, inputs), []
    torch.cuda.is_available = lambda: True
    assert choose_pixel_kernel(network, "triton")
    for block in network.pixel_blocks:
        kernel = block.kernel
        block.kernel = lambda *given, kernel=kernel: calls.append(1) or kernel(*given)
    for ours, theirs in zip(results(network, inputs), expected, strict=True):
        size = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * size)
    assert len(calls) == 4
    assert choose_pixel_kernel(network, "plain")
    results(network, inputs)
    assert len(calls) == 4


if __name__ == "__main__":
    torch.manual_seed(0)
    blocks.IS_INTERPRETED = True
    triton_norm.ROWS, triton_norm.MAX_PROGRAMS = 16, 3  # programs of several tiles
    for shape in SHAPES:
        check(shape, torch.float32, 1e-5)
        check(shape, torch.bfloat16, 1e-2)
    check_network()
