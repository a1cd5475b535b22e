"""Noise that belongs to seeds."""

import torch
from jaxtyping import Float
from torch import Tensor


class SeededNoise:
    """Gaussian noise, each image's from its own seed, whatever its company.

    It is drawn on the CPU in float32, so that every device gets the same.

    Args:
        seeds: seed of each image.
        height: height in pixels.
        width: width in pixels.
        device: where it is needed.
        strength: its standard deviation.

    Attributes:
        seeds: seed of each image.
        precise: type of the numbers; float64, float32 on Apple's GPUs, which have no other.
        first: the first noise of each seed, which an image begins with.
    """

    def __init__(
        self,
        seeds: list[int],
        height: int,
        width: int,
        device: torch.device = torch.device("cpu"),
        strength: float = 1.0,
    ):
        self.seeds = seeds
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.size, self.device, self.strength = (height, width, 3), device, strength
        self.precise = torch.float32 if device.type == "mps" else torch.float64
        self.first = self.fresh()

    def fresh(self) -> Float[Tensor, "B H W 3"]:
        """The next noise of each seed."""
        noise = torch.empty(len(self.generators), *self.size, dtype=torch.float32)
        for image, generator in zip(noise, self.generators, strict=True):
            image.normal_(generator=generator)
        return self.strength * noise.to(self.device, self.precise)
