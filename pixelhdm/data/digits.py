"""The handwritten digits inside scikit-learn."""

import hashlib
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
from einops import repeat
from jaxtyping import UInt16

from pixelhdm.data.decode import cover
from pixelhdm.data.source import ImageSource, Record
from pixelhdm.errors import UserError, check_one_of
from pixelhdm.files import replacing

Split = Literal["train", "val"]
SIDE, LEVELS, HELD_OUT_EVERY = 8, 16, 10


class Digits(ImageSource):
    """1,797 handwritten digits of 8x8 pixels in 10 classes (UCI optical recognition of handwritten
    digits, CC BY 4.0).

    They ship inside scikit-learn; `prepare` writes them once to <folder>/digits.npz. Every tenth
    image is held out.

    Args:
        folder: where the file lies or is to be written.
        split: "train" (1,617 images) or "val" (the 180 held-out ones).
    """

    def __init__(self, folder: str = "data/digits", split: Split = "train"):
        check_one_of(Split, split=split)
        self.file, self.split = Path(folder) / "digits.npz", split

    classes = tuple("0123456789")

    def prepare(self) -> None:
        if self.file.exists():
            return
        folder = self.file.parent
        if folder.exists() and any(path.is_dir() for path in folder.iterdir()):
            raise UserError(
                f"folder of Digits must hold no other folders, got {folder}, which does. For "
                "images in class folders set --data.train and --data.val to ImageFolder."
            )
        from sklearn.datasets import load_digits

        digits = load_digits()
        grey = np.round(digits.images * (255 / LEVELS)).astype(np.uint8)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.file) as temporary, open(temporary, "wb") as out:
            np.savez(
                out,
                image=repeat(grey, "n h w -> n h w c", c=3),
                label=digits.target.astype(np.int64),
            )

    def open(self) -> None:
        try:
            with np.load(self.file) as stored:
                image, label = stored["image"], stored["label"]
        except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile) as error:
            raise UserError(
                f"{self.file} must be the digits file, got: {error}. Delete it to write it anew."
            ) from error
        held_out = np.arange(len(label)) % HELD_OUT_EVERY == 0
        keep = held_out if self.split == "val" else ~held_out
        self.images, self.labels = image[keep], label[keep]

    def __len__(self) -> int:
        return len(self.labels)

    def sizes(self) -> UInt16[np.ndarray, "N 2"]:
        return np.full((len(self), 2), SIDE, dtype=np.uint16)

    def load(self, index: int, seed: int, height: int, width: int) -> Record:
        view = cover(self.images[index], height, width, (0.5, 0.5))
        return Record(view, int(self.labels[index]))

    def fingerprint(self) -> str:
        return f"digits-{self.split}-{hashlib.sha256(self.images.tobytes()).hexdigest()[:16]}"
