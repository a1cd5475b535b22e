import math

import pytest
import torch
from torch import nn

from pixelhdm.models.attention import GatedAttention
from pixelhdm.models.blocks import PatchBlock, PixelBlock, PixelModulator, TokenCompaction
from pixelhdm.models.layers import SwiGLU, init_linear, init_special
from pixelhdm.models.rope import Rotation, image_positions, rotation
from tests.stubs import perturb, randn

DIM, AREA, D = 16, 4, 3


def attention() -> GatedAttention:
    return GatedAttention(DIM, 2, 1, 8)


def initialised(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    init_linear(module)
    init_special(module)
    return module


def by(length: int) -> Rotation:
    return rotation(image_positions(1, length, torch.zeros(1, dtype=torch.long)), (2, 2, 4), 1e4)


def pixel_block(form: str = "factored", post: bool = False) -> PixelBlock:
    compaction = TokenCompaction(D, AREA, DIM, attention())
    return initialised(PixelBlock(DIM, D, AREA, compaction, SwiGLU(D, 3 * D), form, post))


def test_new_patch_block_is_the_identity_and_a_trained_one_is_not():
    block, x, c = initialised(PatchBlock(DIM, attention(), 3.0)), randn(2, 5, DIM), randn(2, DIM)
    assert torch.equal(block(x, c, by(5)), x)
    assert (perturb(block)(x, c, by(5)) - x).abs().max() > 0.1


def test_new_patch_block_opens_by_its_gates_first():
    block, x = initialised(PatchBlock(DIM, attention(), 3.0)), randn(2, 5, DIM)
    block(x, randn(2, DIM), by(5)).square().sum().backward()
    a1, b1, g1, a2, b2, g2 = block.modulation.weight.grad.chunk(6)
    assert min(g1.abs().max(), g2.abs().max()) > 0
    assert max(part.abs().max() for part in (a1, b1, a2, b2)) == 0


def test_patch_block_is_its_formula():
    block, x, c = perturb(initialised(PatchBlock(DIM, attention(), 3.0))), randn(2, 5, DIM), None
    c = randn(2, DIM, seed=5)
    a1, b1, g1, a2, b2, g2 = (
        part[:, None] for part in block.modulation(nn.functional.silu(c)).chunk(6, dim=-1)
    )
    h = block.attention(block.pre_attention(x) * (1 + a1) + b1, by(5))
    y = x + g1 * block.post_attention(h)
    y = y + g2 * block.post_mlp(block.mlp(block.pre_mlp(y) * (1 + a2) + b2))
    torch.testing.assert_close(block(x, c, by(5)), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["factored", "full"])
def test_new_pixel_block_is_the_identity_and_a_trained_one_is_not(form):
    block, x, s = pixel_block(form), randn(2, 5, AREA, D), randn(2, 5, DIM)
    assert torch.equal(block(x, s, by(5)), x)
    assert (perturb(block)(x, s, by(5)) - x).abs().max() > 0.1


@pytest.mark.parametrize("form", ["factored", "full"])
@pytest.mark.parametrize("post", [False, True])
def test_pixel_block_is_its_formula(form, post):
    block, x, s = perturb(pixel_block(form, post)), randn(2, 5, AREA, D), randn(2, 5, DIM)
    if post:
        a1, b1, a2, b2 = block.modulator(s)
        y = x + block.compaction(block.norm1(x), by(5)) * (1 + a1) + b1
        y = y + block.mlp(block.norm2(y)) * (1 + a2) + b2
    else:
        a1, b1, g1, a2, b2, g2 = block.modulator(s)
        y = x + g1 * block.compaction(block.norm1(x) * (1 + a1) + b1, by(5))
        y = y + g2 * block.mlp(block.norm2(y) * (1 + a2) + b2)
    torch.testing.assert_close(block(x, s, by(5)), y, rtol=1e-5, atol=1e-5)


def test_new_post_modulated_block_adds_its_plain_branches():
    block, x, s = pixel_block(post=True), randn(2, 5, AREA, D), randn(2, 5, DIM)
    y = x + block.compaction(block.norm1(x), by(5))
    torch.testing.assert_close(block(x, s, by(5)), y + block.mlp(block.norm2(y)))


@pytest.mark.parametrize(("form", "count"), [("factored", 16 * 12 + 3 * 18 + 18), ("full", 1224)])
def test_modulator_has_its_form(form, count):
    modulator = perturb(PixelModulator(DIM, D, AREA, 6, form))
    assert sum(p.numel() for p in modulator.parameters()) == count
    parts = modulator(randn(2, 5, DIM))
    assert [tuple(part.shape) for part in parts] == [(2, 5, AREA, D)] * 6
    first = parts[0].detach()  # every pixel of a patch gets its own modulation, from its own patch
    assert (first[:, :, 0] - first[:, :, 1]).abs().min() > 0
    s = randn(2, 5, DIM)
    s[:, 3] += 1
    changed = (modulator(s)[0] - first).abs().amax(dim=(0, 2, 3)) > 0
    assert changed.tolist() == [False, False, False, True, False]


def test_expansion_starts_with_a_tenth_of_xavier():
    compaction = initialised(TokenCompaction(8, 16, DIM, attention()))
    bound = math.sqrt(6 / (DIM + 8 * 16))
    assert 0.09 * bound < compaction.expand.weight.abs().max() <= 0.1 * bound
    assert 0.9 * bound < compaction.compress.weight.abs().max() <= bound


def test_compaction_mixes_patches_and_keeps_the_order_of_pixels():
    compaction = perturb(initialised(TokenCompaction(D, AREA, DIM, attention())))
    x = randn(1, 5, AREA, D).requires_grad_()
    compaction(x, by(5))[0, 0, 0, 0].backward()
    assert (x.grad.abs().amax(dim=(0, 2, 3)) > 0).all()
    with torch.no_grad():
        row = compaction.expand.weight[1 * D + 2].clone()  # pixel 1, channel 2
        before = compaction(x, by(5))
        compaction.expand.weight[1 * D + 2] = row + 1
        changed = (compaction(x, by(5)) - before).abs().amax(dim=(0, 1)) > 0
    assert changed.nonzero().tolist() == [[1, 2]]
