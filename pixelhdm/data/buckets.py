"""Buckets: the few sizes that images are trained at, and which image goes to which."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int16, UInt16

from pixelhdm.errors import UserError, check_at_least, check_one_of

TooSmall = Literal["drop", "upscale", "error"]
DROPPED = -1
CHUNK = 4096  # sizes that are compared with all buckets at once


class Assignment(NamedTuple):
    """What happens to each image.

    Attributes:
        bucket: number of its bucket, or -1 where it is dropped.
        crop: share of its area that is cut away, 0 … 1.
        scale: factor of its sides, above 1 where it is enlarged.
    """

    bucket: Int16[np.ndarray, "N"]
    crop: Float32[np.ndarray, "N"]
    scale: Float32[np.ndarray, "N"]


@dataclass
class Buckets:
    """The table of training sizes and the rule by which images are assigned to them.

    For each level and each width the height is the largest whose area stays within the level's;
    the same with sides exchanged. An image goes to the largest bucket that neither enlarges it by
    more than max_upscale nor cuts off more than max_crop; else to the one of least crop that does
    not enlarge it; else it is too small. It is resized to cover its bucket, and cut.

    Args:
        min_side: shortest side of a bucket in pixels.
        max_side: longest side of a bucket in pixels.
        step: sides are multiples of it, in pixels.
        levels: limits of a bucket's area, each as the side of a square of that area in pixels.
            With one level alone most images smaller than it fit nothing.
        max_aspect: highest ratio of a bucket's longer to its shorter side.
        sizes: height and width of each bucket, in place of a generated table.
        max_upscale: highest factor by which an image may be enlarged; 1 for never.
        max_crop: highest share of an image that may be cut away, where another bucket serves it.
        too_small: what happens to an image that fits no bucket without being enlarged more: drop,
            upscale (to the bucket that enlarges it least) or error.
    """

    min_side: int = 256
    max_side: int = 1024
    step: int = 64
    levels: list[int] = field(default_factory=lambda: [1024, 768, 512, 384, 256])
    max_aspect: float = 4.0
    sizes: list[tuple[int, int]] | None = None
    max_upscale: float = 1.0
    max_crop: float = 0.08
    too_small: TooSmall = "drop"

    def __post_init__(self) -> None:
        check_at_least(1, min_side=self.min_side, step=self.step)
        check_one_of(TooSmall, too_small=self.too_small)
        if not self.max_upscale > 0:
            raise UserError(f"max_upscale must be above 0, got {self.max_upscale}.")
        if not 0 <= self.max_crop <= 1:
            raise UserError(f"max_crop must lie in 0 … 1, got {self.max_crop}.")
        if not self.max_aspect >= 1:
            raise UserError(f"max_aspect must be at least 1, got {self.max_aspect}.")
        if self.min_side > self.max_side or self.min_side % self.step or self.max_side % self.step:
            raise UserError(
                f"min_side and max_side must be multiples of step={self.step} in this order, got "
                f"{self.min_side} and {self.max_side}."
            )
        self.table = self.generated() if self.sizes is None else self.given()

    def generated(self) -> list[tuple[int, int]]:
        """The table, largest area first, of equal areas the wider first."""
        found = set()
        for level in self.levels:
            for side in range(self.min_side, self.max_side + 1, self.step):
                other = min(self.max_side, level**2 // side // self.step * self.step)
                if other >= self.min_side and max(side, other) <= self.max_aspect * min(
                    side, other
                ):
                    found |= {(side, other), (other, side)}
        if not found:
            raise UserError(
                f"levels must leave room for a bucket of at least {self.min_side} pixels a side, "
                f"got {self.levels}."
            )
        return sorted(found, key=lambda size: (-size[0] * size[1], size[0]))

    def given(self) -> list[tuple[int, int]]:
        """The table of a person's own sizes, in the order of areas."""
        sizes = [tuple(size) for size in self.sizes]
        if not sizes or len(set(sizes)) < len(sizes) or min(map(min, sizes)) < 1:
            raise UserError(
                f"sizes must be different pairs of height and width above 0, got {self.sizes}."
            )
        return sorted(sizes, key=lambda size: (-size[0] * size[1], size[0]))

    @classmethod
    def square(cls, side: int) -> "Buckets":
        """One bucket, side x side, that takes every image, enlarged and cut as it needs."""
        return cls(sizes=[(side, side)], max_upscale=math.inf, max_crop=1.0)

    @property
    def takes_all(self) -> bool:
        """Whether every image goes to the one bucket, whatever its size."""
        return len(self.table) == 1 and math.isinf(self.max_upscale)

    def described(self) -> str:
        """The table and the rule for a person; differs when either does."""
        sizes = ["{}x{}".format(*size) for size in self.table]
        table = sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes {sizes[0]} … {sizes[-1]}"
        return (
            f"{table} with max_upscale {self.max_upscale:g}, max_crop {self.max_crop:g}, too_small "
            f"{self.too_small} ({self.digest()})"
        )

    def digest(self) -> str:
        """A short text that differs when the table or the rule does."""
        rule = asdict(self) | {"table": self.table}
        for name in ("min_side", "max_side", "step", "levels", "max_aspect", "sizes"):
            del rule[name]  # the table says it
        return hashlib.sha256(json.dumps(rule, sort_keys=True).encode()).hexdigest()[:12]

    def assign(self, sizes: UInt16[np.ndarray, "N 2"]) -> Assignment:
        """The bucket of each image, given its upright width and height in pixels.

        An image of 0 x 0, whose header cannot be read, is dropped.

        Raises:
            UserError: an image is too small and too_small is error.
        """
        key = sizes[:, 0].astype(np.uint32) << 16 | sizes[:, 1]
        unique, of = np.unique(key, return_inverse=True)
        wide, high = (unique >> 16).astype(np.float64), (unique & 0xFFFF).astype(np.float64)
        parts = [
            self.choose(wide[at : at + CHUNK], high[at : at + CHUNK])
            for at in range(0, len(unique), CHUNK)
        ]
        if not parts:
            parts = [self.choose(wide, high)]
        bucket, crop, scale = (np.concatenate(part)[of] for part in zip(*parts, strict=True))
        if self.too_small == "error" and (small := (bucket == DROPPED) & (sizes > 0).all(1)).any():
            width, height = sizes[small][0]
            raise UserError(
                f"images must fit a bucket without being enlarged by more than {self.max_upscale}, "
                f"got {small.sum()} that do not, the first of {height}x{width} (height x width). "
                "Set too_small to drop or upscale, or lower min_side and add a level."
            )
        return Assignment(
            bucket.astype(np.int16), crop.astype(np.float32), scale.astype(np.float32)
        )

    def choose(self, width: np.ndarray, height: np.ndarray) -> tuple[np.ndarray, ...]:
        """Bucket, crop and scale of each of a few sizes."""
        tall, broad = np.array(self.table, dtype=np.float64).T
        known = (width > 0) & (height > 0)
        width, height = (np.where(known, side, 1.0)[:, None] for side in (width, height))
        scale = np.maximum(broad / width, tall / height)
        ratio = (broad * height) / (tall * width)  # of the shapes; no function that machines round
        crop = np.round(1 - np.minimum(ratio, 1 / ratio), 9)
        area = np.unique(tall * broad, return_inverse=True)[1]  # 0 for the smallest
        fits = scale <= self.max_upscale
        good = fits & (crop <= self.max_crop)
        best = np.argmax(np.where(good, area + 1 - crop, -1), axis=1)
        least_crop = np.argmin(np.where(fits, crop, 2), axis=1)
        small = ~fits.any(1)
        bucket = np.where(good.any(1), best, least_crop)
        bucket[small] = np.lexsort((crop[small], scale[small]), axis=1)[:, 0]
        kept = known & (~small | (self.too_small == "upscale"))
        pick = np.arange(len(bucket)), bucket
        return np.where(kept, bucket, DROPPED), crop[pick], scale[pick]
