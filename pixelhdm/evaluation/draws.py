"""Which images an evaluation draws."""

from collections.abc import Iterator
from typing import Any

from pixelhdm.data.draw_loader import DrawLoader
from pixelhdm.data.draws import DrawItem
from pixelhdm.data.prompt_fields import IMAGE_ENDING
from pixelhdm.errors import UserError


def in_turn(each: list[DrawItem], num_images: int, seed: int) -> list[DrawItem]:
    """Images of classes or prompts in turn, image i of `each[i % len(each)]` with seed + i.

    So their numbers differ by one at most, also of the first n, and no two share their noise.

    Args:
        each: one image of each class or prompt.
        num_images: number of images.
        seed: seed of the first one.
    """
    return [
        each[number % len(each)]._replace(seed=seed + number, file=f"{number:06d}{IMAGE_ENDING}")
        for number in range(num_images)
    ]


def one_size(each: list[DrawItem]) -> tuple[int, int]:
    """Height and width of all images.

    Raises:
        UserError: they have several.
    """
    sizes: dict[tuple[int, int], str] = {}
    for item in each:
        sizes.setdefault((item.height, item.width), item.place)
    if len(sizes) > 1:
        told = " and ".join(f"{h}x{w} ({place})" for (h, w), place in list(sizes.items())[:2])
        raise UserError(
            f"images to evaluate must all have one size, got {told}. Leave the sizes out of the "
            "prompts and set data.draw.height and data.draw.width."
        )
    return next(iter(sizes))


class ChunkLoader:
    """This process's chunks of images to draw, in batches none of which reaches over a chunk's end:
    the same batches for any number of processes.

    Args:
        chunks: the images of each chunk.
        batch_size: images per batch.
    """

    def __init__(self, chunks: list[list[DrawItem]], batch_size: int):
        self.loaders = [DrawLoader(items, batch_size) for items in chunks]

    def __len__(self) -> int:
        return sum(map(len, self.loaders))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for loader in self.loaders:
            yield from loader
