"""What a source of images is."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from jaxtyping import BFloat16, Int16, Int64, Integer, UInt8, UInt16
from torch import Tensor


class Record(NamedTuple):
    """One picture with its condition.

    Attributes:
        image: pixels, uint8.
        condition: class number, caption, or a caption's states.
    """

    image: UInt8[np.ndarray, "H W 3"]
    condition: int | str | BFloat16[Tensor, "T C"]


class BadSample(Exception):
    """A sample that cannot be given; training goes on without it.

    Attributes:
        reason: missing, torn, unreachable, crc, decode, size or text.
        detail: what exactly, in a few words.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class ImageSource(ABC):
    """Base of all sources: a fixed list of images, found by their index 0 … len - 1.

    Building one touches no file; `prepare` may write, `open` reads.

    Attributes:
        classes: names of the classes in the order of their numbers; known after `open`.
        empty: the condition of a slot without image, of the kind that all conditions have.
        knows_sizes: whether `sizes` is quick, as an index has them.
    """

    classes: tuple[str, ...] = ()
    empty: int | str = 0
    knows_sizes: bool = True

    def prepare(self) -> None:
        """Write what is needed on this machine, once; called by one process."""

    @abstractmethod
    def open(self) -> None:
        """Read what all below need; called by every process."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def sizes(self) -> UInt16[np.ndarray, "N 2"]:
        """Upright width and height of each image in pixels, 0 x 0 where it cannot be told."""

    @abstractmethod
    def load(self, index: int, seed: int, height: int, width: int) -> Record:
        """One image at a size; `seed` decides random flips, crops and the choice of a caption.

        Raises:
            BadSample: it cannot be given.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """A short text that differs when the data differ; call after `open`."""

    def leaves(self) -> list["ImageSource"]:
        """The sources that it is made of; itself where it is not of several."""
        return [self]

    def shards(self) -> Integer[np.ndarray, "N"] | None:
        """For each image the number of the file that it lies in, those of one file standing
        together; none where that does not matter.
        """
        return None

    def place(self, index: int) -> dict[str, str | int]:
        """Where an image lies, to name it to a person."""
        return {"index": index}

    def problems(self) -> tuple[str, ...]:
        """What is wrong with the files as a whole, one sentence each."""
        return ()

    def rows(
        self, bucket: Int16[np.ndarray, "N"], seed: int, epoch: int
    ) -> Int64[np.ndarray, "M"] | None:
        """The samples of an epoch, where they are not each image once: i + k·len is copy k of
        image i. How many there are of each bucket must be the same in every epoch.
        """
        return None
