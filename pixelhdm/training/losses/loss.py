"""What a loss is."""

from jaxtyping import Float
from torch import Tensor, nn

from pixelhdm.models.network import Prediction
from pixelhdm.training.flow import FlowSample


class Loss(nn.Module):
    """Base of all losses: a prediction and its sample to terms by name, and their sum as `total`.

    A term is the weighted sum over the samples, sum_i weight_i l_i. The weights of a batch sum to
    1; padded ones have weight 0.
    """

    def forward(
        self, prediction: Prediction, sample: FlowSample, weight: Float[Tensor, "B"]
    ) -> dict[str, Float[Tensor, ""]]:
        raise NotImplementedError
