"""Which images to draw."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pixelhdm.data.loader import Batch
from pixelhdm.errors import UserError


@dataclass
class ClassDraws:
    """The images that `predict` and the sample grids draw: some of each class, each from its own
    seed.

    Args:
        classes: class numbers, one or a list.
        num_per_class: images of each class.
        seed: seed of the first image of each class; the next ones count up. Seeds belong to images:
            the same seed and class give the same picture in any batch.
        height: height in pixels; the image_size of the data when empty.
        width: width in pixels; the image_size of the data when empty.
    """

    classes: int | list[int]
    num_per_class: int = 10
    seed: int = 0
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        if self.num_per_class < 1:
            raise UserError(f"num_per_class must be at least 1, got {self.num_per_class}.")
        if self.seed < 0:
            raise UserError(f"seed must be at least 0, got {self.seed}.")

    @property
    def class_list(self) -> list[int]:
        """The classes, always as a list."""
        return [self.classes] if isinstance(self.classes, int) else list(self.classes)


class DrawLoader:
    """This process's share of the images to draw, in batches; none twice, none missing.

    Args:
        draws: which images.
        batch_size: images per batch.
        rank: number of this process.
        world_size: number of processes.
    """

    def __init__(self, draws: ClassDraws, batch_size: int, rank: int = 0, world_size: int = 1):
        seeds = range(draws.seed, draws.seed + draws.num_per_class)
        pairs = [(number, seed) for number in draws.class_list for seed in seeds][rank::world_size]
        self.parts = [
            pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)
        ]

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Batch]:
        for part in self.parts:
            condition, seed = zip(*part, strict=True)
            yield {"condition": torch.tensor(condition), "seed": torch.tensor(seed)}
