from functools import cache

import pytest
import torch
from torch import Tensor

from pixelhdm.errors import UserError
from pixelhdm.inference.draw import Drawing, draw_images
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.model import Model
from pixelhdm.inference.noise import SeededNoise
from pixelhdm.inference.pixels import from_pixels, to_pixels
from pixelhdm.inference.request import Request, Start
from pixelhdm.inference.samplers import (
    AdamsSampler,
    DPM2MSampler,
    DPM2SSampler,
    EulerSampler,
    HeunSampler,
    Sampler,
    SDESampler,
    Step,
)
from pixelhdm.inference.time_grid import Span, TimeGrid
from pixelhdm.inference.way import from_image, from_noise, from_source
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.training.flow import FlowMatching
from tests.stubs import perturb, randn, tiny_network

SAMPLERS = [EulerSampler, HeunSampler, AdamsSampler, DPM2MSampler, DPM2SSampler, SDESampler]
CLASSES, SEEDS = torch.tensor([0, 2]), [7, 8]
PIXELS = (randn(2, 4, 6, 3, seed=4).sigmoid() * 255).round().to(torch.uint8)
IMAGE = from_pixels(PIXELS)
MASK = torch.zeros(2, 4, 6, 1)
MASK[:, 1:3, 2:5] = 1

each_sampler = pytest.mark.parametrize("sampler", SAMPLERS)
each_span = pytest.mark.parametrize("span", ["trained", "full"])


@cache
def model(prediction: str) -> Model:
    network = perturb(tiny_network(), std=0.05)
    conditioner = perturb(ClassConditioner(32, 3, num_tokens=2), std=1.0)
    return Model(network, conditioner, FlowMatching(prediction))


def drawn(
    start: Start | None,
    sampler: type[Sampler] = HeunSampler,
    span: Span = "trained",
    num_steps: int = 4,
    scale: float = 2.0,
    classes: Tensor = CLASSES,
    seeds: list[int] = SEEDS,
    prediction: str = "v",
    **on_step,
) -> Tensor:
    drawing = Drawing(sampler(num_steps), Guidance(scale), TimeGrid(span))
    request = Request(classes, seeds, 4, 6, start=start)
    return draw_images(model(prediction), drawing, request, **on_step)


@each_sampler
def test_strength_0_gives_the_image_back_to_the_bit(sampler):
    found = drawn(Start(IMAGE, 0.0), sampler)
    assert torch.equal(to_pixels(found), PIXELS)
    assert torch.equal(to_pixels(drawn(Start(IMAGE.float(), 0.0, MASK), sampler)), PIXELS)


def test_all_pixels_come_back():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(to_pixels(from_pixels(levels)), levels)
    assert torch.equal(to_pixels(from_pixels(levels).float()), levels)


@each_sampler
@each_span
def test_strength_1_ignores_the_image_to_the_bit(sampler, span):
    assert torch.equal(drawn(Start(IMAGE, 1.0), sampler, span), drawn(None, sampler, span))


@each_span
@pytest.mark.parametrize("sampler", [EulerSampler, DPM2MSampler])
def test_the_more_strength_the_further_from_the_image(sampler, span):
    far = [
        (drawn(Start(IMAGE, strength), sampler, span, num_steps=8) - IMAGE).abs().mean().item()
        for strength in (0.0, 0.05, 0.3, 0.6, 0.9)
    ]
    assert far == sorted(far)
    assert far[0] < 1e-6
    assert far[1] < 0.2 < far[-1]


@each_sampler
@pytest.mark.parametrize(("span", "prediction"), [("trained", "v"), ("full", "x")])
@pytest.mark.parametrize("strength", [1e-9, 0.02, 0.1 + 1e-17, 0.9, 0.97])
def test_strengths_near_the_ends_and_near_grid_times_stay_sound(
    sampler, span, prediction, strength
):
    found = drawn(Start(IMAGE, strength), sampler, span, num_steps=10, prediction=prediction)
    assert torch.isfinite(found).all()
    if strength < 1e-6:
        torch.testing.assert_close(found, IMAGE.float(), rtol=0, atol=1e-5)
    if not sampler.adds_noise:
        nearby = drawn(Start(IMAGE, strength * 0.9999), sampler, span, 10, prediction=prediction)
        assert (found - nearby).abs().max() < 0.05


def test_a_way_from_an_image_begins_on_the_path_to_it():
    noise, times = SeededNoise(SEEDS, 4, 6, strength=2.0), [0.05, 0.5, 0.95, 1.0]
    way = from_image(lambda z, t: z, noise, times, Start(IMAGE, 0.4))
    assert way.times == pytest.approx([0.6, 0.95, 1.0])
    torch.testing.assert_close(way.z, 0.6 * IMAGE + 0.4 * noise.first)


