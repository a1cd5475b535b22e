"""Mean and covariance of features, summed up in any order."""

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pixelhdm.errors import UserError

ROWS = 4096  # features that are turned to float64 at once
TOLERANCE = 0.01  # of a covariance's entries and eigenvalues; rounding stays far below


class Moments:
    """Number, mean and covariance of feature vectors, in float64 on the CPU.

    What is kept is the scatter, the sum of (x - mean)(x - mean)ᵀ, and two of them merge by
    equations 1.4 of Chan, Golub and LeVeque, "Algorithms for computing the sample variance" (The
    American Statistician 37, 1983): a mean that is large beside the spread costs no digits, and
    the order of adding changes nothing but rounding.

    Args:
        mean: of the vectors.
        scatter: their summed outer products around the mean; where `num` is None, their covariance.
        num: how many they are; None where a file of others does not say.
    """

    def __init__(
        self, mean: Float64[Tensor, "D"], scatter: Float64[Tensor, "D D"], num: int | None
    ):
        self.mean, self.scatter, self.num = mean, scatter, num
        self.known_root: Float64[Tensor, "D R"] | None = None

    @classmethod
    def empty(cls, dim: int) -> "Moments":
        """Those of no vector yet, of width `dim`."""
        zeros = torch.zeros(dim, dim, dtype=torch.float64)
        return cls(zeros[0].clone(), zeros, 0)

    @classmethod
    def of(cls, features: Float[Tensor, "N D"] | Float[np.ndarray, "N D"]) -> "Moments":
        """Those of the rows of a matrix."""
        moments = cls.empty(features.shape[1])
        moments.add(features)
        return moments

    @classmethod
    def given(
        cls, mean: Float[np.ndarray, "D"], cov: Float[np.ndarray, "D D"], num: int | None
    ) -> "Moments":
        """Those that a file holds as mean and covariance; `flaw` tells whether they are any."""
        mean, cov = (torch.from_numpy(np.asarray(own, dtype=np.float64)) for own in (mean, cov))
        return cls(mean, cov if num is None else cov * (num - 1), num)

    @property
    def cov(self) -> Float64[Tensor, "D D"]:
        """The unbiased covariance (divided by N - 1).

        Raises:
            UserError: they are of fewer than two vectors.
        """
        if self.num is None:
            return self.scatter
        if self.num < 2:
            raise UserError(f"a covariance must be of at least 2 images, got {self.num}.")
        return self.scatter / (self.num - 1)

    def add(self, features: Float[Tensor, "N D"] | Float[np.ndarray, "N D"]) -> None:
        """Take the rows of a matrix in.

        Raises:
            UserError: they are not finite.
        """
        for part in torch.as_tensor(features).split(ROWS):
            rows = part.to("cpu", torch.float64)
            check_finite(rows)
            mean = rows.mean(dim=0)
            rows = rows - mean
            merged = self + Moments(mean, rows.T @ rows, len(rows))
            self.mean, self.scatter, self.num = merged.mean, merged.scatter, merged.num
            self.known_root = None

    def __add__(self, other: "Moments") -> "Moments":
        """Those of the vectors of both."""
        own, others = counts(self, other)
        if not own or not others:
            return Moments(*((other if others else self).parts()))
        num = own + others
        shift = other.mean - self.mean
        scatter = torch.outer(shift, shift).mul_(own * others / num)
        scatter.add_(self.scatter).add_(other.scatter)
        return Moments(self.mean + shift * (others / num), scatter, num)

    def without(self, other: "Moments") -> "Moments":
        """Those of the vectors that are left when those of `other`, all among them, are taken out.

        Raises:
            UserError: `other` has as many or more.
        """
        have, taken = counts(self, other)
        num = have - taken
        if num < 1:
            raise UserError(f"fewer vectors than there are must be taken out, got {taken}.")
        mean = (self.mean * have - other.mean * taken) / num
        shift = other.mean - mean
        scatter = torch.outer(shift, shift).mul_(-num * taken / have)
        scatter.add_(self.scatter).sub_(other.scatter)
        return Moments(mean, scatter, num)

    def parts(self) -> tuple[Float64[Tensor, "D"], Float64[Tensor, "D D"], int | None]:
        """Mean, scatter and number."""
        return self.mean, self.scatter, self.num

    def root(self) -> Float64[Tensor, "D R"]:
        """A matrix A with A·Aᵀ = cov, as narrow as its rank; computed once.

        Eigenvalues within rounding of zero count as zero: their square roots would be noise of
        half as many digits.
        """
        if self.known_root is None:
            values, vectors = torch.linalg.eigh(self.cov)
            rounding = torch.finfo(torch.float64).eps * len(values) * values.abs().max()
            kept = values > rounding
            self.known_root = vectors[:, kept] * values[kept].sqrt()
        return self.known_root

    def flaw(self) -> str:
        """The rule of a mean and a covariance that these break and what they are instead; nothing
        where they are such.
        """
        if not (self.mean.isfinite().all() and self.scatter.isfinite().all()):
            return "be finite, got NaN or infinity"
        if (self.cov - self.cov.T).abs().max() > TOLERANCE * self.cov.abs().max():
            return "be a mean and a symmetric covariance, got another matrix"
        # The root lacks the negative eigenvalues, which the trace sums up too.
        positive = self.root().square().sum()
        if positive - self.cov.trace() > TOLERANCE * positive:
            return "be a mean and a covariance, got negative variances"
        return ""


def check_finite(features: Float[Tensor, "N D"]) -> None:
    """Raise a UserError unless all features are numbers."""
    if not features.isfinite().all():
        raise UserError(
            "features must be finite, got NaN or infinity. "
            "The extractor's weights or their arithmetic are broken."
        )


def counts(one: Moments, other: Moments) -> tuple[int, int]:
    """The numbers of vectors of both.

    Raises:
        UserError: one is not known.
    """
    if one.num is None or other.num is None:
        raise UserError(
            "moments must know of how many images they are to be merged or taken apart, got some "
            "of a file that does not say. Make a file with main.py stats."
        )
    return one.num, other.num
