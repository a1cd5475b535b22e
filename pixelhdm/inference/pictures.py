"""Pictures of Python users as images to begin from, and back."""

from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from pixelhdm.data.decode import cover, on_white
from pixelhdm.data.start_files import CENTRE
from pixelhdm.errors import UserError
from pixelhdm.inference.pixels import from_pixels, to_pixels
from pixelhdm.inference.samplers import Image as Images

Picture = Image.Image | np.ndarray | Tensor


def images_of(given: list[Picture], height: int, width: int) -> Images:
    """Pictures as images in [-1, 1], resized to cover a size and cut in the middle."""
    cut = [cover(pixels_of("image", one), height, width, CENTRE) for one in given]
    return from_pixels(torch.from_numpy(np.stack(cut)))


def masks_of(
    given: list[Picture], images: list[Picture], height: int, width: int
) -> Float[Tensor, "B H W 1"]:
    """Masks of pictures, 1 where they are white, resized and cut as the pictures are.

    Raises:
        UserError: a mask has another size than its picture.
    """
    cut = []
    for mask, image in zip(given, images, strict=True):
        sizes = [
            "{}x{}".format(*pixels_of(name, one).shape)
            for name, one in (("image", image), ("mask_image", mask))
        ]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"mask_image must have the size of its image, {sizes[0]}, got {sizes[1]}."
            )
        cut.append(cover(pixels_of("mask_image", mask), height, width, CENTRE))
    return torch.from_numpy(np.stack(cut).mean(axis=3, keepdims=True, dtype=np.float32) / 255)


def listed(given: Any) -> Any:
    """A batch of pictures in one array or tensor as a list; anything else as it is."""
    is_batch = isinstance(given, np.ndarray | Tensor) and given.ndim == 4
    return list(given) if is_batch else given


def pixels_of(name: str, picture: Picture) -> UInt8[np.ndarray, "_ _ 3"]:
    """A picture as pixels: a Pillow image, or an array or tensor H W, H W 1 or H W 3 of integers
    0 … 255 or floats 0 … 1.

    Raises:
        UserError: it is something else.
    """
    if isinstance(picture, Image.Image):
        return np.array(on_white(picture))
    if not isinstance(picture, np.ndarray | Tensor):
        raise UserError(
            f"{name} must be a Pillow image, array or tensor, got {type(picture).__name__}."
        )
    array = picture.detach().cpu().numpy() if isinstance(picture, Tensor) else picture
    if array.ndim == 2:
        array = rearrange(array, "h w -> h w 1")
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        raise UserError(
            f"{name} must be height x width x 3 or height x width, got the shape "
            f"{tuple(array.shape)}."
        )
    is_whole = np.issubdtype(array.dtype, np.integer)
    least, most, limit = array.min(), array.max(), 255 if is_whole else 1
    if not 0 <= least <= most <= limit:
        kind = "integers" if is_whole else "floats"
        raise UserError(f"{name} must lie in 0 … {limit} as {kind}, got {least} … {most}.")
    pixels = np.round(array * (255 / limit)).astype(np.uint8)
    return repeat(pixels, "h w 1 -> h w c", c=3) if pixels.shape[2] == 1 else pixels


def in_form(images: Images, output_type: str) -> list[Image.Image] | np.ndarray | Tensor:
    """Images as pil, a list of Pillow's; numpy, B H W 3 in 0 … 1; or tensor, as they are."""
    if output_type == "tensor":
        return images
    if output_type == "numpy":
        return ((images + 1) / 2).numpy()
    return [Image.fromarray(pixels) for pixels in to_pixels(images).numpy()]
