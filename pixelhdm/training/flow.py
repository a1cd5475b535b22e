"""Flow matching: the path from noise to image, and what the network predicts about it."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from pixelhdm.errors import UserError, check_at_least, check_one_of
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
        v: the velocity x - noise; x - z_t over what is left of the time.
        left: what is left of the time: 1 - t.
        weight: of each image in the batch's mean; 0 for an empty slot.
    """

    x: Float[Tensor, "B H W 3"]
    noise: Float[Tensor, "B H W 3"]
    t: Float[Tensor, "B"]
    z_t: Float[Tensor, "B H W 3"]
    v: Float[Tensor, "B H W 3"]
    left: Float[Tensor, "B"]
    weight: Float[Tensor, "B"]

    def clean(self, velocity: Float[Tensor, "B H W 3"]) -> Float[Tensor, "B H W 3"]:
        """The clean image to which a velocity leads from z_t."""
        return self.z_t + rearrange(self.left, "b -> b 1 1 1") * velocity


@dataclass(frozen=True)
class FlowMatching:
    """Straight paths z_t = t x + (1 - t) noise with velocity v = x - noise (arXiv:2210.02747, eq.
    20-23).

    Time is logit-normal (arXiv:2403.03206, section 3.1), squeezed into [t_eps, 1 - t_eps] or not.

    Neighbouring pixels of a larger image tell the same, so that the same noise hides less of it
    (section 5.3.2 there, arXiv:2301.11093). Two settings make up for it: the time shift and the
    noise scale, each as given at reference_size and times (sqrt(height width) / reference_size) ^
    power elsewhere. Noise k times as strong is a shift by k: z_t / (t + (1 - t) k) lies at time
    t / (t + (1 - t) k) of the path with unit noise. So their product is the whole change of the
    ratio of signal to noise, with the scale of z_t as the difference. With a shift of 2 at 256 px
    and 0.5 for both powers the shift is 2, 2.83, 4 at 256, 512, 1024 px (PixelDiT: 3 and 4 at the
    latter two), and the product 2, 4, 8 (DeCo shifts by 2 and 4 at the first two; with a noise of
    1, 2, 4 JiT grows with the side as well).

    Args:
        prediction: what the network's output means: "v" the velocity, "x" the clean image, turned
            into a velocity by (x - z) / max(1 - t, t_eps) (arXiv:2511.13720, eq. 7).
        time_mean: mean of the normal variable whose sigmoid is t; negative means more noise.
        time_std: its standard deviation.
        t_eps: distance that t keeps from 0 and 1, and the least divisor of an x-prediction.
        squeeze_time: whether training times are squeezed into [t_eps, 1 - t_eps]; false leaves them
            in 0 … 1 as JiT, PixelGen and PixelDiT do. Beyond 1 - t_eps an x-prediction's velocities
            then have the divisor t_eps, the true one too.
        time_shift: s in t / (t + (1 - t) s), applied to the sigmoid; above 1 moves time towards
            noise, for large images.
        noise_scale: standard deviation of the noise; 1 at 256 px, JiT uses 2 at 512 px.
        reference_size: side in pixels of a square image at which time_shift and noise_scale hold as
            given; empty: they hold at every size.
        time_shift_power: power of the side's ratio to reference_size that time_shift grows with; 0
            keeps it, 1 lets it grow with the side.
        noise_scale_power: the same for noise_scale.
    """

    prediction: PredictionType = "v"
    time_mean: float = 0.0
    time_std: float = 1.0
    t_eps: float = 0.05
    squeeze_time: bool = True
    time_shift: float = 1.0
    noise_scale: float = 1.0
    reference_size: int | None = None
    time_shift_power: float = 0.0
    noise_scale_power: float = 0.0

    def __post_init__(self) -> None:
        check_one_of(PredictionType, prediction=self.prediction)
        if not 0 < self.t_eps < 0.5:
            raise UserError(f"t_eps must lie between 0 and 0.5, got {self.t_eps}.")
        for name in ("time_std", "time_shift", "noise_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)}.")
        if self.reference_size is not None:
            check_at_least(1, reference_size=self.reference_size)
        for name in ("time_shift_power", "noise_scale_power"):
            power = getattr(self, name)
            if not math.isfinite(power):
                raise UserError(f"{name} must be a finite number, got {power}.")
            if power != 0 and self.reference_size is None:
                raise UserError(
                    f"{name} must be 0 without a reference_size, got {power}. Set "
                    "model.flow.reference_size to the side in pixels at which the value holds."
                )

    def time_shift_at(self, height: int, width: int) -> float:
        """The time shift of images of this size."""
        return self.time_shift * self.growth(height, width, self.time_shift_power)

    def noise_scale_at(self, height: int, width: int) -> float:
        """The standard deviation of the noise of images of this size."""
        return self.noise_scale * self.growth(height, width, self.noise_scale_power)

    def growth(self, height: int, width: int, power: float) -> float:
        """(sqrt(height width) / reference_size) ^ power; 1 without a reference."""
        if self.reference_size is None:
            return 1.0
        return (math.sqrt(height * width) / self.reference_size) ** power

    def time(self, normal: Float[Tensor, "B"], height: int, width: int) -> Float[Tensor, "B"]:
        """Training times of images of one size from standard normal draws."""
        t = torch.sigmoid(self.time_mean + self.time_std * normal.float())
        t = t / (t + (1 - t) * self.time_shift_at(height, width))
        if not self.squeeze_time:
            return t
        return self.t_eps + (1 - 2 * self.t_eps) * t

    def even_time(self, index: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Times for numbered images, spread evenly over [t_eps, 1 - t_eps] whatever the images'
        count and size.

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
        noise = self.noise_scale_at(*x.shape[1:3]) * noise
        t, left = rearrange(time, "b -> b 1 1 1"), self.left(time)
        v = x - noise
        if self.prediction == "x" and not self.squeeze_time:
            v = v * rearrange((1 - time) / left, "b -> b 1 1 1")
        z_t = t * x + (1 - t) * noise
        return FlowSample(x, noise, time, z_t, v, left, torch.ones_like(time))

    def left(self, t: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """The time 1 - t that is left; at least t_eps where an x-prediction is divided by it."""
        return (1 - t).clamp(min=self.t_eps) if self.prediction == "x" else 1 - t

    def velocity(
        self, prediction: Prediction, z: Float[Tensor, "B H W 3"], t: Float[Tensor, "B"]
    ) -> Prediction:
        """The same prediction with its output as a float32 velocity, whatever the network
        predicts.
        """
        output = prediction.output.float()
        if self.prediction == "x":
            output = (output - z) / rearrange(self.left(t), "b -> b 1 1 1")
        return prediction._replace(output=output)
