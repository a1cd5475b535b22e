"""The flow-matching loss."""

from einops import reduce
from jaxtyping import Float
from torch import Tensor

from pixelhdm.models.network import Prediction
from pixelhdm.training.flow import FlowSample
from pixelhdm.training.losses.loss import LossTerm


class VelocityLoss(LossTerm):
    """Mean squared error of the velocity, |v_pred - (x - noise)|² (arXiv:2210.02747, eq. 23).

    Args:
        weight: factor of the term in the total.
    """

    name = "velocity"

    def __init__(self, weight: float = 1.0):
        super().__init__(weight)

    def forward(self, prediction: Prediction, sample: FlowSample) -> Float[Tensor, "B"]:
        error = prediction.output.float() - sample.v.float()
        return reduce(error.square(), "b h w c -> b", "mean")
