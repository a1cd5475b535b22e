"""The numbers that compare two sets of images, as far as an extractor's features allow."""

from collections.abc import Iterator
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from pixelhdm.evaluation.distances import (
    NEIGHBOURS,
    NUM_SPLITS,
    cmmd,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from pixelhdm.evaluation.extractors.extractor import Extractor, Features
from pixelhdm.evaluation.moments import Moments
from pixelhdm.evaluation.reference import Reference

LEAST = NUM_SPLITS  # images: with fewer the inception score has empty parts
FEWEST = NEIGHBOURS + 1  # real images to compare with themselves: each needs its neighbours


class Found(NamedTuple):
    """A score before it has its name.

    Attributes:
        kind: FD, sFD, KD, IS, precision, recall or CMMD.
        value: the number.
        error: its standard deviation, or None.
        num_real: how many real images it was compared with, or None.
    """

    kind: str
    value: float
    error: float | None
    num_real: int | None


def floors_of(extractor: Extractor, reference: Reference, num: int) -> dict[str, float]:
    """The scores that `num` real images get, by kind: what a perfect model would get.

    The first `num` kept images are compared with all others: with the moments of all images from
    which theirs are taken out, and with the other kept features. What needs more images than are
    left, as many at least as are compared, is not there.
    """
    if reference.features is None or not LEAST <= num <= len(reference.features):
        return {}
    parts = (reference.features, reference.spatial_features, reference.logits)
    real = Features(*(None if own is None else own[:num] for own in parts))
    others = reference.features[num:]
    found = numbers(
        extractor,
        real,
        rest(reference.moments, real.pool),
        rest(reference.spatial, real.spatial),
        Features(others) if len(others) >= num else None,
    )
    return {own.kind: own.value for own in found}


def rest(moments: Moments | None, features: Float[Tensor, "N D"] | None) -> Moments | None:
    """Moments without some of their images; None where fewer are left, or the number is unknown."""
    if moments is None or features is None or (moments.num or 0) < 2 * len(features):
        return None
    return moments.without(Moments.of(features))


def numbers(
    extractor: Extractor,
    images: Features,
    moments: Moments | None,
    spatial: Moments | None,
    others: Features | None,
) -> Iterator[Found]:
    """The scores of images against the moments of others and against others themselves, as far as
    those are there; fewer than 4 others are as none.
    """
    if others is not None and len(others.pool) < FEWEST:
        others = None
    if extractor.kind == "clip":
        if others is not None:
            yield Found("CMMD", cmmd(images.pool, others.pool), None, len(others.pool))
        return
    if moments is not None:
        distance = frechet_distance(Moments.of(images.pool), moments)
        yield Found("FD", distance, None, moments.num)
    if spatial is not None and images.spatial is not None:
        distance = frechet_distance(Moments.of(images.spatial), spatial)
        yield Found("sFD", distance, None, spatial.num)
    if images.logits is not None:
        yield Found("IS", *inception_score(images.logits), None)
    if others is None:
        return
    if extractor.kind == "inception":
        shares = precision_recall(images.pool, others.pool)
        for kind, share in zip(("precision", "recall"), shares, strict=True):
            yield Found(kind, share, None, len(others.pool))
    yield Found("KD", *kernel_distance(images.pool, others.pool), len(others.pool))
