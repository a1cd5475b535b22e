"""Distances of few images' features, for a score that is watched while training."""

from typing import Literal

from jaxtyping import Float, Float64
from torch import Tensor

from pixelhdm.evaluation.distances import frechet_distance
from pixelhdm.evaluation.moments import Moments

Metric = Literal["kid", "fd"]
ROWS = 2048  # images whose kernel values, times all others, are in memory at once


class RealFeatures:
    """Real images' features, with what every comparison needs of them.

    Args:
        features: of the real images.
        metric: which distance is asked for.
    """

    def __init__(self, features: Float[Tensor, "N D"], metric: Metric):
        self.metric = metric
        self.features = features.double()
        self.moments = Moments.of(features) if metric == "fd" else None
        self.within = mean_kernel(self.features) if metric == "kid" else 0.0

    def distance(self, drawn: Float[Tensor, "M D"]) -> float:
        """The distance of drawn images' features from these."""
        if self.metric == "fd":
            return frechet_distance(Moments.of(drawn), self.moments)
        values = drawn.double()
        across = total_kernel(values, self.features) / (len(values) * len(self.features))
        return mean_kernel(values) + self.within - 2 * across


def total_kernel(a: Float64[Tensor, "N D"], b: Float64[Tensor, "M D"]) -> float:
    """Sum of KID's kernel (x·y / D + 1)³ over all pairs, in blocks."""
    dim = a.shape[1]
    return sum(((rows @ b.T / dim + 1) ** 3).sum().item() for rows in a.split(ROWS))


def mean_kernel(a: Float64[Tensor, "N D"]) -> float:
    """Mean of the kernel over all pairs of different images."""
    itself = ((a.square().sum(dim=1) / a.shape[1] + 1) ** 3).sum().item()
    return (total_kernel(a, a) - itself) / (len(a) * (len(a) - 1))
