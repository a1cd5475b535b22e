"""From conditions and noise to images."""

from typing import Any

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor

from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import Sampler
from pixelhdm.models.conditioners.conditioner import Conditioner
from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.network import Network
from pixelhdm.training.flow import FlowMatching


def seeded_noise(seeds: Int[Tensor, "B"], height: int, width: int) -> Float[Tensor, "B H W 3"]:
    """Unit Gaussian float32 noise, each image from its own seed.

    It is drawn on the CPU, so that every device gets the same.
    """
    noise = torch.empty(len(seeds), height, width, 3, dtype=torch.float32)
    for image, seed in zip(noise, seeds.tolist(), strict=True):
        image.normal_(generator=torch.Generator().manual_seed(seed))
    return noise


@torch.no_grad()
def draw_images(
    network: Network,
    conditioner: Conditioner,
    flow: FlowMatching,
    sampler: Sampler,
    guidance: Guidance,
    condition: Any,
    noise: Float[Tensor, "B H W 3"],
    negative: list[str] | None = None,
) -> Float[Tensor, "B H W 3"]:
    """Draw one image per condition from unit `noise`; the result lies in [-1, 1].

    Guidance leads away from `negative`, one prompt per image; from the empty condition where it is
    empty.
    """

    def predict(z: Tensor, t: Tensor, context: Context) -> Tensor:
        times = repeat(t, "-> b", b=len(z))
        return flow.velocity(network(z, times, context), z, times).output

    is_plain = negative is None or not any(negative)
    away = conditioner.empty(len(noise)) if is_plain else conditioner(negative)
    velocity = guidance.velocity(predict, conditioner(condition), away)
    noise = flow.noise_scale_at(*noise.shape[1:3]) * noise
    return sampler.sample(velocity, noise, flow.t_eps).clamp(-1, 1)
