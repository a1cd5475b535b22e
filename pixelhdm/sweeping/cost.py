"""What an image costs."""

from typing import NamedTuple

import torch

from pixelhdm.inference.draw import Drawing
from pixelhdm.inference.noise import SeededNoise
from pixelhdm.inference.samplers import Image, go_on
from pixelhdm.inference.way import from_noise
from pixelhdm.training.flow import FlowMatching


class Cost(NamedTuple):
    """Work for one image.

    Attributes:
        calls: how often the network is asked, one after another.
        passes: how many predictions it makes: two in a call with guidance.
    """

    calls: int
    passes: int


def cost(drawing: Drawing, flow: FlowMatching, height: int, width: int) -> Cost:
    """Work for an image of this size: counted on the way of one pixel, as guidance has no part in
    calls outside of its interval.
    """
    asked: list[int] = []

    def velocity(z: Image, t: float) -> Image:
        guidance = drawing.guidance
        asked.append(1 if guidance.is_off or guidance.scale_at(t) == 1 else 2)
        return torch.zeros_like(z)

    times = drawing.time_grid.times(drawing.sampler.num_steps, flow, height, width)
    drawing.sampler.solve(*from_noise(velocity, SeededNoise([0], 1, 1), times), go_on)
    return Cost(len(asked), sum(asked))
