"""What a network is: the common base and its result."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from pixelhdm.errors import UserError
from pixelhdm.models.conditioners.context import Context


class Prediction(NamedTuple):
    """What a network gives.

    Attributes:
        output: velocity or clean image, whichever the flow asks it to predict.
        features: image tokens after the network's feature block, for representation losses.
    """

    output: Float[Tensor, "B H W 3"]
    features: Float[Tensor, "B L D"]


class Network(nn.Module, ABC):
    """Base of all networks: maps a noisy image, its time and its context to a Prediction.

    Args:
        hidden_dim: width of the context it takes.
        patch_size: the image's sides must be multiples of it.
    """

    def __init__(self, hidden_dim: int, patch_size: int):
        super().__init__()
        self.hidden_dim, self.patch_size = hidden_dim, patch_size

    @abstractmethod
    def forward(
        self, z: Float[Tensor, "B H W 3"], t: Float[Tensor, "B"], context: Context
    ) -> Prediction:
        """Predict from noisy images z at their times t, 1 is clean, and their contexts."""

    def check_size(self, height: int, width: int) -> None:
        """Raise unless an image of this size can be cut into whole patches."""
        p = self.patch_size
        if height % p or width % p or min(height, width) < 1:
            near = [max(p, round(side / p) * p) for side in (height, width)]
            raise UserError(
                f"image height and width must be multiples of patch_size={p}, "
                f"got {height}x{width}. Use {near[0]}x{near[1]}."
            )
