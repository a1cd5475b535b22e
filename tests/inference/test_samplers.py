import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pixelhdm.errors import UserError
from pixelhdm.inference.samplers import (
    AdamsSampler,
    DPM2MSampler,
    DPM2SSampler,
    Dynamics,
    EulerSampler,
    HeunSampler,
    Sampler,
    SDESampler,
    Step,
    adams_weights,
)
from pixelhdm.inference.time_grid import shifted
from tests.stubs import randn

ORDERS = [
    (EulerSampler(), 1),
    (SDESampler(eta=0.0), 1),
    (AdamsSampler(order=1), 1),
    (HeunSampler(), 2),
    (AdamsSampler(order=2), 2),
    (DPM2MSampler(), 2),
    (DPM2SSampler(), 2),
    (AdamsSampler(order=3), 3),
]
SAMPLERS = [*(sampler for sampler, _ in ORDERS), AdamsSampler(order=4)]
MEAN, STD, T_EPS = 0.7, 0.3, 0.05
X, NOISE = randn(2, 2, 3, 3).clamp(-1, 1).double(), randn(2, 2, 3, 3, seed=5).double()

each_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda own: own.name)


def spread(t: float) -> float:
    """Standard deviation of z_t for data N(MEAN, STD²)."""
    return (t**2 * STD**2 + (1 - t) ** 2) ** 0.5


def gaussian_velocity(z: Tensor, t: float) -> Tensor:
    """E[x - noise | z_t = z] for data N(MEAN, STD²)."""
    return MEAN + (t * STD**2 - (1 - t)) / spread(t) ** 2 * (z - t * MEAN)


def flowed(z: Tensor, t: float, t_next: float) -> Tensor:
    """The exact map of the probability flow."""
    return t_next * MEAN + spread(t_next) / spread(t) * (z - t * MEAN)


def moved_by(velocity) -> Dynamics:
    return Dynamics(velocity, lambda: torch.zeros(1, 1, 1, 3))


def grid(num_steps: int, start: float, shift: float, end: float = 1 - T_EPS) -> list[float]:
    even = (number / num_steps for number in range(num_steps + 1))
    return [start + (end - start) * shifted(u, shift) for u in even]


def error(sampler: Sampler, times: list[float]) -> float:
    """Distance of a solution from the exact map of the probability flow."""
    found = sampler.solve(moved_by(gaussian_velocity), NOISE, times)
    return (found - flowed(NOISE, times[0], times[-1])).abs().max().item()


@pytest.mark.parametrize(("start", "shift"), [(T_EPS, 1.0), (0.0, 1.0), (T_EPS, 3.0), (0.0, 3.0)])
@pytest.mark.parametrize(("sampler", "order"), ORDERS, ids=lambda own: getattr(own, "name", own))
def test_order_of_convergence(sampler, order, start, shift):
    errors = [error(sampler, grid(num, start, shift)) for num in (160, 320, 640)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.06 * order)
    assert errors[-1] < (0.007, 2e-4, 2e-6)[order - 1]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_adams_has_its_order_after_an_exact_start(order, shift):
    """The error of one step falls with the power order + 1 of its length, on uneven steps too."""
    errors = []
    for num in (40, 80, 160):
        times = grid(num, T_EPS, shift, end=0.9)
        middle = num // 2
        known = [(t, gaussian_velocity(flowed(NOISE, 0.0, t), t)) for t in times]
        memory = known[middle - order + 1 : middle][::-1]
        t, t_next = times[middle : middle + 2]
        z, kept = AdamsSampler(order=order).step(
            moved_by(gaussian_velocity), flowed(NOISE, 0.0, t), t, t_next, memory
        )
        errors.append((z - flowed(NOISE, 0.0, t_next)).abs().max().item())
        assert [time for time, _ in kept] == times[middle - order + 1 : middle + 1][::-1]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order + 1, abs=0.25)


@pytest.mark.parametrize("order", [3, 4])
def test_adams_of_higher_orders_is_nearer_than_order_2(order):
    for num in (20, 80, 320):
        times = grid(num, T_EPS, 1.0)
        assert error(AdamsSampler(order=order), times) < error(AdamsSampler(order=2), times) / 2


