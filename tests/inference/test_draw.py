import pytest
import torch
from torch import Tensor

from pixelhdm.inference.draw import Drawing, draw_images
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.model import Model
from pixelhdm.inference.noise import SeededNoise
from pixelhdm.inference.request import Request, Start
from pixelhdm.inference.samplers import (
    AdamsSampler,
    DPM2MSampler,
    DPM2SSampler,
    EulerSampler,
    HeunSampler,
    Sampler,
    SDESampler,
)
from pixelhdm.inference.time_grid import TimeGrid
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.network import Network, Prediction
from pixelhdm.training.flow import FlowMatching
from tests.stubs import perturb, randn, tiny_network

SAMPLERS = [
    EulerSampler(),
    HeunSampler(),
    AdamsSampler(order=2),
    AdamsSampler(order=4),
    DPM2MSampler(),
    DPM2SSampler(),
    SDESampler(),
]
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda own: own.name)
each_span = pytest.mark.parametrize("span", ["trained", "full"])
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


class Gaussian(Network):
    """The exact network for pixels of N(0.1, 0.2²) under noise of a strength; counts its calls.

    Args:
        prediction: v or x.
        strength: of the noise.
    """

    def __init__(self, prediction: str, strength: float):
        super().__init__(32, 1)
        self.prediction, self.strength, self.times = prediction, strength, []
        self.one = torch.nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor, t: Tensor, context: Context) -> Prediction:
        time = t[0].double()
        self.times.append(float(time))
        precision = time * 0.2**2 / ((time * 0.2) ** 2 + ((1 - time) * self.strength) ** 2)
        x = 0.1 + precision * (z.double() - time * 0.1)
        output = x if self.prediction == "x" else (x - z) / (1 - time)
        return Prediction(output.float(), context.tokens)


def gaussian(prediction: str = "v", strength: float = 1.0) -> Model:
    flow = FlowMatching(prediction, noise_scale=strength)
    return Model(Gaussian(prediction, strength), ClassConditioner(32, 3), flow)


@each_sampler
@each_span
@pytest.mark.parametrize("num_steps", [1, 2, 6])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_calls_of_the_network_are_counted_truly(sampler, span, num_steps, scale):
    model = gaussian()
    drawing = Drawing(sampler.with_steps(num_steps), Guidance(scale), TimeGrid(span))
    draw_images(model, drawing, Request(CLASSES, SEEDS.tolist(), 4, 4))
    assert len(model.network.times) == drawing.num_calls
    assert model.network.times == sorted(model.network.times)


@each_sampler
@each_span
@pytest.mark.parametrize("prediction", ["v", "x"])
@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_samples_have_the_mean_and_the_spread_of_the_data(sampler, span, prediction, strength):
    """From t_eps on the start lacks the data's part, which a straight first step makes up for."""
    model = gaussian(prediction, strength)
    drawing = Drawing(sampler.with_steps(100), Guidance(1.0), TimeGrid(span))
    drawn = draw_images(model, drawing, Request(CLASSES[:2], [1, 2], 64, 64))
    assert drawn.mean().item() == pytest.approx(0.1, abs=0.01)
    assert drawn.std().item() == pytest.approx(0.2, rel=0.15)


@each_sampler
def test_images_do_not_depend_on_their_company(sampler):
    whole, alone = (
        draw_images(
            gaussian(),
            Drawing(sampler.with_steps(5), Guidance(1.0), TimeGrid()),
            Request(CLASSES[part], SEEDS[part].tolist(), 4, 4),
        )
        for part in (slice(None), slice(2, 3))
    )
    torch.testing.assert_close(whole[2:3], alone, rtol=0, atol=1e-6)
    assert torch.equal(whole[0], whole[1]) == (SEEDS[0] == SEEDS[1]).item()


class Known(Network):
    """A network that knows the image."""

    def __init__(self, image: Tensor):
        super().__init__(32, 1)
        self.image = torch.nn.Parameter(image)

    def forward(self, z: Tensor, t: Tensor, context: Context) -> Prediction:
        return Prediction(self.image.expand(z.shape), context.tokens)


@each_sampler
@pytest.mark.parametrize("num_steps", [1, 2, 9])
@pytest.mark.parametrize(("span", "shift"), [("trained", 1.0), ("trained", 3.0), ("full", 3.0)])
def test_a_known_image_comes_out_exactly(sampler, num_steps, span, shift):
    image = randn(1, 4, 4, 3).clamp(-1, 1)
    model = Model(Known(image), ClassConditioner(32, 3), FlowMatching("x"))
    drawing = Drawing(sampler.with_steps(num_steps), Guidance(2.0), TimeGrid(span, shift))
    for start in (None, Start(randn(1, 4, 4, 3, seed=3).clamp(-1, 1).double(), 0.5)):
        request = Request(CLASSES[:1], [3], 4, 4, start=start)
        torch.testing.assert_close(draw_images(model, drawing, request), image, rtol=0, atol=1e-5)


@each_sampler
def test_pictures_are_the_same_where_bfloat16_is_the_default(sampler):
    drawing = Drawing(sampler.with_steps(4), Guidance(1.0), TimeGrid())
    model, request = gaussian(), Request(CLASSES, SEEDS.tolist(), 4, 4)
    wanted = draw_images(model, drawing, request)
    torch.set_default_dtype(torch.bfloat16)  # as precision bf16-true does during a step
    try:
        found = draw_images(model, drawing, request)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, wanted)
