"""The handwritten digits inside scikit-learn."""

import contextlib
import io
from pathlib import Path
from typing import Literal

import numpy as np

from pixelhdm.data.prepare.lock import alone_in
from pixelhdm.data.prepare.prepare import prepare
from pixelhdm.data.shards import Shards
from pixelhdm.errors import UserError, check_one_of
from pixelhdm.files import replacing

Split = Literal["train", "val"]
SIDE, LEVELS, HELD_OUT_EVERY = 8, 16, 10
IDX_NAMES = {"train": "train", "val": "t10k"}


class Digits(Shards):
    """1,797 handwritten digits of 8x8 pixels in 10 classes (UCI optical recognition of handwritten
    digits, CC BY 4.0).

    They ship inside scikit-learn; `prepare` writes them once to shards, as main.py prepare does
    with MNIST. Every tenth image is held out.

    Args:
        folder: where they lie or are to be written.
        split: "train" (1,617 images) or "val" (the 180 held-out ones).
    """

    def __init__(self, folder: str = "data/digits", split: Split = "train"):
        check_one_of(Split, split=split)
        super().__init__(f"{folder}/{split}")
        self.folder, self.split = Path(folder), split

    def prepare(self) -> None:
        ready = self.folder / self.split / "dataset.json"
        if self.folder.exists() and not ready.exists():
            own = {"raw", *IDX_NAMES}
            others = {entry.name for entry in self.folder.iterdir() if entry.is_dir()} - own
            if others:
                raise UserError(
                    f"folder of Digits must hold no other folders, got {self.folder}, which does. "
                    "For images in class folders set --data.train and --data.val to ImageFolder."
                )
        if not ready.exists():
            with alone_in(self.folder):
                if not ready.exists():
                    self.write()
        super().prepare()

    def write(self) -> None:
        """Write the shards of the split."""
        raw = self.folder / "raw"
        write_idx(raw, self.split)
        with contextlib.redirect_stdout(io.StringIO()):  # report.txt keeps it
            prepare(
                str(raw),
                str(self.folder / self.split),
                split=self.split,
                min_side=SIDE,
                keep_duplicates=True,
                num_processes=1,
            )


def write_idx(folder: Path, split: Split) -> None:
    """Write one split of scikit-learn's digits as MNIST's files hold them."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    held_out = np.arange(len(digits.target)) % HELD_OUT_EVERY == 0
    keep = held_out if split == "val" else ~held_out
    images = np.round(digits.images[keep] * (255 / LEVELS)).astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    for kind, array in (("images-idx3", images), ("labels-idx1", digits.target[keep])):
        lengths = np.array(array.shape, dtype=">u4").tobytes()
        file = folder / f"{IDX_NAMES[split]}-{kind}-ubyte"
        with replacing(file) as temporary:
            temporary.write_bytes(
                bytes([0, 0, 8, array.ndim]) + lengths + array.astype(np.uint8).tobytes()
            )
