"""Averages with power-function profiles: their decay, and what others can be combined from them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pixelhdm.errors import UserError

LARGEST = 12**-0.5  # of the uniform profile, exponent 0


class Profile(NamedTuple):
    """How much the weights of each time t count in an average: p(t) = (g + 1) t^g / step^(g + 1),
    0 … step (arXiv:2312.02696, section 3.1).

    Attributes:
        sigma_rel: standard deviation of the profile as a part of its length; sets the exponent g.
        step: its length in optimizer steps.
    """

    sigma_rel: float
    step: int


def exponent(sigma_rel: float) -> float:
    """The exponent g of a profile: the largest root of sigma_rel² = (g + 1) / ((g + 2)² (g + 3))
    (arXiv:2312.02696, section 3.1).

    Raises:
        UserError: no profile that grows with time is so wide.
    """
    if not 0 < sigma_rel <= LARGEST:
        raise UserError(
            f"sigma_rel must be above 0 and at most {LARGEST:.4f}, the uniform average, got "
            f"{sigma_rel}. 0.05 and 0.1 are usual."
        )
    ratio = sigma_rel**-2
    roots = np.roots([1, 7, 16 - ratio, 12 - ratio])
    return float(roots.real.max())


def profile_decay(sigma_rel: float, step: int, previous: int) -> float:
    """What is kept of the average of step `previous` at `step`: (previous / step)^(g + 1), which
    is (1 - 1 / step)^(g + 1) step by step (arXiv:2312.02696, section 3.1).

    Weights then count by the profile's integral over the steps for which they stood.
    """
    return (previous / step) ** (exponent(sigma_rel) + 1)


def combine(profiles: Sequence[Profile], wanted: Profile) -> tuple[list[float], float]:
    """The factors of `profiles` whose sum comes nearest to the wanted one, by least squares, and
    the distance that remains as a part of the wanted profile's norm.

    The factors x minimise the integral of (sum_i x_i p_i - p)², as in arXiv:2312.02696, section
    3.2, under sum x = 1: weights that never changed come out as they were.
    """
    every = [*profiles, wanted]
    exponents = np.array([exponent(profile.sigma_rel) for profile in every])
    lengths = np.array([profile.step / wanted.step for profile in every])
    products = inner_products(exponents, lengths)
    system = np.ones_like(products)
    system[:-1, :-1], system[-1, -1] = products[:-1, :-1], 0
    target = np.append(products[:-1, -1], 1)
    factors = np.linalg.lstsq(system, target, rcond=1e-12)[0][:-1]
    difference = np.append(factors, -1)
    distance = max(difference @ products @ difference, 0) / products[-1, -1]
    return factors.tolist(), float(distance**0.5)


def inner_products(exponents: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The integrals of p_i(t) p_j(t) of all pairs of profiles with these exponents g and lengths.

    With s the shorter length and l, h the longer one and its exponent, they are (g_i + 1) (g_j + 1)
    / (g_i + g_j + 1) (s / l)^h / l, from p(t) above.
    """
    g, other = np.meshgrid(exponents, exponents, indexing="ij")
    own, length = np.meshgrid(lengths, lengths, indexing="ij")
    longer = np.maximum(own, length)
    ratio = np.minimum(own, length) / longer
    power = np.where(own >= length, g, other)
    return (g + 1) * (other + 1) / (g + other + 1) * ratio**power / longer
