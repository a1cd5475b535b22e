import pytest
import torch
from torch import nn

from pixelhdm.models.layers import SwiGLU, TimeEmbedding, init_linear, patchify, unpatchify
from tests.stubs import randn


@pytest.mark.parametrize(("height", "width", "p"), [(4, 6, 2), (6, 3, 3), (5, 7, 1), (8, 8, 8)])
def test_unpatchify_is_the_inverse(height, width, p):
    image = randn(2, height, width, 3)
    patches = patchify(image, p)
    assert patches.shape == (2, height * width // p**2, 3 * p**2)
    assert torch.equal(unpatchify(patches, height, width, p), image)


def test_patches_come_row_by_row_with_features_row_column_channel():
    image = torch.arange(4 * 6 * 3).float().reshape(1, 4, 6, 3)
    patches = patchify(image, 2)
    for number, (row, column) in enumerate([(r, c) for r in (0, 2) for c in (0, 2, 4)]):
        cell = [image[0, row + i, column + j, k] for i in (0, 1) for j in (0, 1) for k in range(3)]
        assert patches[0, number].tolist() == cell


def sinusoids(t: torch.Tensor, **autocast: object) -> torch.Tensor:
    """What the time embedding's first Linear is given."""
    layer, seen = TimeEmbedding(8), []
    layer.mlp[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.autocast("cpu", torch.bfloat16, **autocast):
        layer(t)
    return seen[0]


@pytest.mark.parametrize("enabled", [False, True])
def test_time_stays_accurate_under_bfloat16(enabled):
    t = torch.linspace(0, 1, 101)
    frequency = 10_000.0 ** -(torch.arange(128, dtype=torch.float64) / 128)
    angle = 1000 * t.double()[:, None] * frequency
    given = sinusoids(t, enabled=enabled)
    assert given.dtype == torch.float32
    expected = torch.cat([angle.sin(), angle.cos()], dim=-1)
    torch.testing.assert_close(given.double(), expected, rtol=0, atol=1e-3)


def test_nearby_times_differ_under_bfloat16():
    layer = TimeEmbedding(64)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(torch.tensor([0.5000, 0.5005]))
    assert (out[0] - out[1]).float().norm() > 0.05 * out[0].float().norm()


def test_time_embedding_follows_a_bfloat16_module():
    layer = TimeEmbedding(8)
    exact = layer(torch.tensor([0.123]))
    rough = layer.bfloat16()(torch.tensor([0.123]))
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.05


def test_swiglu_is_its_formula():
    layer, x = SwiGLU(6, 10), randn(2, 3, 6)
    expected = layer.out(nn.functional.silu(layer.gate(x)) * layer.up(x))
    torch.testing.assert_close(layer(x), expected)
    assert sum(p.numel() for p in layer.parameters()) == 3 * 6 * 10


def test_generic_initialisation():
    layers = nn.Sequential(nn.Linear(30, 50), nn.Linear(50, 20, bias=False))
    init_linear(layers)
    for layer, size in zip(layers, (80, 70), strict=True):
        bound = (6 / size) ** 0.5
        assert 0.95 * bound < layer.weight.abs().max() <= bound
    assert (layers[0].bias == 0).all()
