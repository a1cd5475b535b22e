"""What a source of images is."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from pixelhdm.errors import UserError


class Record(NamedTuple):
    """One labelled picture.

    Attributes:
        image: pixels, uint8.
        label: class number.
    """

    image: UInt8[np.ndarray, "H W 3"]
    label: int


class ImageSource(ABC):
    """Base of all sources: a fixed list of labelled images, found by their index 0 … len - 1.

    Building one touches no file; `prepare` may write, `open` reads.

    Attributes:
        classes: names of the classes in the order of their numbers; known after `open`.
    """

    classes: tuple[str, ...] = ()

    def prepare(self) -> None:
        """Write what is needed on this machine, once; called by one process."""

    @abstractmethod
    def open(self, image_size: int) -> None:
        """Read what `len` and `load` need, for images of `image_size` x `image_size`; called by
        every process.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def load(self, index: int, seed: int) -> Record:
        """One image of the size given to `open`; `seed` decides random flips and crops."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A short text that differs when the data differ; call after `open`."""


def check_image_size(given: int, native: int, name: str) -> None:
    """Raise unless the asked size is the only one that a source has."""
    if given != native:
        raise UserError(f"image_size must be {native} for {name}, got {given}.")
