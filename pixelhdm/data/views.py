"""What of an image a training step sees: which part, mirrored or not, with which caption."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, UInt8

from pixelhdm.data.decode import cover, decode
from pixelhdm.data.source import BadSample
from pixelhdm.errors import UserError, check_one_of, one_line

Crop = Literal["center", "random"]


@dataclass
class View:
    """The random choices of an image, from its own seed alone.

    Args:
        flip_prob: probability of mirroring an image left to right.
        crop: which part of an image is kept where its shape is not the bucket's: center, or
            random, another in every epoch.
        caption_probs: probability of a sample's first caption, of its second and so on; where a
            sample has fewer, they keep their ratios. None takes all as likely.
    """

    flip_prob: float = 0.0
    crop: Crop = "center"
    caption_probs: list[float] | None = None

    def __post_init__(self) -> None:
        check_one_of(Crop, crop=self.crop)
        if not 0 <= self.flip_prob <= 1:
            raise UserError(f"flip_prob must lie in 0 … 1, got {self.flip_prob}.")
        probs = self.caption_probs
        if probs is not None and not (probs and all(0 < prob < math.inf for prob in probs)):
            raise UserError(
                f"caption_probs must be numbers above 0, one for each caption, got {probs}. "
                "Leave it empty to take all captions as likely."
            )

    def image(
        self,
        data: bytes,
        seed: int,
        height: int,
        width: int,
        size: tuple[int, int] | None = None,
    ) -> UInt8[np.ndarray, "{height} {width} 3"]:
        """The view of an image file that has a seed.

        Args:
            data: bytes of the file.
            seed: of the sample in this epoch.
            height: of the view in pixels.
            width: of the view in pixels.
            size: upright width and height that the image must have, where known.

        Raises:
            BadSample: the bytes are no image, or it has another size.
        """
        try:
            pixels = decode(data)
        except Exception as error:  # decoders meet broken files with nearly any exception
            raise BadSample("decode", one_line(error)) from error
        if size is not None and (pixels.shape[1], pixels.shape[0]) != size:
            found = f"{pixels.shape[1]}x{pixels.shape[0]}"
            raise BadSample("size", f"{found} pixels, {size[0]}x{size[1]} in the index")
        flip, down, right, _ = draws(seed)
        where = (down, right) if self.crop == "random" else (0.5, 0.5)
        view = cover(pixels, height, width, where)
        return view[:, ::-1] if flip < self.flip_prob else view

    def caption(self, num: int, seed: int) -> int:
        """The number of the caption that a sample with `num` of them is shown with."""
        if self.caption_probs is None:
            return int(draws(seed)[3] * num)
        upto = np.cumsum(self.caption_probs[:num])
        return int(np.searchsorted(upto, draws(seed)[3] * upto[-1], side="right"))


def draws(seed: int) -> Float64[np.ndarray, "4"]:
    """Four numbers in [0, 1) of a sample: for its flip, its crop down and right, its caption."""
    return np.random.default_rng(seed).random(4)