@pytest.mark.parametrize(
    ("times", "t_next", "weights"),
    [
        ([0.5], 0.7, [0.2]),
        ([2.0, 1.0], 3.0, [3 / 2, -1 / 2]),
        ([3.0, 2.0, 1.0], 4.0, [23 / 12, -16 / 12, 5 / 12]),
        ([4.0, 3.0, 2.0, 1.0], 5.0, [55 / 24, -59 / 24, 37 / 24, -9 / 24]),
        ([0.2, 0.1], 0.4, [0.4, -0.2]),  # dt (1 + r / 2, -r / 2) with r = dt / dt before
    ],
)
def test_weights_of_adams(times, t_next, weights):
    assert adams_weights(times, t_next) == pytest.approx(weights, rel=1e-12)


def test_weights_of_adams_integrate_polynomials_exactly():
    times, t_next = [0.55, 0.4, 0.32, 0.05], 0.6
    weights = adams_weights(times, t_next)
    for power in range(4):
        exact = (t_next ** (power + 1) - times[0] ** (power + 1)) / (power + 1)
        found = sum(weight * time**power for weight, time in zip(weights, times, strict=True))
        assert found == pytest.approx(exact, rel=1e-9)


def straight(z: Tensor, t: float) -> Tensor:
    return X - NOISE


def towards_x(z: Tensor, t: float) -> Tensor:
    return (X - z) / (1 - t)


@each_sampler
@pytest.mark.parametrize("num_steps", [1, 2, 7, 50])
@pytest.mark.parametrize("velocity", [straight, towards_x])
@pytest.mark.parametrize(("start", "shift"), [(0.0, 1.0), (0.0, 3.0), (T_EPS, 1.0), (T_EPS, 0.4)])
def test_a_straight_flow_comes_out_exactly(sampler, num_steps, velocity, start, shift):
    """DPM-Solver++ with signal and noise exchanged ends far away here."""
    times = grid(num_steps, start, shift, end=1.0)
    z = start * X + (1 - start) * NOISE
    seen: list[Step] = []
    drawn = sampler.solve(moved_by(velocity), z, times, lambda step: seen.append(step) or step.z)
    torch.testing.assert_close(drawn, X, rtol=0, atol=1e-9)
    assert [step.number for step in seen] == list(range(1, num_steps + 1))
    assert [step.t for step in seen] == times[1:]
    for step in seen:
        torch.testing.assert_close(step.z, step.t * X + (1 - step.t) * NOISE, rtol=0, atol=1e-9)
        torch.testing.assert_close(step.clean, X, rtol=0, atol=1e-9)


@each_sampler
@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize("start", [0.0, T_EPS])
def test_calls_are_counted_truly_and_rise_in_time(sampler, num_steps, start):
    seen: list[float] = []

    def velocity(z: Tensor, t: float) -> Tensor:
        seen.append(t)
        return gaussian_velocity(z, t)

    times = grid(num_steps, start, 1.0, end=1.0)
    sampler.solve(moved_by(velocity), NOISE, times)
    assert len(seen) == sampler.num_calls(num_steps)
    assert seen == sorted(seen)
    assert set(times[:-1]) <= set(seen)
    assert all(start <= t < 1 for t in seen)


def test_names_and_calls_of_the_network():
    assert [own.name for own in SAMPLERS] == (
        ["Euler", "SDE", "Adams1", "Heun", "Adams2", "DPM2M", "DPM2S", "Adams3", "Adams4"]
    )
    assert [own.num_calls(50) for own in SAMPLERS] == [50, 50, 50, 99, 50, 51, 99, 51, 51]


def test_dpm_2m_and_2s_are_two_solvers():
    times = grid(8, T_EPS, 1.0)
    found = [
        own.solve(moved_by(gaussian_velocity), NOISE, times)
        for own in (DPM2MSampler(), DPM2SSampler(), HeunSampler(), AdamsSampler())
    ]
    for number, one in enumerate(found):
        for other in found[:number]:
            assert (one - other).abs().max() > 1e-4


