"""Solvers of the flow's equation dz/dt = v(z, t), from noise at t = 0 to an image at t = 1.

A solver keeps no state between calls: what a step wants to remember it returns.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Float
from torch import Tensor

from pixelhdm.errors import UserError, check_at_least

Image = Float[Tensor, "B H W 3"]
Velocity = Callable[[Image, float], Image]


class Dynamics(NamedTuple):
    """What moves an image.

    Attributes:
        velocity: dz/dt at an image and a time.
        fresh: gives new Gaussian noise of the flow's strength at each call.
    """

    velocity: Velocity
    fresh: Callable[[], Image]


class Step(NamedTuple):
    """Where a solver stands after a step.

    Attributes:
        number: of the step, from 1; 0 is the beginning, whose image is pure noise where the way
            begins with noise.
        num_steps: how many there are.
        t: the time reached.
        z: the image there.
        clean: the clean image z + (1 - t) v that the network saw at the step's beginning; z at the
            beginning, before the network is asked.
    """

    number: int
    num_steps: int
    t: float
    z: Image
    clean: Image


def go_on(step: Step) -> Image:
    """Leave a step's image as it is."""
    return step.z


class Sampler(ABC):
    """Base of all solvers.

    Args:
        num_steps: number of solver steps; the last one ends in the clean image that the network
            sees before it.

    Attributes:
        calls_per_step: calls of the network for each step but the last, which takes one.
        adds_noise: whether fresh noise comes in between.
    """

    calls_per_step: ClassVar[int] = 1
    adds_noise: ClassVar[bool] = False

    def __init__(self, num_steps: int = 50):
        check_at_least(1, num_steps=num_steps)
        self.num_steps = num_steps

    @property
    def name(self) -> str:
        """What it is called in labels and files."""
        return type(self).__name__.removesuffix("Sampler")

    @property
    def starts_with_heun(self) -> bool:
        """Whether the first step is Heun's, with one call more, where a multistep solver has
        nothing to look back at yet.
        """
        return False

    def with_steps(self, num_steps: int | None) -> "Sampler":
        """The same solver with another number of steps; None keeps it."""
        other = copy.copy(self)
        if num_steps is not None:
            check_at_least(1, num_steps=num_steps)
            other.num_steps = num_steps
        return other

    def num_calls(self, num_steps: int) -> int:
        """Calls of the network in a number of steps; guidance makes each twice as large."""
        steps = num_steps - 1
        return self.calls_per_step * steps + 1 + (self.starts_with_heun and steps > 0)

    @abstractmethod
    def step(
        self, dynamics: Dynamics, z: Image, t: float, t_next: float, memory: Any
    ) -> tuple[Image, Any]:
        """Advance `z` from t to t_next < 1; `memory` is what the last step gave, None at first."""

    def solve(
        self,
        dynamics: Dynamics,
        z: Image,
        times: list[float],
        after_step: Callable[[Step], Image] = go_on,
    ) -> Image:
        """Advance `z` along `times`; a step to t = 1 is Euler's, for every solver: z + (1 - t) v is
        the clean image. What `after_step` returns takes the place of a step's image.
        """
        memory, num_steps, seen = None, len(times) - 1, []

        def velocity(z: Image, t: float) -> Image:
            v = dynamics.velocity(z, t)
            if not seen:
                seen.append(z + (1 - t) * v)
            return v

        watched = dynamics._replace(velocity=velocity)
        for number, (t, t_next) in enumerate(pairwise(times), start=1):
            seen.clear()
            if t_next == 1:
                z = z + (1 - t) * velocity(z, t)
            else:
                z, memory = self.step(watched, z, t, t_next, memory)
            z = after_step(Step(number, num_steps, t_next, z, seen[0]))
        return z


class EulerSampler(Sampler):
    """Euler's method, order 1: z + dt v(z, t). num_steps calls of the network.

    Args:
        num_steps: number of solver steps.
    """

    def step(
        self, dynamics: Dynamics, z: Image, t: float, t_next: float, memory: Any
    ) -> tuple[Image, Any]:
        return z + (t_next - t) * dynamics.velocity(z, t), None


class HeunSampler(Sampler):
    """Heun's method, order 2: the mean of the velocities at both ends of a step. 2 num_steps - 1
    calls of the network.

    Args:
        num_steps: number of solver steps, the last one Euler's.
    """

    calls_per_step = 2

    def step(
        self, dynamics: Dynamics, z: Image, t: float, t_next: float, memory: Any
    ) -> tuple[Image, Any]:
        return heun_step(dynamics, z, t, t_next)[0], None


def heun_step(dynamics: Dynamics, z: Image, t: float, t_next: float) -> tuple[Image, Image]:
    """Heun's step, and the velocity at its beginning."""
    dt, v = t_next - t, dynamics.velocity(z, t)
    return z + dt / 2 * (v + dynamics.velocity(z + dt * v, t_next)), v


