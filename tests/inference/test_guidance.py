import math
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from pixelhdm.errors import UserError
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.model import Model
from pixelhdm.inference.samplers import Velocity
from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.routing import TokenRouting
from pixelhdm.training.draws import SeededRoutes
from pixelhdm.training.flow import FlowMatching
from tests.stubs import HashConditioner, context, perturb, randn, tiny_network

Z, T = randn(2, 4, 4, 3), 0.3
GIVEN, AWAY = context(2, 3), context(2, 3, seed=9)


class Asked(Model):
    """A model that counts the rows it is asked about, call by call."""

    rows: ClassVar[list[int]] = []
    masked: ClassVar[list[bool]] = []

    def velocity(self, z: Tensor, t: float, context: Context) -> Tensor:
        self.rows.append(len(z))
        self.masked.append(context.mask is not None)
        return super().velocity(z, t, context)


@pytest.fixture
def model() -> Asked:
    Asked.rows, Asked.masked = [], []
    return Asked(perturb(tiny_network()), HashConditioner(32), FlowMatching())


def never(conditioner: HashConditioner) -> Context:
    raise AssertionError("it is not needed")


def guided(guidance: Guidance, model: Asked, t: float = T, away: Context = AWAY) -> Tensor:
    velocity = guidance.velocity(model, lambda _: GIVEN, lambda _: away, [0, 1])
    with torch.no_grad():
        return velocity(Z, t)


def alone(model: Asked, given: Context, t: float = T) -> Tensor:
    with torch.no_grad():
        return Model(*model).velocity(Z, t, given)


def test_scale_one_is_the_conditional_prediction_alone(model):
    velocity = Guidance(1.0).velocity(model, lambda _: GIVEN, never, [0, 1])
    with torch.no_grad():
        assert torch.equal(velocity(Z, T), alone(model, GIVEN))
    assert model.rows == [2]


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 2.0, 7.5])
@pytest.mark.parametrize("null_length", [3, 1, 0, 5])
def test_guidance_is_its_formula_whatever_the_lengths(model, scale, null_length):
    away = context(2, null_length, seed=9)
    c, u = alone(model, GIVEN), alone(model, away)
    found = guided(Guidance(scale), model, away=away)
    torch.testing.assert_close(found, u + scale * (c - u), rtol=1e-4, atol=1e-4)
    assert (c - u).abs().max() > 0.01
    assert model.rows == [4]  # both halves in one call
    assert model.masked == [null_length != 3]


def test_another_strength_leaves_the_first_alone():
    first = Guidance(2.0, rescale=0.5)
    assert [first.at(scale).scale for scale in (None, 0.0, 5.0)] == [2.0, 0.0, 5.0]
    assert first.at(5.0).rescale == 0.5
    assert first.scale == 2.0


@pytest.mark.parametrize(
    ("schedule", "halfway"),
    [
        ("constant", 5.0),
        ("linear", 3.5),
        ("cosine", 3.5),
        ("quadratic", 5.0 - 3.0 * 0.25),
    ],
)
def test_schedules_lead_from_scale_to_end_scale(model, schedule, halfway):
    guidance = Guidance(5.0, schedule=schedule, end_scale=2.0)
    assert guidance.scale_at(0.0) == 5.0
    assert guidance.scale_at(0.5) == pytest.approx(halfway)
    assert guidance.scale_at(1.0) == (5.0 if schedule == "constant" else 2.0)
    found = [guidance.scale_at(k / 100) for k in range(101)]
    assert found == sorted(found, reverse=True)
    c, u = alone(model, GIVEN, 0.5), alone(model, AWAY, 0.5)
    wanted = u + guidance.scale_at(0.5) * (c - u)
    torch.testing.assert_close(guided(guidance, model, 0.5), wanted, rtol=1e-4, atol=1e-4)


def test_cosine_is_steepest_in_the_middle():
    guidance = Guidance(3.0, schedule="cosine", end_scale=1.0)
    assert guidance.scale_at(0.25) == pytest.approx(1 + 2 * (1 + math.cos(math.pi / 4)) / 2)


def test_outside_of_the_interval_only_the_condition_is_asked_for(model):
    guidance = Guidance(3.0, interval=(0.3, 0.7))
    for t in (0.0, 0.29, 0.71, 0.95):
        assert torch.equal(guided(guidance, model, t), alone(model, GIVEN, t))
    assert model.rows == [2] * 4
    model.rows.clear()
    for t in (0.3, 0.5, 0.7):
        wanted = guided(Guidance(3.0), model, t)
        assert torch.equal(guided(guidance, model, t), wanted)
    assert model.rows == [4] * 6


def test_a_schedule_that_ends_at_1_asks_for_one_half_there(model):
    guidance = Guidance(3.0, schedule="linear")
    guided(guidance, model, 0.5)
    guided(guidance, model, 1 - 1e-9)
    assert guidance.scale_at(1.0) == 1.0
    assert model.rows == [4, 4]


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_guidance_is_off_where_the_scale_is_always_1(model, schedule):
    assert Guidance(1.0, schedule=schedule).is_off
    assert not Guidance(3.0, schedule=schedule).is_off
    assert Guidance(1.0, schedule=schedule, end_scale=2.0).is_off == (schedule == "constant")


