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
        null: uniform in [0, 1); below null_prob the condition is dropped.
        time: standard normal, made into t by the flow.
        noise: standard normal image.
    """

    null: Float[Tensor, "B"]
    time: Float[Tensor, "B"]
    noise: Float[Tensor, "B H W 3"]


def draw(seeds: Int[Tensor, "B"], height: int, width: int, device: torch.device) -> Draws:
    """Draw on `device` for each of `seeds`."""
    generator = torch.Generator(device)
    null, time = torch.empty(2, len(seeds), device=device, dtype=torch.float32)
    noise = torch.empty(len(seeds), height, width, 3, device=device, dtype=torch.float32)
    for i, seed in enumerate(seeds.tolist()):
        generator.manual_seed(seed)
        null[i].uniform_(generator=generator)
        time[i].normal_(generator=generator)
        noise[i].normal_(generator=generator)
    return Draws(null, time, noise)