@pytest.mark.parametrize("start", [0.0, 0.05])
def test_the_opening_keeps_a_straight_flow_straight(start):
    noise = SeededNoise(SEEDS, 4, 6)
    asked = []

    def velocity(z: Tensor, t: float) -> Tensor:
        asked.append((z, t))
        return IMAGE - noise.first

    way = from_noise(velocity, noise, [start, 1.0])
    torch.testing.assert_close(way.z, start * IMAGE + (1 - start) * noise.first)
    assert [t for _, t in asked] == [start] * (start > 0)
    for z, _ in asked:
        torch.testing.assert_close(z, (1 - start) * noise.first)  # as strong as training saw it


@each_sampler
@each_span
@pytest.mark.parametrize("strength", [0.02, 0.5, 1.0])
def test_what_is_outside_of_the_mask_stays_to_the_bit(sampler, span, strength):
    found = to_pixels(drawn(Start(IMAGE, strength, MASK), sampler, span))
    outside = MASK.expand(-1, -1, -1, 3) == 0
    assert torch.equal(found[outside], PIXELS[outside])
    if strength > 0.1:
        assert (found[~outside] != PIXELS[~outside]).float().mean() > 0.5


@each_span
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_mask_of_ones_is_no_mask(span, strength):
    whole = drawn(Start(IMAGE, strength, torch.ones_like(MASK)), span=span)
    assert torch.equal(whole, drawn(Start(IMAGE, strength), span=span))


def test_a_mask_holds_at_every_step_and_in_what_is_seen():
    seen: list[Step] = []
    drawn(Start(IMAGE, 0.7, MASK), on_step=lambda step: seen.append(step) or step.z)
    noise, outside = SeededNoise(SEEDS, 4, 6).first, MASK.expand(-1, -1, -1, 3) == 0
    for step in seen[1:]:
        own = step.t * IMAGE + (1 - step.t) * noise
        assert torch.equal(step.z[outside], own[outside])
        assert torch.equal(step.clean[outside], IMAGE[outside])


def test_images_of_a_start_do_not_depend_on_their_company():
    start = Start(IMAGE, 0.8, MASK, source=torch.tensor([1, 1]))
    alone = start._replace(image=IMAGE[1:], mask=MASK[1:], source=torch.tensor([1]))
    for own, single in ((start, alone), (start._replace(source=None), alone._replace(source=None))):
        whole = drawn(own)
        torch.testing.assert_close(
            whole[1:], drawn(single, classes=CLASSES[1:], seeds=SEEDS[1:]), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("sampler", [own for own in SAMPLERS if not own.adds_noise])
@each_span
@pytest.mark.parametrize("strength", [0.02, 0.6, 1.0])
def test_an_edit_to_what_the_source_shows_gives_the_image_back(sampler, span, strength):
    start = Start(IMAGE, strength, source=CLASSES, source_scale=2.0)
    found = drawn(start, sampler, span)
    torch.testing.assert_close(found, IMAGE.float(), rtol=0, atol=1e-4)
    assert torch.equal(to_pixels(found), PIXELS)


def test_an_edit_leads_elsewhere_for_another_condition_and_within_the_mask_alone():
    start = Start(IMAGE, 0.8, source=torch.tensor([1, 1]), source_scale=1.0)
    found = drawn(start, scale=6.0)
    assert (found - IMAGE).abs().mean() > 0.01
    inside = drawn(start._replace(mask=MASK), scale=6.0)
    outside = MASK.expand(-1, -1, -1, 3) == 0
    assert torch.equal(to_pixels(inside)[outside], PIXELS[outside])
    assert (inside - IMAGE).abs()[~outside].mean() > 0.01


def test_an_edit_is_the_papers_formula():
    """Both velocities see the same noise, the target's image moved by the edit so far."""
    noise, twin = SeededNoise(SEEDS, 4, 6), SeededNoise(SEEDS, 4, 6)
    asked = []

    def target(z: Tensor, t: float) -> Tensor:
        asked.append(z)
        return 3 * z

    way = from_source(target, lambda z, t: 2 * z, noise, [0.05, 0.95, 1.0], Start(IMAGE, 0.5))
    assert torch.equal(way.z, IMAGE)
    assert way.times == [0.5, 0.95, 1.0]
    z, t = IMAGE + 1, 0.7
    source = t * IMAGE + (1 - t) * twin.fresh()
    torch.testing.assert_close(way.dynamics.velocity(z, t), 3 * (source + 1) - 2 * source)
    torch.testing.assert_close(asked[0], source + 1)


def test_what_cannot_be_meant():
    with pytest.raises(UserError, match=r"sampler must add no noise to edit .* got SDESampler"):
        drawn(Start(IMAGE, 0.5, source=CLASSES), SDESampler)
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="strength must lie in 0 … 1, where 0 gives the image"):
            drawn(Start(IMAGE, strength))
