"""One walk over a dataset's images for all extractors."""

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from tqdm import tqdm

from pixelhdm.data.batches import Slots, load_ahead
from pixelhdm.data.image_folder import ImageFolder
from pixelhdm.data.mix import Mix
from pixelhdm.data.shards import Shards
from pixelhdm.data.source import ImageSource
from pixelhdm.data.views import View
from pixelhdm.errors import UserError
from pixelhdm.evaluation.extractors.extractor import Extractor
from pixelhdm.evaluation.gathering import Gathering

SHOWN = 3  # bad images that are named


@dataclass
class Walk:
    """Which images of a source are looked at, and how.

    Args:
        source: opened; its own flips and random crops count for nothing.
        height: of the images in pixels.
        width: of the images in pixels.
        device: where the extractors compute.
        num_images: how many, a uniform random choice; None takes all.
        num_kept: of how many of them the features are kept, the first of a random order.
        num_images_kept: how many of those are kept themselves.
        batch_size: images at once.
        num_workers: threads that decode; 0 decodes between the batches.
        seed: of the choice and of the order.
    """

    source: ImageSource
    height: int
    width: int
    device: torch.device
    num_images: int | None = None
    num_kept: int = 10_000
    num_images_kept: int = 0
    batch_size: int = 64
    num_workers: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        have = len(self.source)
        if self.num_images is not None and not 2 <= self.num_images <= have:
            raise UserError(
                f"num_images must lie in 2 … {have}, the number of the data's images, got "
                f"{self.num_images}. Leave it empty to take all."
            )
        if self.num_images_kept > self.num_kept:
            raise UserError(
                f"num_images_kept must be at most num_kept={self.num_kept}, got "
                f"{self.num_images_kept}."
            )
        num = self.num_images or have
        order = np.random.default_rng(self.seed).permutation(have)[:num]
        # The rest in the order of the files, which disks read faster.
        self.order = np.concatenate([order[: self.num_kept], np.sort(order[self.num_kept :])])

    def slots(self) -> Iterator[Slots]:
        """The images, batch by batch; the seeds decide nothing where nothing is varied."""
        for start in range(0, len(self.order), self.batch_size):
            index = self.order[start : start + self.batch_size]
            size, seeds = (self.height, self.width), np.zeros(len(index), dtype=np.int64)
            yield Slots(0, start // self.batch_size, size, len(index), index, seeds)

    def gather(self, extractors: list[Extractor]) -> "Gathered":
        """Look at every image once; those that cannot be read are left out and named."""
        gatherings = [Gathering(extractor) for extractor in extractors]
        images, bad, num, at = [], [], 0, 0
        source = unvaried(self.source)
        batches = load_ahead(source, self.slots(), self.num_workers, "thread", pin=False)
        with tqdm(total=len(self.order), desc="statistics", unit="image", disable=None) as bar:
            for _, batch in batches:
                is_good = batch["weight"] > 0
                pixels = batch["image"][is_good]
                bad += batch["bad"]
                is_kept = torch.arange(at, at + len(is_good)) < self.num_kept
                num_kept = int((is_kept & is_good).sum())
                if len(pixels):
                    for gathering in gatherings:
                        gathering.add(pixels.to(self.device), num_kept)
                    wanted = min(num_kept, self.num_images_kept - sum(map(len, images)))
                    images += [pixels[:wanted].numpy().copy()] if wanted > 0 else []
                num, at = num + len(pixels), at + len(is_good)
                bar.update(len(is_good))
        if num < 2:
            raise UserError(
                f"statistics must be of at least 2 images, got {num} that could be read of "
                f"{len(self.order)}."
            )
        return Gathered(gatherings, np.concatenate(images) if images else None, num, bad)


def unvaried(source: ImageSource) -> ImageSource:
    """A copy of an opened source that shows the middle of its images, unmirrored and uncaptioned,
    whatever a training sees of them.
    """
    own = copy(source)
    if isinstance(own, Mix):
        own.sources = [unvaried(part) for part in own.sources]
        own.empty = own.sources[0].empty
    if isinstance(own, ImageFolder | Shards):
        own.view = View()
    if isinstance(own, Shards):
        own.condition, own.empty = "none", 0
    return own


@dataclass
class Gathered:
    """What a walk found.

    Attributes:
        gatherings: one of each extractor.
        images: those that are kept.
        num_images: how many were looked at.
        bad: where those lie that could not be read, and why.
    """

    gatherings: list[Gathering]
    images: UInt8[np.ndarray, "K H W 3"] | None
    num_images: int
    bad: list[dict[str, Any]]

    def left_out(self) -> list[str]:
        """Lines that say how many images cannot be read and where the first lie; none for none."""
        if not self.bad:
            return []
        places = (
            "  " + ", ".join(f"{key} {value}" for key, value in bad.items() if key != "epoch")
            for bad in self.bad[:SHOWN]
        )
        return [f"Left out {len(self.bad):,} images that cannot be read:", *places]
