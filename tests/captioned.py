"""Captioned images of several shapes, made into shards by the command prepare."""

from pathlib import Path

import numpy as np
from PIL import Image

from pixelhdm.data.prepare.prepare import prepare

SIZES = ((20, 20), (17, 28), (30, 16), (13, 12))  # width, height


def prepare_captioned(out: str | Path, num_images: int = 12) -> None:
    """Write shards of random images, each of one or two captions, to `out`."""
    random, folder = np.random.default_rng(0), Path(f"{out}_images")
    folder.mkdir(parents=True)
    for number in range(num_images):
        width, height = SIZES[number % len(SIZES)]
        pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        text = f"picture {number}" + f", a square of colour {number}" * (number % 2)
        (folder / f"{number:02d}.txt").write_text(text)
    prepare(str(folder), str(out), min_side=8, num_processes=1, require_captions=True)
