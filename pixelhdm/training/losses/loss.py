"""What a term of the loss is."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pixelhdm.errors import UserError
from pixelhdm.models.network import Network, Prediction
from pixelhdm.training.flow import FlowSample


class LossTerm(nn.Module, ABC):
    """Base of all terms: from a prediction and its sample to one number per image.

    A term computes in float32 under any precision. Its parameters, where it has some, are trained
    and saved with the network's.

    Args:
        weight: factor of the term in the total; the logged value is without it.

    Attributes:
        active: false once the term is stopped: it is not computed any more.
    """

    name: str

    def __init__(self, weight: float):
        super().__init__()
        if not weight >= 0:
            raise UserError(f"weight of a loss must be at least 0, got {weight}.")
        self.weight, self.active = weight, True

    def connect(self, network: Network) -> None:
        """Build what depends on the network; called once, before training and loading."""

    def start(self, device: torch.device) -> None:
        """Load what the active term needs, before the first step."""

    def stop(self) -> None:
        """End the term for good and free what only it needs; its parameters stay."""
        self.active = False

    @abstractmethod
    def forward(self, prediction: Prediction, sample: FlowSample) -> Float[Tensor, "B"]:
        """The term of every image, without its weight."""
