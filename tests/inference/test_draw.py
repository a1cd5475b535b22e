import pytest
import torch
from torch import Tensor

from pixelhdm.inference.draw import Drawing, draw_images
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.model import Model
from pixelhdm.inference.noise import SeededNoise
from pixelhdm.inference.request import Request
from pixelhdm.inference.samplers import EulerSampler, HeunSampler, Sampler
from pixelhdm.inference.time_grid import TimeGrid
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.training.flow import FlowMatching
from tests.stubs import perturb, tiny_network

CLASSES, SEEDS = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([7, 7, 8, 9, 10])


def images(
    classes: Tensor = CLASSES,
    seeds: Tensor = SEEDS,
    flow: FlowMatching = FlowMatching(),
    sampler: Sampler = HeunSampler(3),
    scale: float = 2.0,
) -> Tensor:
    network, conditioner = perturb(tiny_network(), std=0.05), ClassConditioner(32, 3, num_tokens=2)
    model = Model(network, perturb(conditioner), flow)
    drawing = Drawing(sampler, Guidance(scale), TimeGrid())
    return draw_images(model, drawing, Request(classes, seeds.tolist(), 4, 6))


def pixels(drawn: Tensor) -> Tensor:
    return ((drawn + 1) * 127.5).round().to(torch.int16)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_same_class_and_seed_give_the_same_picture_at_any_batch_size(batch_size, scale):
    """Within one level of 255: sums in another order may round differently."""
    whole = pixels(images(scale=scale))
    parts = zip(CLASSES.split(batch_size), SEEDS.split(batch_size), strict=True)
    apart = torch.cat([pixels(images(*part, scale=scale)) for part in parts])
    assert (whole - apart).abs().max() <= 1
    assert len(whole.unique()) > 50


def test_pictures_differ_by_class_and_by_seed():
    drawn = images().flatten(1)
    assert (torch.cdist(drawn, drawn) + torch.eye(5) > 0.01).all()


def test_pictures_lie_in_range_and_carry_no_graph():
    drawn = images(scale=30.0)
    assert drawn.min() == -1
    assert drawn.max() == 1
    assert not drawn.requires_grad


@pytest.mark.parametrize("prediction", ["v", "x"])
@pytest.mark.parametrize(
    ("settings", "strength"),
    [
        ({}, 1),
        ({"noise_scale": 2.0}, 2),
        ({"noise_scale": 0.5, "reference_size": 2, "noise_scale_power": 2.0}, 3),  # 4x6 pixels
    ],
)
def test_first_call_sees_the_noise_at_the_flows_strength(
    prediction, settings, strength, monkeypatch
):
    flow, seen = FlowMatching(prediction, **settings), []
    velocity = FlowMatching.velocity
    monkeypatch.setattr(
        FlowMatching,
        "velocity",
        lambda self, p, z, t: seen.append((z, t)) or velocity(self, p, z, t),
    )
    images(flow=flow, sampler=EulerSampler(1), scale=1.0)
    z, t = seen[0]
    torch.testing.assert_close(
        z.double(), 0.95 * strength * SeededNoise(SEEDS.tolist(), 4, 6).first
    )
    torch.testing.assert_close(t, torch.full((5,), 0.05))


def test_a_new_x_network_draws_grey():
    """It predicts x = 0 everywhere, and the flow to a known image is straight."""
    network, conditioner = tiny_network(), ClassConditioner(32, 3)
    for sampler in (EulerSampler(4), HeunSampler(4)):
        drawing = Drawing(sampler, Guidance(1.5), TimeGrid())
        request = Request(CLASSES, SEEDS.tolist(), 4, 4)
        drawn = draw_images(Model(network, conditioner, FlowMatching("x")), drawing, request)
        torch.testing.assert_close(drawn, torch.zeros(5, 4, 4, 3), rtol=0, atol=1e-6)


def test_noise_belongs_to_its_seed():
    noise = SeededNoise(SEEDS.tolist(), 16, 16).first
    assert torch.equal(noise[0], noise[1])
    assert torch.equal(SeededNoise(SEEDS[3:4].tolist(), 16, 16).first[0], noise[3])
    assert (noise[2] - noise[3]).abs().mean() > 0.5
    assert noise[1:].mean().abs() < 0.1
    assert noise.std().item() == pytest.approx(1, abs=0.05)


def test_noise_is_float32_where_bfloat16_is_the_default():
    torch.set_default_dtype(torch.bfloat16)  # as precision bf16-true does during a step
    try:
        noise = SeededNoise(SEEDS.tolist(), 4, 4).first
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(noise, SeededNoise(SEEDS.tolist(), 4, 4).first)
