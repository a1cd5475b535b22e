"""Folders of images, one folder a class."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pixelhdm.data.source import ImageSource, Record
from pixelhdm.errors import UserError

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


class ImageFolder(ImageSource):
    """Images in class folders, as ImageNet is usually unpacked: <folder>/<class>/….jpg.

    Classes are numbered in the order of their folders' names. Each image is turned upright (EXIF),
    laid on white where transparent, resized by its shorter side and cropped in the centre.

    Args:
        folder: the folder of class folders.
        flip_prob: probability of mirroring an image left to right.
    """

    def __init__(self, folder: str, flip_prob: float = 0.0):
        if not 0 <= flip_prob <= 1:
            raise UserError(f"flip_prob must lie in 0 … 1, got {flip_prob}.")
        self.folder, self.flip_prob = Path(folder), flip_prob

    def open(self, image_size: int) -> None:
        if not self.folder.is_dir():
            raise UserError(
                f"ImageFolder's folder must be a folder of class folders, got {self.folder}, "
                "which does not exist."
            )
        self.image_size = image_size
        classes = sorted(
            entry
            for entry in self.folder.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )
        self.classes = tuple(entry.name for entry in classes)
        self.items = [
            (file, label)
            for label, entry in enumerate(classes)
            for file in sorted(entry.rglob("*"))
            if file.suffix.lower() in ENDINGS
        ]
        if not self.items:
            raise UserError(
                f"ImageFolder's folder must hold images in class folders, got {self.folder}, "
                "which has none. "
                f"Expected <folder>/<class>/<image> with one of {', '.join(sorted(ENDINGS))}."
            )

    def __len__(self) -> int:
        return len(self.items)

    def load(self, index: int, seed: int) -> Record:
        file, label = self.items[index]
        try:
            image = center_crop(read_image(file), self.image_size)
        except Exception as error:  # decoders meet broken files with nearly any exception
            raise UserError(
                f"{file} must be a readable image, got: {error}. Remove or replace it."
            ) from error
        if np.random.default_rng(seed).random() < self.flip_prob:
            image = ImageOps.mirror(image)
        return Record(np.asarray(image), label)

    def fingerprint(self) -> str:
        names = "\n".join(f"{file.relative_to(self.folder)} {label}" for file, label in self.items)
        return f"folder-{hashlib.sha256(names.encode()).hexdigest()[:16]}"


def read_image(file: Path) -> Image.Image:
    """Read an image as upright RGB, transparency laid on white."""
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16 bits of grey
            image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` (halving first, as guided-diffusion does) and cut out the
    centre.
    """
    while min(image.size) >= 2 * size:
        image = image.reduce(2)
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
