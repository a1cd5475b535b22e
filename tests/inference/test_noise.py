import pytest
import torch

from pixelhdm.inference.noise import SeededNoise

SEEDS = [7, 7, 8, 9, 10]


def test_noise_belongs_to_its_seed():
    noise = SeededNoise(SEEDS, 16, 16).first
    assert noise.shape == (5, 16, 16, 3)
    assert torch.equal(noise[0], noise[1])
    assert torch.equal(SeededNoise(SEEDS[3:4], 16, 16).first[0], noise[3])
    assert (noise[2] - noise[3]).abs().mean() > 0.5
    assert noise[1:].mean().abs() < 0.1
    assert noise.std().item() == pytest.approx(1, abs=0.05)


def test_fresh_noise_belongs_to_its_seed_too():
    whole, alone = SeededNoise(SEEDS, 8, 8), SeededNoise(SEEDS[2:3], 8, 8)
    for _ in range(3):
        own = whole.fresh()
        assert torch.equal(own[2:3], alone.fresh())
        assert torch.equal(own[0], own[1])
        assert (own - whole.first).abs().mean() > 0.5
        assert abs((own[2:] * whole.first[2:]).mean().item()) < 0.2  # independent


def test_noise_is_as_strong_as_it_is_asked_for():
    plain, strong = SeededNoise([1], 32, 32), SeededNoise([1], 32, 32, strength=2.0)
    assert torch.equal(strong.first, 2 * plain.first)
    assert torch.equal(strong.fresh(), 2 * plain.fresh())


def test_noise_is_drawn_in_float32_where_bfloat16_is_the_default():
    torch.set_default_dtype(torch.bfloat16)  # as precision bf16-true does during a step
    try:
        noise = SeededNoise(SEEDS, 4, 4).first
    finally:
        torch.set_default_dtype(torch.float32)
    assert noise.dtype == torch.float64
    assert torch.equal(noise, SeededNoise(SEEDS, 4, 4).first)
