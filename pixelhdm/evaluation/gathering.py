"""Features of many images, summed up, and some of them kept."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pixelhdm.evaluation.extractors.extractor import Extractor, Features
from pixelhdm.evaluation.moments import Moments


@dataclass
class Gathering:
    """Moments of one extractor's features of many images, and the features of some.

    Args:
        extractor: what computes them.
    """

    extractor: Extractor
    pool: Moments | None = None
    spatial: Moments | None = None
    kept: list[Features] = field(default_factory=list)

    def add(self, pixels: UInt8[Tensor, "B H W 3"], num_kept: int) -> None:
        """Take images in, and keep the features of the first `num_kept` of them."""
        features = self.extractor(pixels)
        self.pool = added(self.pool, features.pool)
        if features.spatial is not None:
            self.spatial = added(self.spatial, features.spatial)
        if num_kept:
            # A copy: a view would keep the whole batch in memory.
            first = (own if own is None else own[:num_kept].clone() for own in features)
            self.kept.append(Features(*first))

    @property
    def num_kept(self) -> int:
        """Number of images whose features are kept."""
        return sum(len(own.pool) for own in self.kept)

    def features(self) -> Features | None:
        """All kept features in order; None where none are."""
        return joined(self.kept)


def added(moments: Moments | None, features: Float[Tensor, "B D"]) -> Moments:
    """Moments with further features."""
    moments = moments or Moments.empty(features.shape[1])
    moments.add(features)
    return moments


def joined(parts: list[Features]) -> Features | None:
    """Features of many batches as one; None for no batch."""
    if not parts:
        return None
    columns = zip(*parts, strict=True)
    return Features(*(None if own[0] is None else torch.cat(own) for own in columns))
