"""What a network is: the common base and its result."""

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pixelhdm.errors import UserError, check_at_least, check_one_of
from pixelhdm.models.conditioners.context import Context

GradCheckpoint = Literal["none", "pixel", "all"]


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
        grad_checkpoint: blocks whose activations are computed again in the backward pass instead
            of kept: "none", "pixel" (the pixel path) or "all".
    """

    def __init__(self, hidden_dim: int, patch_size: int, grad_checkpoint: GradCheckpoint = "none"):
        super().__init__()
        check_at_least(1, hidden_dim=hidden_dim, patch_size=patch_size)
        check_one_of(GradCheckpoint, grad_checkpoint=grad_checkpoint)
        self.hidden_dim, self.patch_size = hidden_dim, patch_size
        self.grad_checkpoint = grad_checkpoint

    @abstractmethod
    def forward(
        self, z: Float[Tensor, "B H W 3"], t: Float[Tensor, "B"], context: Context
    ) -> Prediction:
        """Predict from a noisy image.

        Args:
            z: noisy image; height and width are multiples of patch_size.
            t: time of each sample in [0, 1]; 1 is clean.
            context: the embedded condition, of width hidden_dim.

        Raises:
            UserError: the image cannot be cut into whole patches.
        """

    @property
    def all_blocks(self) -> list[nn.Module]:
        """The blocks, in the order of their registration: what is compiled, sharded and computed
        again one by one.
        """
        lists = (part for part in self.modules() if isinstance(part, nn.ModuleList))
        return [block for blocks in lists for block in blocks]

    @property
    def last_layer(self) -> nn.Linear:
        """The linear layer whose output is the image."""
        raise UserError(
            f"network must tell its last layer to balance losses, got {type(self).__name__}, which "
            "does not. Give it a property last_layer, or leave the balance out."
        )

    def run_block(self, block: nn.Module, *inputs: Any, again: bool) -> Any:
        """Run a block; with `again` the backward pass computes it again, and no activation inside
        it is kept.
        """
        if again and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def check_size(self, height: int, width: int) -> None:
        """Raise unless an image of this size can be cut into whole patches."""
        p = self.patch_size
        if height % p or width % p or min(height, width) < 1:
            near = [max(p, round(side / p) * p) for side in (height, width)]
            raise UserError(
                f"image height and width must be multiples of patch_size={p}, "
                f"got {height}x{width}. Use {near[0]}x{near[1]}."
            )
