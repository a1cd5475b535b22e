"""Many ways from noise to image, shown at once."""

import math

import numpy as np
from PIL import Image

from pixelhdm.inference.showing.grid import GAP, MIN_CELL, Pixels, zoom_to

MAX_CELL = 128  # pixels


def fitted(frame: Pixels) -> Pixels:
    """A frame small enough to stand among many: a large one is averaged over squares."""
    factor = -(-max(frame.shape[:2]) // MAX_CELL)
    return np.asarray(Image.fromarray(frame).reduce(factor))


def side_by_side(pictures: list[list[Pixels]]) -> tuple[list[Pixels], int]:
    """The frames of several pictures as those of one, as many in a row as rows, and how many times
    larger it is to be shown: such that each of them is at least 64 wide and high. Smaller ones
    stand in the middle of their cells; those of fewer frames show each of them longer.
    """
    num, columns = max(map(len, pictures)), math.ceil(math.sqrt(len(pictures)))
    pictures = [stretched(frames, num) for frames in pictures]
    sizes = np.array([frames[0].shape[:2] for frames in pictures])
    (height, width), zoom = sizes.max(axis=0).tolist(), zoom_to(MIN_CELL, int(sizes.min()))
    gap = max(1, GAP // zoom)
    rows = -(-len(pictures) // columns)
    shape = rows * (height + gap) + gap, columns * (width + gap) + gap, 3
    whole = [np.full(shape, 255, dtype=np.uint8) for _ in pictures[0]]
    for number, frames in enumerate(pictures):
        own_height, own_width, _ = frames[0].shape
        top = gap + number // columns * (height + gap) + (height - own_height) // 2
        left = gap + number % columns * (width + gap) + (width - own_width) // 2
        for canvas, frame in zip(whole, frames, strict=True):
            canvas[top : top + own_height, left : left + own_width] = frame
    return whole, zoom


def stretched(frames: list[Pixels], num: int) -> list[Pixels]:
    """`num` frames, some of them again where there are fewer."""
    places = np.linspace(0, len(frames) - 1, num).round().astype(int)
    return [frames[place] for place in places]
