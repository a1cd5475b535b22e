"""Flow matching: the path from noise to image, and what the network predicts about it."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from pixelhdm.errors import UserError, check_one_of
from pixelhdm.models.network import Prediction

PredictionType = Literal["v", "x"]
GOLDEN = (5**0.5 - 1) / 2


class FlowSample(NamedTuple):
    """A training sample on the path.

    Attributes:
        x: clean image.
        noise: scaled Gaussian noise.
        t: time, 0 noise … 1 clean.
        z_t: the point t x + (1 - t) noise.
        v: the velocity x - noise.
    """

    x: Float[Tensor, "B H W 3"]
    noise: Float[Tensor, "B H W 3"]
    t: Float[Tensor, "B"]
    z_t: Float[Tensor, "B H W 3"]
    v: Float[Tensor, "B H W 3"]


@dataclass(frozen=True)
class FlowMatching:
    """Straight paths z_t = t x + (1 - t) noise with velocity v = x - noise (arXiv:2210.02747, eq.
    20-23).

    Time is logit-normal (arXiv:2403.03206, section 3.1), squeezed into [t_eps, 1 - t_eps].

    Args:
        prediction: what the network's output means: "v" the velocity, "x" the clean image, turned
            into a velocity by (x - z) / max(1 - t, t_eps) (arXiv:2511.13720, eq. 7).
        time_mean: mean of the normal variable whose sigmoid is t; negative means more noise.
        time_std: its standard deviation.
        t_eps: distance that t keeps from 0 and 1.
        time_shift: s in t / (t + (1 - t) s), applied to the sigmoid; above 1 moves time towards
            noise, for large images.
        noise_scale: standard deviation of the noise; 1 at 256 px, JiT uses 2 at 512 px.
    """

    prediction: PredictionType = "v"
    time_mean: float = 0.0
    time_std: float = 1.0
    t_eps: float = 0.05
    time_shift: float = 1.0
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        check_one_of(PredictionType, prediction=self.prediction)
        if not 0 < self.t_eps < 0.5:
            raise UserError(f"t_eps must lie between 0 and 0.5, got {self.t_eps}.")
        for name in ("time_std", "time_shift", "noise_scale"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)}.")

    def time(self, normal: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Training times from standard normal draws."""
        t = torch.sigmoid(self.time_mean + self.time_std * normal.float())
        t = t / (t + (1 - t) * self.time_shift)
        return self.t_eps + (1 - 2 * self.t_eps) * t

    def even_time(self, index: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Times for numbered images, spread evenly over [t_eps, 1 - t_eps] whatever the images'
        count.

        The fractional parts of i / golden ratio are the most even such sequence (Kronecker
        sequence).
        """
        u = (index.double() * GOLDEN).frac().float()
        return self.t_eps + (1 - 2 * self.t_eps) * u

    def sample(
        self,
        x: Float[Tensor, "B H W 3"],
        noise: Float[Tensor, "B H W 3"],
        time: Float[Tensor, "B"],
    ) -> FlowSample:
        """The point of the path at `time` between unit `noise` and the image `x`."""
        noise = self.noise_scale * noise
        t = rearrange(time, "b -> b 1 1 1")
        return FlowSample(x, noise, time, t * x + (1 - t) * noise, x - noise)

    def velocity(
        self, prediction: Prediction, z: Float[Tensor, "B H W 3"], t: Float[Tensor, "B"]
    ) -> Prediction:
        """The same prediction with its output as a float32 velocity, whatever the network
        predicts.
        """
        output = prediction.output.float()
        if self.prediction == "x":
            output = (output - z) / rearrange((1 - t).clamp(min=self.t_eps), "b -> b 1 1 1")
        return prediction._replace(output=output)
