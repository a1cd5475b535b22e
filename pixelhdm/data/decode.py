"""From an image file's bytes to upright RGB pixels, and to a size.

The rules, for every source: turned upright by EXIF; transparency laid on white; CMYK converted
without its profile; 16 bits of grey scaled to 8; of an animation the first frame.
"""

import io
import math
import struct
from typing import NamedTuple

import numpy as np
import PIL
import torch
import torchvision
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

JPEG = b"\xff\xd8\xff"
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # EXIF tag; its values that exchange width and height
DECODERS = f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}"
PIXELS = UInt8[np.ndarray, "H W 3"]


class Header(NamedTuple):
    """What an image's first bytes say.

    Attributes:
        width: of the upright image, in pixels.
        height: of the upright image, in pixels.
        kind: JPEG, PNG, WEBP, … as Pillow calls it.
        mode: RGB, CMYK, P, … as Pillow calls it.
        num_frames: more than 1 for an animation.
    """

    width: int
    height: int
    kind: str
    mode: str
    num_frames: int


def read_header(data: bytes) -> Header:
    """Size and kind of an image, without decoding it; any of Pillow's errors may leave it."""
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        if image.format != "TIFF" and orientation_of(image) in TURNED:  # Pillow turns TIFFs
            width, height = height, width
        frames = getattr(image, "n_frames", 1)
        return Header(width, height, image.format or "", image.mode, frames)


def orientation_of(image: Image.Image) -> int | None:
    """The EXIF orientation in an opened image's header; a PNG's own getexif would decode it all."""
    if image.format != "PNG":
        return image.getexif().get(ORIENTATION)
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    return exif.get(ORIENTATION)


def decode(data: bytes) -> PIXELS:
    """The upright RGB pixels of an image file; any error of a decoder may leave it.

    Pillow decodes all but plain JPEGs: torchvision's decode_png crashes on some damaged files.
    """
    if is_plain_jpeg(data):
        tensor = decode_jpeg(as_tensor(data), ImageReadMode.RGB, apply_exif_orientation=True)
        return tensor.permute(1, 2, 0).numpy()
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(on_white(image))


def as_tensor(data: bytes) -> torch.Tensor:
    """Bytes as a tensor that shares them."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def is_plain_jpeg(data: bytes) -> bool:
    """Whether torchvision decodes a file as the rules say: a JPEG of 1 or 3 colours."""
    if not data.startswith(JPEG):
        return False
    height, width, colours = jpeg_frame(data)
    check_size(height, width)
    return colours in (1, 3)


def jpeg_frame(data: bytes) -> tuple[int, int, int]:
    """Height, width and number of colours in a JPEG's frame header (ITU-T T.81, B.2.2); zeros
    where none is found.
    """
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return *struct.unpack(">HH", data[at + 5 : at + 9]), data[at + 9]
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0, 0, 0


def check_size(height: int, width: int) -> None:
    """Raise Pillow's error for an image so large that its header is hardly honest."""
    most = 2 * (Image.MAX_IMAGE_PIXELS or math.inf)
    if height * width > most:
        raise Image.DecompressionBombError(f"image of {height}x{width} pixels has more than {most}")


def on_white(image: Image.Image) -> Image.Image:
    """An opened image as upright RGB, transparency laid on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey
        image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def cover(
    pixels: PIXELS, height: int, width: int, where: tuple[float, float]
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Resize an image so that it just covers height x width, and cut that out.

    Bicubic with antialiasing. Nothing is resized that has the size already.

    Args:
        pixels: the image.
        height: of the result in pixels.
        width: of the result in pixels.
        where: the cut's place down and to the right, 0 … 1 of the way; 0.5 is the centre.
    """
    if pixels.shape[:2] != (height, width):
        scale = max(height / pixels.shape[0], width / pixels.shape[1])
        size = [
            max(height, round(pixels.shape[0] * scale)),
            max(width, round(pixels.shape[1] * scale)),
        ]
        image = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
        image = resize(image.permute(2, 0, 1), size, InterpolationMode.BICUBIC, antialias=True)
        pixels = image.permute(1, 2, 0).numpy()
    top, left = (
        round(part * (have - need))
        for part, have, need in zip(where, pixels.shape, (height, width), strict=False)
    )
    return pixels[top : top + height, left : left + width]
