"""The images to draw, in batches for each process."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from pixelhdm.data.draws import DrawItem
from pixelhdm.data.start_files import as_conditions, load_starts


def conditions(items: list[DrawItem]) -> Tensor | list[str]:
    """The conditions as a conditioner takes them."""
    return as_conditions([item.condition for item in items])


class DrawLoader:
    """This process's share of the images to draw, in batches of one kind; none twice, none missing.
    A batch holds condition, seed and items; start too, where its images begin from others.

    Args:
        items: which images.
        batch_size: images per batch.
        rank: number of this process.
        world_size: number of processes.
    """

    def __init__(self, items: list[DrawItem], batch_size: int, rank: int = 0, world_size: int = 1):
        first = {item.kind: place for place, item in reversed(list(enumerate(items)))}
        by_kind = sorted(items, key=lambda item: first[item.kind])  # evenly shared by kind, too
        self.parts: list[list[DrawItem]] = []
        for _, group in groupby(by_kind[rank::world_size], key=lambda item: item.kind):
            own = list(group)
            starts = range(0, len(own), batch_size)
            self.parts += [own[start : start + batch_size] for start in starts]

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for items in self.parts:
            seeds = torch.tensor([item.seed for item in items])
            batch = {"condition": conditions(items), "seed": seeds, "items": items}
            if items[0].start is not None:
                starts = [item.start for item in items]
                batch["start"] = load_starts(starts, items[0].height, items[0].width)
            yield batch
