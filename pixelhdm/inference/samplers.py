"""Solvers of the flow's equation dz/dt = v(z, t), from noise at t = 0 to an image at t = 1.

A solver keeps no state between calls: what a step wants to remember it returns.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pixelhdm.errors import check_at_least

Image = Float[Tensor, "B H W 3"]
Velocity = Callable[[Image, Float[Tensor, ""]], Image]


class Sampler(ABC):
    """Base of all solvers.

    The times are linspace(t_eps, 1 - t_eps, num_steps + 1), the range that training has seen. One
    jump before them goes from noise to t_eps and one after them to the clean image, each with one
    more call of the network.

    Args:
        num_steps: number of solver steps.
    """

    def __init__(self, num_steps: int = 50):
        check_at_least(1, num_steps=num_steps)
        self.num_steps = num_steps

    @abstractmethod
    def step(
        self, velocity: Velocity, z: Image, t: Tensor, t_next: Tensor, memory: Any
    ) -> tuple[Image, Any]:
        """Advance `z` from t to t_next; `memory` is what the last step returned, None at first."""

    def solve(self, velocity: Velocity, z: Image, times: Float[Tensor, "steps"]) -> Image:
        """Advance `z` along `times`."""
        memory = None
        for t, t_next in pairwise(times):
            z, memory = self.step(velocity, z, t, t_next, memory)
        return z

    def sample(self, velocity: Velocity, noise: Image, t_eps: float) -> Image:
        """Turn noise into an image; the state is float64, so that many small steps do not add up
        their rounding.

        The network never saw t < t_eps, and never pure noise: the first jump asks it at t_eps about
        the noise as strong as it is there, (1 - t_eps) noise, and goes from the whole noise along
        that velocity. The last jump z + (1 - t) v takes the remaining noise away. A straight flow
        comes out exactly.
        """
        precise = torch.float32 if noise.device.type == "mps" else torch.float64  # Apple has none

        def exact(z: Image, t: Tensor) -> Image:
            return velocity(z.float(), t.float()).to(precise)

        first, last = t_eps, 1 - t_eps
        times = torch.linspace(first, last, self.num_steps + 1, dtype=precise, device=noise.device)
        noise = noise.to(precise)
        z = noise + first * exact((1 - first) * noise, times[0])
        z = self.solve(exact, z, times)
        return (z + (1 - last) * exact(z, times[-1])).float()


class EulerSampler(Sampler):
    """Euler's method, order 1: z + dt v(z, t). Calls the network num_steps + 2 times.

    Args:
        num_steps: number of solver steps.
    """

    def step(
        self, velocity: Velocity, z: Image, t: Tensor, t_next: Tensor, memory: Any
    ) -> tuple[Image, Any]:
        return z + (t_next - t) * velocity(z, t), None


class HeunSampler(Sampler):
    """Heun's method, order 2: the mean of the velocities at both ends of a step. Calls it 2
    num_steps + 2 times.

    Args:
        num_steps: number of solver steps.
    """

    def step(
        self, velocity: Velocity, z: Image, t: Tensor, t_next: Tensor, memory: Any
    ) -> tuple[Image, Any]:
        dt = t_next - t
        v = velocity(z, t)
        return z + dt / 2 * (v + velocity(z + dt * v, t_next)), None
