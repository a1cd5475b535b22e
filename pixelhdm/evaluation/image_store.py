"""Images drawn for an evaluation and what extractors see in them, as files that outlive a kill."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from pixelhdm.errors import UserError, reason_of
from pixelhdm.evaluation.arrays_file import BROKEN
from pixelhdm.evaluation.extractors.extractor import Extractor, Features
from pixelhdm.files import TEMPORARY, replacing

CHUNK = 128  # images in a file: of one batch size and number of processes as of another
ENDING = ".npz"
FACTS, NUM, MATCH = "facts", "num", "match"


class Chunk(NamedTuple):
    """Images that follow each other.

    Attributes:
        images: their pixels.
        conditions: class numbers, or prompts.
        seeds: seeds of their noise.
    """

    images: UInt8[np.ndarray, "N H W 3"]
    conditions: np.ndarray
    seeds: Int64[np.ndarray, "N"]

    def and_then(self, other: "Chunk") -> "Chunk":
        """These images and others after them."""
        return Chunk(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


class ImageStore:
    """The images of an evaluation and their features, in files of 128 images, each written whole.

    <folder>/images/00012.npz holds images, conditions and seeds, <folder>/features/<key>-<digest>/
    00012.npz what an extractor makes of them. A file of images that were drawn otherwise counts as
    missing, and is written over. Images are known by their number 0 … num_images - 1; files may
    hold more of them than that.

    Args:
        folder: where the files lie.
        facts: a text that differs when the images do.
        num_images: number of images that are wanted.
    """

    def __init__(self, folder: Path, facts: str, num_images: int):
        self.folder, self.facts, self.num_images = folder, facts, num_images

    @property
    def chunks(self) -> range:
        """The numbers of all chunks."""
        return range(-(-self.num_images // CHUNK))

    def numbers(self, chunk: int) -> range:
        """The numbers of a chunk's images."""
        return range(chunk * CHUNK, min((chunk + 1) * CHUNK, self.num_images))

    def chunk_of(self, number: int) -> int:
        """The chunk that an image belongs to."""
        return number // CHUNK

    def image_file(self, chunk: int) -> Path:
        """Where the images of a chunk lie."""
        return self.folder / "images" / f"{chunk:05d}{ENDING}"

    def feature_file(self, chunk: int, extractor: Extractor) -> Path:
        """Where their features lie."""
        name = f"{extractor.key}-{extractor.digest()}"
        return self.folder / "features" / name / f"{chunk:05d}{ENDING}"

    # Images ---------------------------------------------------------------------------------------

    def num_stored(self, chunk: int) -> int:
        """How many images of a chunk are there."""
        return self.num_in(self.image_file(chunk))

    def has_images(self, chunk: int) -> bool:
        """Whether all images of a chunk that are wanted are there."""
        return self.num_stored(chunk) >= len(self.numbers(chunk))

    def write(self, chunk: int, drawn: Chunk) -> None:
        """Write all images of a chunk."""
        self.save(self.image_file(chunk), len(drawn.images), drawn._asdict())

    def read(self, chunk: int) -> Chunk:
        """The images of a chunk that are wanted."""
        num = len(self.numbers(chunk))
        return Chunk(*(part[:num] for part in self.load(self.image_file(chunk), Chunk._fields)))

    def image(self, number: int) -> UInt8[np.ndarray, "H W 3"]:
        """One image."""
        (images,) = self.load(self.image_file(self.chunk_of(number)), ["images"])
        return images[number % CHUNK]

    def delete_images(self) -> None:
        """Delete the files of all images, those of further ones too."""
        for file in (self.folder / "images").glob(f"*{ENDING}"):
            file.unlink()

    # Features -------------------------------------------------------------------------------------

    def has_features(self, chunk: int, extractor: Extractor) -> bool:
        """Whether the features of all images of a chunk that are wanted are there."""
        return self.num_in(self.feature_file(chunk, extractor)) >= len(self.numbers(chunk))

    def write_features(
        self,
        chunk: int,
        extractor: Extractor,
        features: Features,
        match: Float[Tensor, "B"] | None = None,
    ) -> None:
        """Write the features of all images of a chunk, and how well each matches its prompt."""
        arrays = {name: part for name, part in features._asdict().items() if part is not None}
        arrays |= {} if match is None else {MATCH: match}
        file = self.feature_file(chunk, extractor)
        self.save(file, len(features.pool), {name: part.numpy() for name, part in arrays.items()})

    def features(self, extractor: Extractor) -> Features:
        """The features of all images, in their order."""
        return Features(*(self.feature(extractor, name) for name in Features._fields))

    def match(self, extractor: Extractor) -> Float[Tensor, "N"] | None:
        """How well each image matches its prompt; None where the extractor does not tell."""
        return self.feature(extractor, MATCH)

    def feature(self, extractor: Extractor, name: str) -> Float[Tensor, "N ..."] | None:
        """One kind of features of all images; None where the extractor has no such."""
        whole: Tensor | None = None
        for chunk in self.chunks:
            (part,) = self.load(self.feature_file(chunk, extractor), [name])
            if part is None:
                return None
            if whole is None:
                whole = torch.empty(self.num_images, *part.shape[1:])
            numbers = self.numbers(chunk)
            whole[numbers.start : numbers.stop] = torch.from_numpy(part[: len(numbers)])
        return whole

    # Files ----------------------------------------------------------------------------------------

    def save(self, file: Path, num: int, arrays: dict[str, np.ndarray]) -> None:
        """Write a file with its facts."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, **arrays, **{FACTS: np.array(self.facts), NUM: np.array(num)})

    def load(self, file: Path, names: list[str] | tuple[str, ...]) -> list[np.ndarray | None]:
        """Arrays of a file; None for those that it lacks.

        Raises:
            UserError: it is damaged.
        """
        try:
            return self.arrays(file, names)
        except BROKEN as error:
            raise UserError(
                f"{file} must be a whole file of an evaluation, got a damaged one "
                f"({reason_of(error)}). Delete it: the same command makes it again."
            ) from error

    def arrays(self, file: Path, names: list[str] | tuple[str, ...]) -> list[np.ndarray | None]:
        """The same, with the errors of reading."""
        with np.load(file, allow_pickle=False) as arrays:
            return [arrays.get(name) for name in names]

    def num_in(self, file: Path) -> int:
        """How many images a file is of; 0 where it is missing, torn, or of others."""
        try:
            facts, num = self.arrays(file, [FACTS, NUM])
        except BROKEN:  # missing, torn, or not one
            return 0
        return int(num) if facts is not None and str(facts) == self.facts else 0

    def remove_leftovers(self) -> None:
        """Delete the unfinished files that a killed call left behind."""
        name = f".*{TEMPORARY}"
        parts = (self.folder / part for part in ("images", "features"))
        inside = (file for part in parts for file in part.rglob(name))
        for file in [*self.folder.glob(name), *inside]:
            file.unlink()
