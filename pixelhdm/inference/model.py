"""What draws: a network, its conditioner and its flow."""

from typing import NamedTuple

import torch
from torch import Tensor

from pixelhdm.inference.samplers import Image
from pixelhdm.models.conditioners.conditioner import Conditioner
from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.network import Network
from pixelhdm.training.flow import FlowMatching


class Model(NamedTuple):
    """What draws.

    Attributes:
        network: the network.
        conditioner: embeds what is to be drawn.
        flow: the path that the network was trained on.
    """

    network: Network
    conditioner: Conditioner
    flow: FlowMatching

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.network.parameters()).device

    def velocity(self, z: Image, t: float, context: Context) -> Tensor:
        """The float32 velocity at images z of one time."""
        z = z.float()
        times = torch.full((len(z),), t, dtype=torch.float32, device=z.device)
        return self.flow.velocity(self.network(z, times, context), z, times).output
