"""Image files that drawing begins from, in the place of noise."""

import math
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import UnidentifiedImageError
from torch import Tensor

from pixelhdm.data.decode import PIXELS, cover, decode
from pixelhdm.errors import UserError, reason_of

SOURCE_SCALE = 1.5
CENTRE = (0.5, 0.5)


class Asked(NamedTuple):
    """What a prompt, or the run, asks to begin from; None leaves it to the run, or out.

    Attributes:
        image: file of the image.
        mask: file that is white where the image is drawn anew, black where it stays.
        strength: 0 gives the image back, 1 ignores it.
        source: prompt or class number of what the image shows, for FlowEdit.
        source_scale: strength of the guidance towards it.
    """

    image: str | None = None
    mask: str | None = None
    strength: float | None = None
    source: int | str | None = None
    source_scale: float | None = None

    def over(self, other: "Asked") -> "Asked":
        """The same, with `other` where it asks for nothing."""
        return Asked(*(b if a is None else a for a, b in zip(self, other, strict=True)))

    def check(self, place: str) -> None:
        """Raise a UserError for what cannot be meant, whatever the image."""
        if self.strength is not None and not 0 <= self.strength <= 1:
            raise UserError(
                f"{place}: strength must lie in 0 … 1, where 0 gives the image back, got "
                f"{self.strength}."
            )
        if self.source_scale is not None and not math.isfinite(self.source_scale):
            raise UserError(
                f"{place}: source_scale must be a finite number, got {self.source_scale}."
            )


def default_strength(with_mask: bool, with_source: bool) -> float:
    """The strength where none is asked for: an edit from a source keeps the layout, a masked part
    is all new.
    """
    if with_source:
        return 0.66
    return 1.0 if with_mask else 0.7


class PictureFile(NamedTuple):
    """A file with a picture.

    Attributes:
        path: where it lies.
        digest: a short text that differs when its bytes do.
        size: height and width in pixels.
    """

    path: str
    digest: str
    size: tuple[int, int]

    @property
    def name(self) -> str:
        """Its name without folders."""
        return Path(self.path).name


class StartFiles(NamedTuple):
    """What an image begins from; see Asked.

    Attributes:
        image: file of the image.
        mask: file of the mask, if there is one.
        strength: 0 gives the image back, 1 ignores it.
        source: prompt or class number of what the image shows; None for plain image to image.
        source_scale: strength of the guidance towards it.
    """

    image: PictureFile
    mask: PictureFile | None
    strength: float
    source: int | str | None
    source_scale: float

    @property
    def kind(self) -> tuple[float, bool, bool, float]:
        """What all images of a batch share."""
        return self.strength, self.mask is None, self.source is None, self.source_scale


class StartBatch(NamedTuple):
    """What the images of a batch begin from.

    Attributes:
        pixels: the images.
        mask: 1 where they are drawn anew; None draws anew everywhere.
        source: prompts or class numbers of what they show; None for plain image to image.
        strength: see Asked.
        source_scale: see Asked.
    """

    pixels: UInt8[Tensor, "B H W 3"]
    mask: Float[Tensor, "B H W 1"] | None
    source: Tensor | list[str] | None
    strength: float
    source_scale: float


class StartReader:
    """Finds the files that images begin from; each is looked at once."""

    def __init__(self) -> None:
        self.known: dict[str, PictureFile] = {}

    def start(self, asked: Asked, place: str) -> StartFiles | None:
        """What an image begins from; None for noise.

        Raises:
            UserError: a file is missing or broken, or something is asked of an image that is not
                there.
        """
        asked.check(place)
        if asked.image is None:
            return None
        image = self.picture(asked.image, "image", place)
        mask = None if asked.mask is None else self.picture(asked.mask, "mask", place)
        if mask is not None and mask.size != image.size:
            raise UserError(
                f"{place}: mask must have the size of its image, {sides(image)}, got "
                f"{sides(mask)} in {mask.path}."
            )
        return StartFiles(
            image,
            mask,
            default_strength(mask is not None, asked.source is not None)
            if asked.strength is None
            else asked.strength,
            asked.source,
            SOURCE_SCALE if asked.source_scale is None else asked.source_scale,
        )

    def picture(self, path: str, name: str, place: str) -> PictureFile:
        """A file that can be decoded."""
        if not path:
            raise UserError(f"{place}: {name} must be an image file, got nothing. Leave it out.")
        if path not in self.known:
            try:
                data = Path(path).read_bytes()
                height, width, _ = decode(data).shape
            except Exception as error:  # decoders raise anything
                reason = "no kind of image that Pillow knows"
                if not isinstance(error, UnidentifiedImageError):  # which names an object
                    reason = reason_of(error)
                raise UserError(
                    f"{place}: {name} must be an image file, got {path} ({reason})."
                ) from error
            self.known[path] = PictureFile(path, sha256(data).hexdigest()[:16], (height, width))
        return self.known[path]


def check_has_image(asked: Asked, place: str) -> None:
    """Raise a UserError where something is asked of an image, and there is none."""
    for name, value in asked._asdict().items():
        if value is not None and name != "image" and asked.image is None:
            raise UserError(
                f"{place}: {name} must come with an image to begin from, got {value} alone."
            )


def check_has_source(asked: Asked, place: str) -> None:
    """Raise a UserError for a scale towards a source that is not there."""
    if asked.source_scale is not None and asked.source is None:
        raise UserError(
            f"{place}: source_scale must come with a source, got {asked.source_scale} alone."
        )


def sides(file: PictureFile) -> str:
    """Its size in words."""
    return "{}x{}".format(*file.size)


def load_starts(starts: list[StartFiles], height: int, width: int) -> StartBatch:
    """Read what the images of a batch begin from, each cut from the centre to height x width; they
    are of one kind.
    """
    first = starts[0]
    images = [covering(start.image, height, width) for start in starts]
    masks = [
        covering(start.mask, height, width).mean(axis=2, keepdims=True, dtype=np.float32) / 255
        for start in starts
        if start.mask is not None
    ]
    sources = [start.source for start in starts]
    return StartBatch(
        torch.from_numpy(np.stack(images)),
        torch.from_numpy(np.stack(masks)) if masks else None,
        None if first.source is None else as_conditions(sources),
        first.strength,
        first.source_scale,
    )


def as_conditions(given: list[int] | list[str]) -> Tensor | list[str]:
    """Class numbers or prompts as a conditioner takes them."""
    return given if isinstance(given[0], str) else torch.tensor(given)


def covering(file: PictureFile, height: int, width: int) -> PIXELS:
    """The upright RGB pixels of a file, just as large as is asked for."""
    return cover(decode(Path(file.path).read_bytes()), height, width, CENTRE)
