"""Features of the images that a file of statistics holds."""

import os
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from pixelhdm.errors import UserError
from pixelhdm.evaluation.arrays_file import ArraysFile, remove_leftovers
from pixelhdm.evaluation.extractors.extractor import Extractor, Features
from pixelhdm.evaluation.gathering import joined
from pixelhdm.files import replacing

IMAGES = "arr_0"


def features_of_images(
    arrays: ArraysFile, extractor: Extractor, device: torch.device, batch_size: int
) -> Features:
    """Features of a file's images in random order, always the same one.

    They are computed once and then lie beside the file, where its folder can be written to.

    Raises:
        UserError: the file's images are none of uint8, N H W 3, or fewer than two.
    """
    num = num_images_in(arrays)
    name = f"{arrays.file.stem}.{extractor.key}-{extractor.digest()}-{arrays.crc32(IMAGES):08x}.npz"
    cache = arrays.file.with_name(name)
    remove_leftovers(cache)
    known = cached(cache)
    if known is not None:
        return known
    found = []
    bar = tqdm(total=num, desc=f"{extractor.label}, real images", unit="image", disable=None)
    with bar:
        for images in arrays.rows(IMAGES, batch_size):
            found.append(extractor(torch.from_numpy(images.copy()).to(device)))
            bar.update(len(images))
    order = torch.from_numpy(np.random.default_rng(0).permutation(num))
    features = Features(*(None if own is None else own[order] for own in joined(found)))
    if os.access(cache.parent, os.W_OK):
        own = {key: value for key, value in features._asdict().items() if value is not None}
        with replacing(cache) as temporary, open(temporary, "wb") as out:
            np.savez(out, **{key: value.numpy() for key, value in own.items()})
        print(f"{extractor.label}'s features of its images are kept in {cache} for next time.")
    return features


def num_images_in(arrays: ArraysFile) -> int:
    """How many images a file holds; raise a UserError where they are none, or too few."""
    shape, dtype = arrays.layout(IMAGES)
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3:
        raise UserError(
            f"{IMAGES} of a reference must be images, uint8 of N H W 3, got {dtype} of "
            f"{' '.join(map(str, shape))} in {arrays.file}. Make one with main.py stats."
        )
    if shape[0] < 2:
        raise UserError(
            f"{IMAGES} of a reference must be at least 2 images, got {shape[0]} in {arrays.file}. "
            "Make one of more with main.py stats."
        )
    return shape[0]


def cached(file: Path) -> Features | None:
    """Features that an earlier call has kept; None where there are none, or torn ones."""
    if not file.is_file():
        return None
    try:
        with ArraysFile(file) as arrays:
            return Features(**{key: torch.from_numpy(arrays.array(key)) for key in arrays.names})
    except UserError:  # torn: it is made again
        return None
