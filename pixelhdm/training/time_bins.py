"""Means of held-out losses, over all times and by bins of t."""

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

NUM_BINS = 10


class TimeBins(Metric):
    """Weighted mean of a loss in each of 10 equal bins of t over [0, 1], and over all of them."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("sums", "weights"):
            zeros = torch.zeros(NUM_BINS, dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(
        self, value: Float[Tensor, "B"], t: Float[Tensor, "B"], weight: Float[Tensor, "B"]
    ) -> None:
        """Add a batch; images of weight 0 do not count, whatever their loss."""
        bins = (t * NUM_BINS).long().clamp(0, NUM_BINS - 1)
        weighted = torch.where(weight > 0, weight * value, 0.0)
        self.sums.index_add_(0, bins, weighted.double())
        self.weights.index_add_(0, bins, weight.double())

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        """The mean of all under "", and that of each bin with images under "0.3-0.4"."""
        means = {"": self.sums.sum() / self.weights.sum()}
        for number in range(NUM_BINS):
            if self.weights[number] > 0:
                low, high = number / NUM_BINS, (number + 1) / NUM_BINS
                means[f"{low:.1f}-{high:.1f}"] = self.sums[number] / self.weights[number]
        return {name: value.float() for name, value in means.items()}
