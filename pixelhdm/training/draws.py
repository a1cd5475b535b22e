"""The random numbers of a training step, each sample's from its own seed.

A sample's draws depend on its seed alone, so ranks never share them, and a resumed run, another
batch size or another number of processes sees the same ones.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pixelhdm.models.network import Network
from pixelhdm.models.routing import Route

ROUTE_STREAM = 0x7265616474  # apart from the other draws of the same seed


class Draws(NamedTuple):
    """Random numbers of a batch.

    Attributes:
        null: uniform in [0, 1), on the CPU; below null_prob the condition is dropped.
        time: standard normal, made into t by the flow.
        noise: standard normal image.
    """

    null: Float[Tensor, "B"]
    time: Float[Tensor, "B"]
    noise: Float[Tensor, "B H W 3"]


def draw(seeds: Int[Tensor, "B"], height: int, width: int, device: torch.device) -> Draws:
    """Draw on `device` for each of `seeds`; `null` on the CPU, where it decides which texts are
    encoded.
    """
    host = torch.Generator()
    generator = host if device.type == "cpu" else torch.Generator(device)
    null = torch.empty(len(seeds), dtype=torch.float32)
    time = torch.empty(len(seeds), device=device, dtype=torch.float32)
    noise = torch.empty(len(seeds), height, width, 3, device=device, dtype=torch.float32)
    for i, seed in enumerate(seeds.tolist()):
        host.manual_seed(seed)
        null[i].uniform_(generator=host)
        if generator is not host:
            generator.manual_seed(seed)
        time[i].normal_(generator=generator)
        noise[i].normal_(generator=generator)
    return Draws(null, time, noise)


class SeededRoutes:
    """Routes that belong to seeds, each image's from its own, whatever its company.

    They are drawn on the CPU, so that every device gets the same.

    Args:
        seeds: seed of each image.
    """

    def __init__(self, seeds: list[int]):
        self.generators = [torch.Generator().manual_seed(seed ^ ROUTE_STREAM) for seed in seeds]

    def fresh(
        self, network: Network, height: int, width: int, device: torch.device
    ) -> Route | None:
        """The next route of each seed; None where the network routes no images of this size."""
        num_kept = network.num_kept(height, width)
        if num_kept is None:
            return None
        num_tokens = height * width // network.patch_size**2
        orders = [torch.randperm(num_tokens, generator=one) for one in self.generators]
        return Route(torch.stack(orders)[:, :num_kept].sort(dim=1).values.to(device))
