"""Folders of images, one folder a class."""

import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt16
from tqdm import tqdm

from pixelhdm.data.decode import read_header
from pixelhdm.data.source import BadSample, ImageSource, Record
from pixelhdm.data.views import Crop, View
from pixelhdm.errors import UserError

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
HEADER = 65536  # bytes that hold nearly every image's size


class ImageFolder(ImageSource):
    """Images in class folders, as ImageNet is usually unpacked: <folder>/<class>/….jpg.

    Classes are numbered in the order of their folders' names. `main.py prepare` packs the same
    images into shards, checked and with their sizes, which starts sooner and finds damage.

    Args:
        folder: the folder of class folders.
        flip_prob: probability of mirroring an image left to right.
        crop: which part of an image is kept where its shape is not the bucket's: center, or
            random, another in every epoch.
    """

    knows_sizes = False

    def __init__(self, folder: str, flip_prob: float = 0.0, crop: Crop = "center"):
        self.folder, self.view = Path(folder), View(flip_prob, crop)

    def open(self) -> None:
        if not self.folder.is_dir():
            raise UserError(
                f"ImageFolder's folder must be a folder of class folders, got {self.folder}, "
                "which does not exist."
            )
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

    def sizes(self) -> UInt16[np.ndarray, "N 2"]:
        """Sizes, read from every file's header; 0 x 0 for what is no image."""
        bar = tqdm(self.items, "image sizes", unit="image", disable=None, delay=2)
        return np.array([size_of(file) for file, _ in bar], dtype=np.uint16).reshape(-1, 2)

    def load(self, index: int, seed: int, height: int, width: int) -> Record:
        file, label = self.items[index]
        try:
            data = file.read_bytes()
        except OSError as error:
            raise BadSample("missing", str(error)) from error
        return Record(self.view.image(data, seed, height, width), label)

    def place(self, index: int) -> dict[str, str | int]:
        return {"index": index, "path": str(self.items[index][0])}

    def fingerprint(self) -> str:
        names = "\n".join(f"{file.relative_to(self.folder)} {label}" for file, label in self.items)
        return f"folder-{hashlib.sha256(names.encode()).hexdigest()[:16]}"


def size_of(file: Path) -> tuple[int, int]:
    """Upright width and height of an image file; 0 x 0 where they cannot be told."""
    try:
        with open(file, "rb") as opened:
            data = opened.read(HEADER)
            try:
                header = read_header(data)
            except Exception:  # the header is longer, or there is none
                header = read_header(data + opened.read())
    except Exception:  # decoders meet broken files with nearly any exception
        return 0, 0
    return (header.width, header.height) if max(header[:2]) < 65536 else (0, 0)
