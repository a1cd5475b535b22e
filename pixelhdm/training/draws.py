"""The random numbers of a training step, each sample's from its own seed.

A sample's draws depend on its seed alone, so ranks never share them, and a resumed run, another
batch size or another number of processes sees the same ones.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
