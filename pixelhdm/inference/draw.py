"""From what is asked for to images."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.model import Model
from pixelhdm.inference.noise import SeededNoise
from pixelhdm.inference.request import Request, Start
from pixelhdm.inference.samplers import Image, Sampler, Step, go_on
from pixelhdm.inference.time_grid import TimeGrid
from pixelhdm.inference.way import (
    check_start,
    exact,
    from_image,
    from_noise,
    from_source,
    keeping,
)


class Drawing(NamedTuple):
    """How images are drawn.

    Attributes:
        sampler: solver.
        guidance: how two predictions become one.
        time_grid: where the solver stops.
    """

    sampler: Sampler
    guidance: Guidance
    time_grid: TimeGrid

    @property
    def num_calls(self) -> int:
        """Calls of the network for an image from noise; guidance makes each twice as large."""
        opening = self.time_grid.span == "trained"
        return self.sampler.num_calls(self.sampler.num_steps) + opening


@torch.no_grad()
def draw_images(
    model: Model,
    drawing: Drawing,
    request: Request,
    on_step: Callable[[Step], Image] = go_on,
) -> Image:
    """Draw one image per condition and seed; the result lies in [-1, 1].

    The state is float64, so that many small steps do not add up their rounding. `on_step` sees each
    step, and gives the image that the next one begins with; as step 0 it sees the beginning, where
    what it gives is not used.
    """
    height, width = request.height, request.width
    strength = model.flow.noise_scale_at(height, width)
    noise = SeededNoise(request.seeds, height, width, model.device, strength)
    times = drawing.time_grid.times(drawing.sampler.num_steps, model.flow, height, width)
    guided = drawing.guidance.velocity(model, request.given, request.away, noise.seeds)
    velocity = exact(guided, noise.precise)
    if request.start is None:
        on_step(Step(0, len(times) - 1, 0.0, noise.first, noise.first))
        way = from_noise(velocity, noise, times)
        z = drawing.sampler.solve(*way, on_step)
    else:
        start = request.start.to(model.device, noise.precise)
        z = draw_from(model, drawing, start, velocity, noise, times, on_step)
    return z.clamp(-1, 1).float()


def draw_from(
    model: Model,
    drawing: Drawing,
    start: Start,
    velocity: Callable[[Image, float], Image],
    noise: SeededNoise,
    times: list[float],
    on_step: Callable[[Step], Image],
) -> Image:
    """The same from images, whose part outside of a mask stays."""
    check_start(start, drawing.sampler)
    if start.strength == 0:
        on_step(Step(0, 0, 1.0, start.image, start.image))
        return start.image
    if start.source is None:
        way = from_image(velocity, noise, times, start)
    else:
        guidance = drawing.guidance.at(start.source_scale)
        source = guidance.velocity(model, start.given, start.away, noise.seeds)
        way = from_source(velocity, exact(source, noise.precise), noise, times, start)

    def after_step(step: Step) -> Image:
        z, clean = keeping(start, noise, step.z, step.t), keeping(start, noise, step.clean, 1.0)
        return on_step(step._replace(z=z, clean=clean))

    z = keeping(start, noise, way.z, way.times[0])
    on_step(Step(0, len(way.times) - 1, way.times[0], z, z))
    return drawing.sampler.solve(way.dynamics, z, way.times, after_step)
