"""Where a solver begins, and what moves it: from noise, an image, or one image to another."""

from typing import NamedTuple

import torch

from pixelhdm.errors import UserError
from pixelhdm.inference.noise import SeededNoise
from pixelhdm.inference.request import Start
from pixelhdm.inference.samplers import Dynamics, Image, Sampler, Velocity
from pixelhdm.inference.time_grid import after


class Way(NamedTuple):
    """What a solver is given.

    Attributes:
        dynamics: what moves the image.
        z: the image that it begins with.
        times: where it stops.
    """

    dynamics: Dynamics
    z: Image
    times: list[float]


def exact(velocity: Velocity, precise: torch.dtype) -> Velocity:
    """A velocity with its result as precise as a solver's state."""
    return lambda z, t: velocity(z, t).to(precise)


def from_noise(velocity: Velocity, noise: SeededNoise, times: list[float]) -> Way:
    """From pure noise, which a step without a solver takes to times[0], the first time that the
    network has seen.

    The network is asked there about the noise as strong as it is then, (1 - t) noise, and the whole
    noise goes along that velocity. A straight flow comes out exactly.
    """
    z, t = noise.first, times[0]
    if t > 0:
        z = z + t * velocity((1 - t) * z, t)
    return Way(Dynamics(velocity, noise.fresh), z, times)


def from_image(velocity: Velocity, noise: SeededNoise, times: list[float], start: Start) -> Way:
    """From an image with as much noise as its strength asks for (SDEdit, arXiv:2108.01073)."""
    if start.strength == 1:
        return from_noise(velocity, noise, times)
    times = begun(times, start.strength)
    z = times[0] * start.image + (1 - times[0]) * noise.first
    return Way(Dynamics(velocity, noise.fresh), z, times)


def begun(times: list[float], strength: float) -> list[float]:
    """The times of a way that begins from an image."""
    return after(times, max(1 - strength, times[0]))


def from_source(
    target: Velocity, source: Velocity, noise: SeededNoise, times: list[float], start: Start
) -> Way:
    """From an image to another without noise in between (FlowEdit, arXiv:2412.08629, algorithm 1,
    one noise a step): the difference of both velocities, each at its image with the same noise.
    """
    image = start.image

    def velocity(z: Image, t: float) -> Image:
        noisy = t * image + (1 - t) * noise.fresh()
        return target(z + noisy - image, t) - source(noisy, t)

    return Way(Dynamics(velocity, noise.fresh), image, begun(times, start.strength))


def check_start(start: Start, sampler: Sampler) -> None:
    """Raise a UserError for a start that cannot be meant."""
    if not 0 <= start.strength <= 1:
        raise UserError(
            f"strength must lie in 0 … 1, where 0 gives the image back, got {start.strength}."
        )
    if start.source is not None:
        check_edits(sampler)


def check_edits(sampler: Sampler) -> None:
    """Raise a UserError for a solver that cannot edit an image from a source."""
    if sampler.adds_noise:
        raise UserError(
            "sampler must add no noise to edit an image from a source, got "
            f"{type(sampler).__name__}. Use EulerSampler, for example."
        )


def keeping(start: Start, noise: SeededNoise, z: Image, t: float) -> Image:
    """An image at t whose part outside of the mask is the start's."""
    if start.mask is None:
        return z
    own = start.image
    if start.source is None:  # an edit is without noise at all times
        own = t * own + (1 - t) * noise.first
    return start.mask * z + (1 - start.mask) * own
