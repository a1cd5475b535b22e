"""Every rewritten piece equals its plain formula, in value, first and second derivatives."""

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from pixelhdm.models import linear
from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.cpu import is_eager_float32_cpu
from pixelhdm.models.linear import Linear, OneDnnLinear
from pixelhdm.models.norm import RMSNorm, RmsNormalize, modulated_norm
from pixelhdm.models.pixelhdm import PixelHDM
from pixelhdm.models.rope import rotate, rotation
from pixelhdm.models.silu_product import SiluProduct, silu_product


def grads(out: Tensor, *inputs: Tensor) -> list[Tensor]:
    weight = torch.linspace(-1, 1, out.numel()).view_as(out)
    return list(torch.autograd.grad(out, inputs, weight.to(out.dtype)))


def assert_same(fast: Tensor, plain: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(grads(fast, *inputs), grads(plain, *inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5 * float(theirs.abs().max()))


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("bias", [True, False])
def test_linear_by_onednn_is_linear(bias: bool) -> None:
    layer = Linear(320, 512, bias=bias)
    x = leaf(2, 256, 320)
    assert layer.takes_onednn(x)
    assert_same(layer(x), F.linear(x, layer.weight, layer.bias), x, *layer.parameters())


def test_linear_takes_tall_and_transposed_input() -> None:
    layer, x = Linear(16, 96), leaf(3, 16, 40_000)
    rows = rearrange(x, "b d n -> b n d")
    assert layer.takes_onednn(rows)
    assert_same(layer(rows), F.linear(rows, layer.weight, layer.bias), x, *layer.parameters())


def test_linear_leaves_everything_else_alone() -> None:
    layer, large = Linear(320, 512), torch.randn(512, 320)
    assert not layer.takes_onednn(torch.randn(4, 320))
    assert not layer.takes_onednn(large.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not layer.takes_onednn(large)
        assert layer(large).dtype == torch.bfloat16
    assert not layer.double().takes_onednn(large)
    assert not is_eager_float32_cpu(large.double())


def test_functional_transforms_work() -> None:
    layer, norm, x = Linear(320, 512, bias=False), RMSNorm(320, eps=1e-6), torch.randn(512, 320)

    def value(weight: Tensor) -> Tensor:
        return silu_product(F.linear(norm(x), weight), F.linear(x, weight)).square().mean()

    plain = torch.autograd.grad(value(layer.weight), layer.weight)[0]
    torch.testing.assert_close(
        torch.func.grad(value)(layer.weight.detach()), plain, rtol=1e-4, atol=1e-6
    )
    torch.func.jvp(layer, (x,), (x,))


@pytest.mark.parametrize("shape", [(2, 5, 64), (300, 16), (1, 4, 7, 32)])
def test_rms_norm_is_torchs(shape: tuple[int, ...]) -> None:
    norm, x = RMSNorm(shape[-1], eps=1e-6), leaf(*shape)
    nn.init.normal_(norm.weight)
    assert_same(norm(x), F.rms_norm(x, (shape[-1],), norm.weight, 1e-6), x, norm.weight)


def test_rms_norm_of_zeros_is_zero_with_a_finite_derivative() -> None:
    norm, x = RMSNorm(8, eps=1e-6), torch.zeros(3, 8, requires_grad=True)
    assert_same(norm(x), F.rms_norm(x, (8,), norm.weight, 1e-6), x)


def test_modulated_norm_is_the_formula() -> None:
    norm, x, scale, shift = RMSNorm(32, eps=1e-6), leaf(2, 9, 32), leaf(2, 1, 32), leaf(2, 1, 32)
    nn.init.normal_(norm.weight)
    plain = F.rms_norm(x, (32,), norm.weight, 1e-6) * scale + shift
    assert_same(modulated_norm(norm, x, scale, shift), plain, x, scale, shift, norm.weight)


def test_silu_product_is_the_formula() -> None:
    gate, up = leaf(5, 48), leaf(5, 48)
    assert_same(silu_product(gate, up), F.silu(gate) * up, gate, up)


@pytest.mark.parametrize("form", ["silu_product", "rms_normalize", "linear"])
def test_second_derivatives(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    double = torch.float64
    monkeypatch.setattr(linear, "MIN_PRODUCTS", 1e18)  # the library itself is float32 only
    a, b = leaf(4, 6, dtype=double), leaf(4, 6, dtype=double)
    if form == "silu_product":
        assert torch.autograd.gradgradcheck(SiluProduct.apply, (a, b))
    elif form == "rms_normalize":
        assert torch.autograd.gradgradcheck(lambda x: RmsNormalize.apply(x, 1e-2)[0], (a,))
    else:
        assert torch.autograd.gradgradcheck(OneDnnLinear.apply, (a, b, leaf(4, dtype=double)))


def test_rotation_turns_pairs_as_complex_numbers() -> None:
    x, positions = leaf(2, 3, 5, 16), torch.randint(0, 50, (2, 5, 2))
    by = rotation(positions, (8, 8), 100.0)
    power = 100.0 ** -(torch.arange(0, 8, 2) / 8)
    angle = rearrange(positions[..., None] * power, "b s axes d -> b 1 s (axes d)")
    pairs = torch.view_as_complex(
        rearrange(x, "b n s (d pair) -> b n s d pair", pair=2).contiguous()
    )
    plain = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle))
    assert_same(rotate(x, by), rearrange(plain, "b n s d pair -> b n s (d pair)"), x)


def test_network_equals_itself_without_the_cpu_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = PixelHDM(128, 16, 8, 2, 1, 4, 2, 32, (8, 12, 12), feature_block=1)
    for p in net.parameters():
        nn.init.normal_(p, std=0.05)
    context = Context(torch.randn(2, 3, 128), None, torch.randn(2, 128))
    z, t = torch.randn(2, 64, 128, 3), torch.rand(2)

    def run() -> tuple[Tensor, list[Tensor]]:
        out = net(z, t, context).output
        return out, grads(out, *net.parameters())

    fast, fast_grads = run()
    for module in ("linear", "norm"):
        monkeypatch.setattr(f"pixelhdm.models.{module}.is_eager_float32_cpu", lambda x: False)
    monkeypatch.setattr("pixelhdm.models.silu_product.is_eager", lambda: False)
    plain, plain_grads = run()
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(fast_grads, plain_grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


def test_default_network_keeps_its_size() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in PixelHDM().parameters()) == 356_708_483
