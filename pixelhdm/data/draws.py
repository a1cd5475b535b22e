"""Which images to draw."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pixelhdm.data.loader import Batch
from pixelhdm.errors import UserError, check_at_least


@dataclass
class ClassDraws:
    """The images that `predict` and the sample grids draw, each from its own seed.

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
        check_at_least(1, num_per_class=self.num_per_class)
        check_at_least(0, seed=self.seed)
        last = self.seed + self.num_per_class - 1
        if last >= 2**63:
            raise UserError(f"seed must be below 2^63 for every image, got {self.seed} … {last}.")
        if not self.class_list or len(set(self.class_list)) < len(self.class_list):
            raise UserError(f"classes must be different class numbers, got {self.classes}.")
        for name in ("height", "width"):
            side = getattr(self, name)
            check_at_least(1, **{name: 1 if side is None else side})

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