@pytest.mark.parametrize("rescale", [0.3, 0.7, 1.0])
def test_rescale_brings_each_image_to_the_spread_of_its_condition(model, rescale):
    c, plain = alone(model, GIVEN), guided(Guidance(8.0), model)
    found = guided(Guidance(8.0, rescale=rescale), model)
    for own, wide, wanted in zip(found, plain, c, strict=True):
        factor = rescale * wanted.std() / (wide.std() + 1e-8) + 1 - rescale
        assert abs(factor - 1) > 0.01
        torch.testing.assert_close(own, wide * factor, rtol=1e-4, atol=1e-5)
        if rescale == 1:
            assert own.std().item() == pytest.approx(wanted.std().item(), rel=1e-4)


def test_a_flat_prediction_stays_finite_when_it_is_rescaled():
    zero = torch.zeros(2, 4, 4, 3)
    assert torch.equal(Guidance(2.0, rescale=1.0).rescaled(zero, zero), zero)


def test_negative_prompts_have_no_effect_where_nothing_leads_away():
    assert Guidance(2.0).idle_negative is None
    assert Guidance(2.0).at(1.0).idle_negative.startswith("at guidance scale 1. Raise it")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": math.inf}, "scale must be a finite number, got inf"),
        ({"scale": math.nan}, "scale must be a finite number, got nan"),
        ({"end_scale": math.nan}, "end_scale must be a finite number, got nan"),
        ({"interval": (0.5, 0.5)}, r"interval must be two rising times .* got \(0.5, 0.5\)"),
        ({"interval": (-0.1, 0.5)}, "interval must be two rising times"),
        ({"interval": (0.1, 1.5)}, "interval must be two rising times"),
        ({"interval": (0.1, math.nan)}, "interval must be two rising times"),
        ({"rescale": 1.5}, "rescale must lie in 0 … 1, got 1.5"),
        ({"rescale": math.nan}, "rescale must lie in 0 … 1, got nan"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message):
        Guidance(**settings)


@pytest.fixture
def routing(model: Asked) -> Asked:
    """A model whose images of 4x4 pixels have 4 tokens, 2 of which go around the second block."""
    model.network.take_routing(TokenRouting(min_tokens=4), 3)
    return model


def calls(velocity: Velocity, num: int = 1, z: Tensor = Z) -> Tensor:
    """The last of several calls."""
    with torch.no_grad():
        return [velocity(z, T) for _ in range(num)][-1]


def routed(model: Asked, scale: float = 3.0, num: int = 1, of: slice = slice(None)) -> Tensor:
    """The velocity of images of the seeds 5 and 6 after some calls."""
    seeds, given = [5, 6][of], Context(*(part if part is None else part[of] for part in GIVEN))
    guidance = Guidance(scale, routed=True)
    return calls(guidance.velocity(model, lambda _: given, never, seeds), num, Z[of])


def test_routed_guidance_leads_away_from_the_routed_prediction(routing):
    route = SeededRoutes([5, 6]).fresh(routing.network, 4, 4, Z.device)
    c, u = alone(routing, GIVEN), alone(routing, GIVEN._replace(route=route))
    assert (c - u).abs().max() > 0.01
    torch.testing.assert_close(routed(routing), u + 3.0 * (c - u))
    assert routing.rows == [2, 2]  # a call each
    assert torch.equal(routed(routing, scale=1.0), c)


def test_routes_are_new_in_each_call_and_each_images_own(routing):
    assert not torch.equal(routed(routing, num=1), routed(routing, num=2))
    for number, one in enumerate((slice(0, 1), slice(1, 2))):
        wanted = routed(routing, num=3)[number : number + 1]
        torch.testing.assert_close(routed(routing, num=3, of=one), wanted)


def test_outside_of_the_interval_no_route_is_taken(routing):
    guidance = Guidance(3.0, interval=(0.5, 0.7), routed=True)
    velocity = guidance.velocity(routing, lambda _: GIVEN, never, [5, 6])
    assert torch.equal(calls(velocity), alone(routing, GIVEN))


def test_routed_guidance_needs_a_route_and_its_place(model, tmp_path):
    (tmp_path / "weak.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match=r"guidance.weak must be empty beside guidance.routed"):
        Guidance(2.0, weak=str(tmp_path / "weak.ckpt"), routed=True)
    with pytest.raises(UserError, match=r"routed must be false for a network without routing"):
        routed(model)
    assert torch.equal(routed(model, scale=1.0), alone(model, GIVEN))
    model.network.take_routing(TokenRouting(min_tokens=5), 3)
    with pytest.raises(UserError, match=r"4x4, whose 4 tokens are fewer than min_tokens=5"):
        routed(model)
    assert Guidance(2.0, routed=True).idle_negative.startswith("beside routed guidance, which")