def test_adams_of_order_1_and_an_sde_without_noise_are_eulers_method():
    times = grid(6, T_EPS, 2.0, end=1.0)
    euler, *others = (
        own.solve(moved_by(gaussian_velocity), NOISE, times)
        for own in (EulerSampler(), AdamsSampler(order=1), SDESampler(eta=0.0))
    )
    for other in others:
        torch.testing.assert_close(other, euler, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eta", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_the_sde_keeps_the_distribution_at_every_time(eta, strength):
    """Data N(MEAN, STD²) under noise of any strength."""
    generator = torch.Generator().manual_seed(0)

    def fresh() -> Tensor:
        return strength * torch.randn(1, 150, 150, 3, generator=generator, dtype=torch.float64)

    def spread(t: float) -> float:
        return (t**2 * STD**2 + (1 - t) ** 2 * strength**2) ** 0.5

    def velocity(z: Tensor, t: float) -> Tensor:
        slope = (t * STD**2 - (1 - t) * strength**2) / spread(t) ** 2
        return MEAN + slope * (z - t * MEAN)

    def after_step(step: Step) -> Tensor:
        assert step.z.mean().item() == pytest.approx(step.t * MEAN, abs=0.03)
        assert step.z.std().item() == pytest.approx(spread(step.t), rel=0.05, abs=0.01)
        return step.z

    times = [*grid(150, 0.0, 1.0, end=0.99), 1.0]
    drawn = SDESampler(eta=eta).solve(Dynamics(velocity, fresh), fresh(), times, after_step)
    assert drawn.std().item() == pytest.approx(STD, rel=0.05)


@each_sampler
def test_samples_of_a_gaussian_have_its_mean_and_spread(sampler):
    z = randn(1, 100, 100, 3).double()
    drawn = sampler.solve(moved_by(gaussian_velocity), z, [*grid(100, 0.0, 1.0, end=0.99), 1.0])
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert drawn.std().item() == pytest.approx(STD, rel=0.03)


@each_sampler
def test_steps_keep_nothing_between_calls(sampler):
    times = grid(5, T_EPS, 1.0, end=1.0)
    before = dict(vars(sampler))
    first = sampler.solve(moved_by(gaussian_velocity), NOISE, times)
    sampler.solve(moved_by(gaussian_velocity), X, times)
    assert torch.equal(sampler.solve(moved_by(gaussian_velocity), NOISE, times), first)
    assert vars(sampler) == before


@each_sampler
def test_a_watcher_may_put_another_image_in_a_steps_place(sampler):
    times = grid(4, T_EPS, 1.0, end=1.0)

    def after_step(step: Step) -> Tensor:
        return step.z + 1 if step.number == 4 else step.z

    plain = sampler.solve(moved_by(gaussian_velocity), NOISE, times)
    moved = sampler.solve(moved_by(gaussian_velocity), NOISE, times, after_step)
    assert torch.equal(moved, plain + 1)


@each_sampler
def test_another_number_of_steps_leaves_the_first_alone(sampler):
    other = sampler.with_steps(7)
    assert (other.num_steps, sampler.num_steps, type(other)) == (7, 50, type(sampler))
    assert other.name == sampler.name
    assert sampler.with_steps(None).num_steps == 50
    for make in (type(sampler), sampler.with_steps):
        with pytest.raises(UserError, match="num_steps must be at least 1, got 0"):
            make(0)


@pytest.mark.parametrize("order", [0, 5])
def test_wrong_order(order):
    with pytest.raises(UserError, match=f"order must lie in 1 … 4, got {order}"):
        AdamsSampler(order=order)


@pytest.mark.parametrize("eta", [-0.1, math.inf, math.nan])
def test_wrong_eta(eta):
    with pytest.raises(UserError, match="eta must be at least 0, got"):
        SDESampler(eta=eta)


@each_sampler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_keeps_its_type_where_bfloat16_is_the_default(sampler, dtype):
    seen = set()

    def velocity(z: Tensor, t: float) -> Tensor:
        seen.add((z.dtype, type(t)))
        return (X - NOISE).to(dtype)

    torch.set_default_dtype(torch.bfloat16)  # as precision bf16-true does during a step
    try:
        drawn = sampler.solve(
            Dynamics(velocity, lambda: torch.zeros_like(NOISE, dtype=dtype)),
            NOISE.to(dtype),
            grid(10, 0.0, 1.0, end=1.0),
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert seen == {(dtype, float)}
    torch.testing.assert_close(drawn, X.to(dtype), rtol=0, atol=1e-5)
