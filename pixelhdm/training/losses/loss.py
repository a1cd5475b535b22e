"""What a loss is."""

from jaxtyping import Float
from torch import Tensor, nn

from pixelhdm.models.network import Prediction
from pixelhdm.training.flow import FlowSample


class Loss(nn.Module):
    """Base of all losses: compares a prediction with its sample; gives each term by name and their
    sum as `total`.

    A term is the weighted sum over the samples, sum_i weight_i l_i. The weights of a batch sum to
    1; padded and broken samples have weight 0.
    """

    def forward(
        self, prediction: Prediction, sample: FlowSample, weight: Float[Tensor, "B"]
    ) -> dict[str, Float[Tensor, ""]]:
        raise NotImplementedError
