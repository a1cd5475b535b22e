"""The flow-matching loss."""

from einops import reduce
from jaxtyping import Float
from torch import Tensor

from pixelhdm.models.network import Prediction
from pixelhdm.training.flow import FlowSample
from pixelhdm.training.losses.loss import Loss


class VelocityLoss(Loss):
    """Mean squared error of the velocity, |v_pred - (x - noise)|² (arXiv:2210.02747, eq. 23), in
    float32.
    """

    def forward(
        self, prediction: Prediction, sample: FlowSample, weight: Float[Tensor, "B"]
    ) -> dict[str, Float[Tensor, ""]]:
        error = (prediction.output.float() - sample.v.float()).square()
        loss = (weight * reduce(error, "b h w c -> b", "mean")).sum()
        return {"velocity": loss, "total": loss}
