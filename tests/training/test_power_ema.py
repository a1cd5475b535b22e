import numpy as np
import pytest
from scipy.integrate import quad

from pixelhdm.errors import UserError
from pixelhdm.training.power_ema import (
    LARGEST,
    Profile,
    combine,
    exponent,
    inner_products,
    profile_decay,
)

SIGMAS = [0.01, 0.05, 0.1, 0.2, 0.28]


def density(t: np.ndarray | float, sigma_rel: float, step: float) -> np.ndarray | float:
    """p(t), written once more."""
    g = exponent(sigma_rel)
    return (t <= step) * (g + 1) * t**g / step ** (g + 1)


def shares(sigma_rel: float, step: int) -> np.ndarray:
    """What each step's weights count in the average after `step`, by its updates alone."""
    counted = np.zeros(step)
    for n in range(1, step + 1):
        kept = profile_decay(sigma_rel, n, n - 1)
        counted *= kept
        counted[n - 1] = 1 - kept
    return counted


def test_exponents_are_the_papers():
    """gamma = 16.97 and 6.94 for 0.05 and 0.10 (arXiv:2312.02696, section 3.1)."""
    assert exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert exponent(0.1) == pytest.approx(6.94, abs=0.005)
    assert exponent(LARGEST) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("sigma_rel", SIGMAS)
def test_updates_make_an_average_of_the_width_that_was_asked_for(sigma_rel):
    step = 2000
    counted, t = shares(sigma_rel, step), (np.arange(step) + 0.5) / step
    assert counted.sum() == pytest.approx(1)
    width = np.sqrt((counted * t**2).sum() - (counted * t).sum() ** 2)
    assert width == pytest.approx(sigma_rel, rel=1e-3)


def test_updates_count_each_step_by_the_integral_of_the_profile_over_it():
    for n, share in enumerate(shares(0.1, 9)):
        assert share == pytest.approx(quad(density, n, n + 1, args=(0.1, 9))[0], rel=1e-6)


def test_a_late_update_counts_for_all_steps_since_the_last():
    """Skipped steps: 5 after 2 takes the share of 3, 4 and 5."""
    assert 1 - profile_decay(0.1, 5, 2) == pytest.approx(quad(density, 2, 5, args=(0.1, 5))[0])
    assert profile_decay(0.1, 3, 0) == 0  # the start counts for nothing


def test_inner_products_are_the_integrals():
    pairs = [(0.05, 0.3), (0.05, 1.0), (0.1, 0.7), (0.2, 1.5)]
    found = inner_products(
        np.array([exponent(sigma) for sigma, _ in pairs]), np.array([step for _, step in pairs])
    )
    for i, one in enumerate(pairs):
        for j, two in enumerate(pairs):
            end = min(one[1], two[1])
            expected, _ = quad(lambda t: density(t, *one) * density(t, *two), 0, end)  # noqa: B023
            assert found[i, j] == pytest.approx(expected, rel=1e-6)


def stored(number: int, step: int = 1024) -> list[Profile]:
    """Snapshots at equal distances."""
    return [
        Profile(sigma, step * (n + 1) // number) for sigma in (0.05, 0.1) for n in range(number)
    ]


def test_a_stored_profile_is_found_again():
    profiles = stored(8)
    factors, distance = combine(profiles, profiles[5])
    assert distance == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(factors, np.arange(16) == 5, atol=1e-6)


@pytest.mark.parametrize(("sigma_rel", "step"), [(0.03, 1024), (0.08, 1024), (0.15, 768)])
def test_distance_is_that_of_the_combined_profile_and_falls_with_more_snapshots(sigma_rel, step):
    t = (np.arange(200_000) + 0.5) / 200_000 * 1024
    wanted, distances = density(t, sigma_rel, step), []
    for number in (4, 8, 16, 32):
        profiles = stored(number)
        factors, distance = combine(profiles, Profile(sigma_rel, step))
        assert sum(factors) == pytest.approx(1)
        got = sum(x * density(t, *profile) for x, profile in zip(factors, profiles, strict=True))
        expected = np.sqrt(((got - wanted) ** 2).sum() / (wanted**2).sum())
        assert distance == pytest.approx(expected, rel=2e-2)
        distances.append(distance)
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.03


def test_combined_averages_come_near_to_the_average_that_was_kept_all_along():
    step, wanted = 512, Profile(0.08, 448)
    weights = np.random.default_rng(0).normal(size=(step, 50)).cumsum(axis=0)
    profiles = stored(16, step)
    snapshots = [shares(p.sigma_rel, p.step) @ weights[: p.step] for p in profiles]
    direct = shares(*wanted) @ weights[: wanted.step]
    factors, _ = combine(profiles, wanted)
    error = np.linalg.norm(np.array(factors) @ np.array(snapshots) - direct)
    others = [
        np.linalg.norm(shares(sigma, wanted.step) @ weights[: wanted.step] - direct)
        for sigma in (0.05, 0.1)
    ]
    assert error < 0.02 * min(others)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.29, float("nan")])
def test_widths_out_of_reach(sigma_rel):
    with pytest.raises(UserError, match=r"sigma_rel must be above 0 and at most 0\.2887"):
        exponent(sigma_rel)
