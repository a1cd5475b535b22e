"""Images as one array, for the evaluators of others."""

from collections.abc import Iterable
from io import BufferedIOBase
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

import numpy as np
from jaxtyping import Int64, UInt8

from pixelhdm.files import replacing


def npz_name(num: int, height: int, width: int) -> str:
    """What the file is called, as guided-diffusion calls it."""
    return f"samples_{num}x{height}x{width}x3.npz"


def write_image_npz(
    file: Path,
    images: Iterable[UInt8[np.ndarray, "H W 3"]],
    num: int,
    height: int,
    width: int,
    labels: Int64[np.ndarray, "N"] | None = None,
) -> None:
    """Write images as arr_0 (uint8 N H W 3) and their classes as arr_1, one image at a time.

    The evaluator of openai/guided-diffusion reads such files, evaluations/evaluator.py.

    Args:
        file: where to write.
        images: the images.
        num: how many they are.
        height: height of all of them.
        width: width of all of them.
        labels: class of each; None for images of prompts.

    Raises:
        ValueError: they are of another number or size.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(file) as temporary,
        open(temporary, "wb") as stream,
        ZipFile(stream, "w", ZIP_STORED) as archive,
    ):
        with archive.open("arr_0.npy", "w", force_zip64=True) as out:
            write_rows(out, images, (num, height, width, 3))
        if labels is not None:
            with archive.open("arr_1.npy", "w", force_zip64=True) as out:
                np.lib.format.write_array(out, labels, allow_pickle=False)


def write_rows(
    out: BufferedIOBase,
    images: Iterable[UInt8[np.ndarray, "H W 3"]],
    shape: tuple[int, int, int, int],
) -> None:
    """Write an array of uint8, row by row."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)
    found = 0
    for image in images:
        if image.shape != shape[1:]:
            raise ValueError(f"images must have shape {shape[1:]}, got {image.shape}.")
        out.write(image.tobytes())
        found += 1
    if found != shape[0]:
        raise ValueError(f"images must be {shape[0]}, got {found}.")
