"""What a conditioner is."""

from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Bool
from torch import Tensor, nn

from pixelhdm.errors import UserError
from pixelhdm.models.conditioners.context import Context


class Conditioner(nn.Module, ABC):
    """Base of all conditioners: turns raw conditions (class numbers, prompts) into a Context.

    Args:
        dim: width of the context; the module gives the network's hidden_dim here.
        null_prob: probability of training a sample on the empty condition, for classifier-free
            guidance.
    """

    def __init__(self, dim: int, null_prob: float = 0.1):
        super().__init__()
        if not 0 <= null_prob <= 1:
            raise UserError(f"null_prob must lie in 0 … 1, got {null_prob}.")
        self.dim, self.null_prob = dim, null_prob

    def check(self, condition: Any) -> None:
        """Raise a UserError unless every condition of a batch on the CPU can be embedded."""

    @abstractmethod
    def forward(self, condition: Any, null: Bool[Tensor, "B"] | None = None) -> Context:
        """Embed a batch of conditions; where `null`, on any device, is true the empty condition
        takes their place.
        """

    @abstractmethod
    def empty(self, batch_size: int) -> Context:
        """The empty condition, `batch_size` times."""