class AdamsSampler(Sampler):
    """Adams-Bashforth, a linear multistep method of order 1 to 4: the polynomial through the last
    velocities, integrated over the step. num_steps calls of the network, for orders 3 and 4 one
    more.

    Steps may have any lengths. The first step is Euler's, for orders 3 and 4 Heun's; the next ones
    have the order that the velocities so far allow, which keeps the whole way of order 4 at order
    3 in the limit of many steps. Order 2 is what PixelDiT calls FlowDPMSolver, there with the
    coefficients of equal steps (3/2, -1/2); orders 2 to 4 are PixelGen's AdamLM, which begins with
    Euler's step.

    Args:
        num_steps: number of solver steps.
        order: velocities that a step looks at, 1 … 4; 1 is Euler's method.
    """

    def __init__(self, num_steps: int = 50, order: int = 2):
        super().__init__(num_steps)
        if not 1 <= order <= 4:
            raise UserError(f"order must lie in 1 … 4, got {order}.")
        self.order = order

    @property
    def name(self) -> str:
        return f"{super().name}{self.order}"

    @property
    def starts_with_heun(self) -> bool:
        return self.order > 2

    def step(
        self, dynamics: Dynamics, z: Image, t: float, t_next: float, memory: Any
    ) -> tuple[Image, Any]:
        if memory is None and self.starts_with_heun:
            z, v = heun_step(dynamics, z, t, t_next)
            return z, [(t, v)]
        known = [(t, dynamics.velocity(z, t)), *(memory or [])][: self.order]
        weights = adams_weights([time for time, _ in known], t_next)
        change = sum(weight * v for weight, (_, v) in zip(weights, known, strict=True))
        return z + change, known


def adams_weights(times: list[float], t_next: float) -> list[float]:
    """Integrals from times[0] to t_next of the Lagrange polynomials through `times`."""
    weights = []
    for number, own in enumerate(times):
        others = times[:number] + times[number + 1 :]
        coefficients = [1.0]  # of the product of (s - other), s = time - times[0], highest first
        for other in others:
            shift = other - times[0]
            lower = [-shift * c for c in coefficients]
            coefficients = [a + b for a, b in zip([*coefficients, 0.0], [0.0, *lower], strict=True)]
        dt, degree = t_next - times[0], len(coefficients)
        integral = sum(
            c * dt ** (degree - place) / (degree - place) for place, c in enumerate(coefficients)
        )
        weights.append(integral / math.prod(own - other for other in others))
    return weights


def log_snr(t: float) -> float:
    """ln(t / (1 - t)), half the log of the signal-to-noise power; -inf at t = 0."""
    return math.log(t / (1 - t)) if t > 0 else -math.inf


def data_step(z: Image, clean: Image, t: float, t_next: float) -> Image:
    """The path's point at t_next where the clean image stays the same from t on: DPM-Solver++'s
    first-order step (arXiv:2211.01095, proposition 4.1) for signal t and noise 1 - t; equal to
    Euler's.
    """
    left = (1 - t_next) / (1 - t)
    return left * z + (t_next - t * left) * clean


class DPM2MSampler(Sampler):
    """DPM-Solver++ 2M (arXiv:2211.01095, algorithm 2), order 2: steps on the log signal-to-noise
    ratio, with the clean image extrapolated from the last step's. num_steps + 1 calls of the
    network: the first step is Heun's, in the place of one of order 1.

    Args:
        num_steps: number of solver steps.
    """

    @property
    def starts_with_heun(self) -> bool:
        return True

    def step(
        self, dynamics: Dynamics, z: Image, t: float, t_next: float, memory: Any
    ) -> tuple[Image, Any]:
        if memory is None:
            ahead, v = heun_step(dynamics, z, t, t_next)
            return ahead, (t, z + (1 - t) * v)
        t_before, before = memory
        clean = z + (1 - t) * dynamics.velocity(z, t)
        ratio = (log_snr(t) - log_snr(t_before)) / (log_snr(t_next) - log_snr(t))
        middle = clean + (clean - before) / (2 * ratio)  # ratio is infinite after t = 0
        return data_step(z, middle, t, t_next), (t, clean)


class DPM2SSampler(Sampler):
    """DPM-Solver++ 2S (arXiv:2211.01095, algorithm 1), order 2: the clean image is taken half a
    step of the log signal-to-noise ratio ahead. 2 num_steps - 1 calls of the network.

    Args:
        num_steps: number of solver steps, the last one Euler's.
    """

    calls_per_step = 2

    def step(
        self, dynamics: Dynamics, z: Image, t: float, t_next: float, memory: Any
    ) -> tuple[Image, Any]:
        middle = 1 / (1 + math.exp(-(log_snr(t) + log_snr(t_next)) / 2)) if t > 0 else t_next / 2
        clean = z + (1 - t) * dynamics.velocity(z, t)
        ahead = data_step(z, clean, t, middle)
        ahead = ahead + (1 - middle) * dynamics.velocity(ahead, middle)
        return data_step(z, ahead, t, t_next), None


class SDESampler(Sampler):
    """Euler-Maruyama on the flow's stochastic equation (SiT, arXiv:2401.08740, section 2), order 1
    in distribution: z + dt (v + eta (t v - z)) + sqrt(2 eta (1 - t) dt) noise. num_steps calls.

    t v - z is (1 - t) times the noise's variance times the score, so that every z_t keeps its
    distribution: fresh noise comes in as fast as old noise is taken away. The last step adds none.

    Args:
        num_steps: number of solver steps.
        eta: how much noise is exchanged; 0 is Euler's method, 1 PixelGen's SDE, 0.5 its
            variance-preserving one.
    """

    adds_noise = True

    def __init__(self, num_steps: int = 50, eta: float = 1.0):
        super().__init__(num_steps)
        if not 0 <= eta < math.inf:
            raise UserError(f"eta must be at least 0, got {eta}.")
        self.eta = eta

    def step(
        self, dynamics: Dynamics, z: Image, t: float, t_next: float, memory: Any
    ) -> tuple[Image, Any]:
        dt, v = t_next - t, dynamics.velocity(z, t)
        spread = math.sqrt(2 * self.eta * (1 - t) * dt)
        return z + dt * (v + self.eta * (t * v - z)) + spread * dynamics.fresh(), None
