import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pixelhdm.errors import UserError
from pixelhdm.inference.samplers import EulerSampler, HeunSampler, Sampler
from tests.stubs import randn

SAMPLERS = [EulerSampler, HeunSampler]
MEAN, STD, T_EPS = 0.7, 0.3, 0.05
X, NOISE = randn(2, 2, 3, 3).clamp(-1, 1), randn(2, 2, 3, 3, seed=5)


def spread(t: float | Tensor) -> float | Tensor:
    """Standard deviation of z_t for data N(MEAN, STD²)."""
    return (t**2 * STD**2 + (1 - t) ** 2) ** 0.5


def gaussian_velocity(z: Tensor, t: Tensor) -> Tensor:
    """E[x - noise | z_t = z] for data N(MEAN, STD²)."""
    return MEAN + (t * STD**2 - (1 - t)) / spread(t) ** 2 * (z - t * MEAN)


def error(sampler: Sampler) -> float:
    """Distance of a solution from the exact map of the probability flow."""
    z = NOISE.double()
    times = torch.linspace(T_EPS, 1 - T_EPS, sampler.num_steps + 1, dtype=torch.float64)
    exact = (1 - T_EPS) * MEAN
    exact = exact + spread(1 - T_EPS) / spread(T_EPS) * (z - T_EPS * MEAN)
    return (sampler.solve(gaussian_velocity, z, times) - exact).abs().max().item()


@pytest.mark.parametrize(("sampler", "order"), [(EulerSampler, 1), (HeunSampler, 2)])
def test_order_of_convergence(sampler, order):
    errors = [error(sampler(num)) for num in (40, 80, 160, 320)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)
    assert errors[-1] < 2 * 0.01**order


def straight(z: Tensor, t: Tensor) -> Tensor:
    return X - NOISE


def towards_x(z: Tensor, t: Tensor) -> Tensor:
    return (X - z) / (1 - t)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 2, 7, 50])
@pytest.mark.parametrize("velocity", [straight, towards_x])
def test_a_straight_flow_comes_out_exactly(sampler, num_steps, velocity):
    drawn = sampler(num_steps).sample(velocity, NOISE, T_EPS)
    torch.testing.assert_close(drawn, X, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("sampler", "calls"), [(EulerSampler, 1), (HeunSampler, 2)])
@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("t_eps", [0.05, 0.1])
def test_calls_of_the_network(sampler, calls, num_steps, t_eps):
    seen: list[tuple[Tensor, Tensor]] = []

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        seen.append((z, t))
        return X - NOISE

    sampler(num_steps).sample(velocity, NOISE, t_eps)
    assert len(seen) == calls * num_steps + 2
    for z, t in seen[1:]:  # on the path, at the very time that the network is told
        torch.testing.assert_close(z, t * X + (1 - t) * NOISE, rtol=0, atol=1e-5)
    times = [t.item() for _, t in seen]
    assert times == sorted(times)
    assert times[0] == pytest.approx(t_eps)
    assert times[-1] == pytest.approx(1 - t_eps)
    torch.testing.assert_close(seen[0][0], (1 - t_eps) * NOISE)  # as strong as training saw it


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_of_a_gaussian_have_its_mean_and_spread(sampler):
    drawn = sampler(100).sample(gaussian_velocity, randn(1, 100, 100, 3), T_EPS)
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert drawn.std().item() == pytest.approx(STD, rel=0.06)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_keep_nothing_between_calls(sampler):
    one = sampler(5)
    first = one.sample(gaussian_velocity, NOISE, T_EPS)
    one.sample(gaussian_velocity, X, T_EPS)
    assert torch.equal(one.sample(gaussian_velocity, NOISE, T_EPS), first)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_wrong_number_of_steps(sampler):
    with pytest.raises(UserError, match="num_steps must be at least 1, got 0"):
        sampler(0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_times_and_state_are_float32_where_bfloat16_is_the_default(sampler):
    seen = []

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        seen.append((z.dtype, t.dtype))
        return X - NOISE

    torch.set_default_dtype(torch.bfloat16)  # as precision bf16-true does during a step
    try:
        drawn = sampler(10).sample(velocity, NOISE, T_EPS)
    finally:
        torch.set_default_dtype(torch.float32)
    assert set(seen) == {(torch.float32, torch.float32)}
    torch.testing.assert_close(drawn, X, rtol=0, atol=1e-5)
